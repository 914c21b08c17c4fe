import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.kernels.product_keys import best_pairs


def assert_best(found, score_SNK, count):
    """Different pairs, with the sums that they say, and no better sum among all pairs."""
    sum_NE, pair_NE = found
    all_NR = (score_SNK[0][..., :, None] + score_SNK[1][..., None, :]).flatten(-2)
    assert (pair_NE.sort(-1).values.diff(dim=-1) > 0).all(), "a pair stands twice"
    assert torch.equal(all_NR.gather(-1, pair_NE), sum_NE), "a sum is not that of its pair"
    best_NE = all_NR.sort(-1, descending=True).values[..., :count]
    assert torch.equal(sum_NE.sort(-1, descending=True).values, best_NE), "a better pair is left"


@settings(deadline=None, max_examples=150)
@given(
    keys=st.integers(1, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    steps=st.sampled_from([2, 5, 1000, None]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_best_pairs_are_those_of_a_search_through_all(keys, share, seed, steps, dtype):
    """Also with scores of few different values, and in a precision in which many sums tie."""
    generator = torch.Generator().manual_seed(seed)
    score_SNK = torch.randn(2, 3, 2, keys, generator=generator)
    if steps:
        score_SNK = (score_SNK * steps / 4).round()
    count = max(1, round(share * keys))
    assert_best(best_pairs(score_SNK.to(dtype), count), score_SNK.to(dtype), count)


def test_a_choice_that_is_not_the_best_is_caught():
    score_SNK = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    _, more_NE = best_pairs(score_SNK, 6)
    all_NR = (score_SNK[0][..., :, None] + score_SNK[1][..., None, :]).flatten(-2)
    sum_NE = all_NR.gather(-1, more_NE)
    worst_first = sum_NE.argsort(-1)[..., :5]
    with pytest.raises(AssertionError, match="a better pair is left"):
        assert_best((sum_NE.gather(-1, worst_first), more_NE.gather(-1, worst_first)), score_SNK, 5)


def test_gradients_reach_the_scores_of_the_chosen_keys_alone():
    score_SNK = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sum_NE, pair_NE = best_pairs(score_SNK, 4)
    (gradient_SNK,) = torch.autograd.grad(sum_NE.sum(), score_SNK)
    for side, key_NE in enumerate((pair_NE // 8, pair_NE % 8)):
        for row, keys in enumerate(key_NE.tolist()):
            assert gradient_SNK[side, row].tolist() == [keys.count(key) for key in range(8)]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_still_choose_pairs_that_exist(number):
    score_SNK = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    score_SNK[0, 1, 3:] = score_SNK[1, 2, 5] = number
    _, pair_NE = best_pairs(score_SNK, 4)
    assert 0 <= pair_NE.min() <= pair_NE.max() < 64

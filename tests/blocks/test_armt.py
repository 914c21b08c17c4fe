import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.armt import ARMT, divided, dpfp, write
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=1):
    return torch.randn(shape, generator=stream(seed), dtype=torch.float64)


def build(width=16, drawn=True, dtype=torch.float64, **given):
    config = ARMT.Config(**dict(ARMT.info.fill(given)))
    return Case(ARMT, width, config).build(dtype, drawn=drawn)


def test_features_are_those_of_dpfp():
    # r = [1, 0, 0, 2], rolled by 1 [2, 1, 0, 0], by 2 [0, 2, 1, 0], by 3 [0, 0, 2, 1]
    k = torch.tensor([1.0, -2.0])
    assert dpfp(k, 3).tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert dpfp(torch.randn(5, 7, generator=stream()), 3).shape == (5, 42)


def test_starts_silent_and_only_its_values_learn_at_first():
    block, x_BTD = build(drawn=False, segment=8, writers=4), randn(1, 40, 16)
    y_BTD = block(x_BTD, Ctx(x_BTD))
    assert not y_BTD.any()
    weights = dict(block.named_parameters())
    grads = torch.autograd.grad(y_BTD.sum(), list(weights.values()))
    for (name, _), grad in zip(weights.items(), grads, strict=True):
        assert bool(grad.any()) == (name == "v.weight")


def test_each_segment_reads_what_the_writers_of_those_before_left_and_no_more():
    block, x_BTD = build(segment=8, writers=3), randn(1, 24, 16).requires_grad_()
    y_BTD = block(x_BTD, Ctx(x_BTD))
    assert not y_BTD[:, :8].any()
    for t in (8, 15, 16, 23):
        grad = torch.autograd.grad(y_BTD[0, t].sum(), x_BTD, retain_graph=True)[0]
        reached = [s for s in range(24) if grad[0, s].any()]
        writers = [s for border in range(8, t + 1, 8) for s in range(border - 3, border)]
        assert reached == sorted({*writers, t})


def test_slots_tell_equal_tokens_apart():
    """Equal tokens would write under one key, M times at once, and overshoot."""
    block = build(width=64, segment=32, writers=8, dtype=torch.float32, drawn=False)
    mixed_BTD, one_BTD = randn(1, 128, 64).float(), randn(1, 1, 64, seed=2).float()
    x_BTD = torch.cat((mixed_BTD, one_BTD.expand(1, 2048, 64)), 1)
    with torch.no_grad():
        block.v.weight.normal_(0.0, 0.125, generator=stream(4))
        assert block(x_BTD, Ctx(x_BTD)).abs().max() < 20
        block.slots.zero_()
        assert not block(x_BTD, Ctx(x_BTD)).abs().max() < 1e3


def one_hot_keys(*which):
    """Keys whose features do not overlap: e_i with i even, of width 8 and nu = 1, none roll on."""
    pairs = torch.zeros(len(which), 16, dtype=torch.float64)
    for row, i in enumerate(which):
        pairs[row, i] = 1.0
    return pairs[None]


def empty(columns=4):
    return torch.zeros(1, 16, columns + 1, dtype=torch.float64)


def recall(memory, key):
    return divided(key @ memory)


def test_orthogonal_keys_recall_their_values():
    keys, values = one_hot_keys(0, 3, 5), randn(1, 3, 4)
    memory = write(empty(), keys, values, torch.ones(1, 3, 1, dtype=torch.float64))
    torch.testing.assert_close(recall(memory, keys), values, rtol=1e-4, atol=1e-4)


def test_writing_again_under_a_key_replaces_its_value_and_leaves_the_rest():
    keys, values, one = one_hot_keys(0, 3), randn(1, 2, 4), torch.ones(1, 1, 1).double()
    memory = write(empty(), keys, values, one.expand(1, 2, 1))
    new = randn(1, 1, 4, seed=2)
    memory = write(memory, keys[:, :1], new, one)
    want = torch.cat((new, values[:, 1:]), 1)
    torch.testing.assert_close(recall(memory, keys), want, rtol=1e-4, atol=1e-4)
    # the rule without removal would leave the sum of both values
    assert (values[:, 0] + new[:, 0] - want[:, 0]).abs().max() > 0.1


def test_gamma_counts_a_key_once():
    """z is the denominator: counted twice, a rewritten value would be recalled at half size."""
    keys, one = one_hot_keys(0), torch.ones(1, 1, 1).double()
    memory = empty()
    for seed in range(5):
        memory = write(memory, keys, randn(1, 1, 4, seed=seed), one)
    torch.testing.assert_close(memory[0, 0, -1], torch.tensor(1.0).double(), rtol=1e-4, atol=0)


def test_beta_is_the_part_of_the_way_from_the_old_value_to_the_new():
    keys, old, new = one_hot_keys(0), randn(1, 1, 4), randn(1, 1, 4, seed=2)
    one = torch.ones(1, 1, 1).double()
    memory = write(write(empty(), keys, old, one), keys, new, 0.25 * one)
    torch.testing.assert_close(recall(memory, keys), 0.75 * old + 0.25 * new, rtol=1e-4, atol=1e-4)


def test_tokens_of_a_segment_write_from_the_old_memory_in_any_order():
    keys, values = dpfp(randn(1, 6, 8), 1), randn(1, 6, 4)
    betas = randn(1, 6, 1).sigmoid()
    before = write(empty(), dpfp(randn(1, 6, 8, seed=5), 1), values, betas)
    together = write(before, keys, values, betas)
    order = torch.randperm(6, generator=stream(3))
    other = write(before, keys[:, order], values[:, order], betas[:, order])
    torch.testing.assert_close(other, together)
    one_by_one = before
    for i in range(6):
        one_by_one = write(
            one_by_one, keys[:, i : i + 1], values[:, i : i + 1], betas[:, i : i + 1]
        )
    assert (one_by_one - together).abs().max() > 1e-2


def test_memory_is_kept_in_float32_under_bfloat16():
    block = build(dtype=torch.float32, segment=8, writers=4).eval()
    x_BTD = randn(2, 65, 16).bfloat16().float()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(parameter.bfloat16())
        want = block(x_BTD, Ctx(x_BTD))
        got = block.bfloat16()(x_BTD.bfloat16(), Ctx(x_BTD.bfloat16()))
    assert block.init_state(2, 65)["memory"].dtype == torch.float32
    error = (got.float() - want).square().mean().sqrt()
    assert error < 0.02 * want.square().mean().sqrt()


def test_state_does_not_grow_with_the_context():
    sizes = [
        [v.shape for v in build(segment=8, writers=4, d_mem=8).init_state(2, n).values()]
        for n in (1, 10_000)
    ]
    assert sizes[0] == sizes[1] == [(2, 6 * 8, 17), (2, 4, 16)]


def test_more_writers_than_tokens_are_refused_in_words():
    with pytest.raises(BlockError) as error:
        ARMT.check(16, ARMT.Config(segment=3, writers=4))
    assert str(error.value) == (
        "armt.writers 4 is more than the 3 tokens of a segment; legal: 1, 2, 3"
    )

"""Laws of in-context recall, checked by a slow reading of each row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mad_tasks import InContextRecall


def check(inputs: list[int], targets: list[int], vocab: int) -> None:
    """Read one evaluation row from left to right and require the only legal targets."""
    half = vocab // 2
    assert len(inputs) == len(targets)
    assert len(inputs) % 2 == 1
    shown: dict[int, int] = {}
    for t, (token, want) in enumerate(zip(inputs, targets, strict=True)):
        if t % 2 == 0:
            assert 0 <= token < half
            assert want == shown.get(token, -100)
        else:
            assert half <= token < vocab
            assert shown.setdefault(inputs[t - 1], token) == token
            assert want == -100
    assert inputs[-1] in shown
    scored = sum(want != -100 for want in targets)
    assert scored == (len(inputs) + 1) // 2 - len(set(inputs[::2]))


def draw(task, n, seed, *, train=False):
    inputs_BT, targets_BT = task.sample(n, torch.Generator().manual_seed(seed), train=train)
    return inputs_BT.tolist(), targets_BT.tolist()


def test_every_target_is_the_value_shown_before():
    task = InContextRecall()
    for inputs, targets in zip(*draw(task, 10_000, 1), strict=True):
        check(inputs, targets, task.vocab)


sizes = st.builds(
    InContextRecall,
    vocab=st.integers(2, 12).map(lambda half: 2 * half),
    seq_len=st.integers(2, 24).map(lambda pairs: 2 * pairs),
)


@settings(deadline=None)
@given(task=sizes, seed=st.integers(0, 2**31), n=st.integers(1, 6))
def test_every_target_is_the_value_shown_before_at_any_size(task, seed, n):
    rows = draw(task, n, seed)
    assert len(rows[0]) == n
    for inputs, targets in zip(*rows, strict=True):
        assert len(inputs) == task.length
        check(inputs, targets, task.vocab)


@settings(deadline=None)
@given(task=sizes, seed=st.integers(0, 2**31))
def test_training_targets_are_the_next_tokens(task, seed):
    for inputs, targets in zip(*draw(task, 4, seed, train=True), strict=True):
        assert targets[:-1] == inputs[1:]
        shown: dict[int, int] = {}
        answers = []
        for t in range(0, len(inputs), 2):
            answers += [shown.get(inputs[t], -100), -100]
            shown.setdefault(inputs[t], targets[t])
        assert targets[-1] == answers[-2]
        check(inputs, answers[:-1], task.vocab)


def test_the_checker_notices_every_wrong_label():
    (inputs,), (targets,) = draw(InContextRecall(), 1, 2)
    check(inputs, targets, 16)
    for t, want in enumerate(targets):
        for wrong in {-100, 8, 9} - {want}:
            with pytest.raises(AssertionError):
                check(inputs, [*targets[:t], wrong, *targets[t + 1 :]], 16)


def test_the_checker_notices_a_changed_value():
    (inputs,), (targets,) = draw(InContextRecall(vocab=8, seq_len=32), 1, 3)
    for t in range(1, len(inputs), 2):
        if inputs[::2].count(inputs[t - 1]) > 1:
            other = 4 + (inputs[t] - 3) % 4
            with pytest.raises(AssertionError):
                check([*inputs[:t], other, *inputs[t + 1 :]], targets, 8)


def near(share: float, expected: float, n: float) -> bool:
    """Whether a share of n independent draws is within 5 standard errors of its expectation."""
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


def test_number_of_scored_targets():
    _, targets_BT = InContextRecall().sample(20_000, torch.Generator().manual_seed(4))
    scored_B = (targets_BT != -100).sum(1).double()
    expected = 64 - 8 * (1 - (7 / 8) ** 63)
    assert abs(scored_B.mean() - expected) < 5 * scored_B.std() / math.sqrt(20_000)


def test_context_keys_and_fresh_values_are_uniform():
    inputs_BT, _ = InContextRecall().sample(5_000, torch.Generator().manual_seed(5))
    for key in range(8):
        assert near((inputs_BT[:, 0:126:2] == key).double().mean(), 1 / 8, 5_000 * 63)
        assert near((inputs_BT[:, 1] == 8 + key).double().mean(), 1 / 8, 5_000)


def test_values_differ_between_rows_and_may_collide_within_one():
    maps = [
        dict(zip(row[0:-1:2], row[1::2], strict=True)) for row in draw(InContextRecall(), 50, 6)[0]
    ]
    assert len({tuple(sorted(values.items())) for values in maps}) > 45
    assert any(len(set(values.values())) < len(values) for values in maps)


def test_probe_is_uniform_over_distinct_keys_not_over_slots():
    # Five context pairs with two distinct keys: one key is in the majority.
    major = total = 0
    rows, _ = draw(InContextRecall(vocab=8, seq_len=12), 20_000, 7)
    for row in rows:
        context = row[0:10:2]
        if len(set(context)) == 2:
            total += 1
            major += context.count(row[-1]) >= 3
    assert total > 1_000
    assert near(major / total, 1 / 2, total)


@pytest.mark.parametrize("distinct", [2, 3, 4])
def test_probe_has_every_rank_among_the_distinct_keys_equally_often(distinct):
    rows, _ = draw(InContextRecall(vocab=8, seq_len=12), 20_000, 8)
    ranks = [
        sorted(set(row[0:10:2])).index(row[-1]) for row in rows if len(set(row[0:10:2])) == distinct
    ]
    for rank in range(distinct):
        assert near(ranks.count(rank) / len(ranks), 1 / distinct, len(ranks))

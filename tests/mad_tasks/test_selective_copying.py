"""Laws of selective copying, checked by a slow reading of each row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mad_tasks import SelectiveCopying


def check(inputs: list[int], targets: list[int], task: SelectiveCopying) -> None:
    """Read one row token by token and require the only legal targets."""
    blank, copy_token = task.vocab - 2, task.vocab - 1
    assert inputs.count(copy_token) == 1
    at = inputs.index(copy_token)
    assert at == len(inputs) - task.copy - 1
    content = [token for token in inputs[:at] if token != blank]
    assert len(content) == task.copy
    assert all(0 <= token < blank for token in content)
    assert all(token == blank for token in inputs[at + 1 :])
    if task.spacing == "mad":
        assert inputs[at - 1] != blank
    assert targets == [-100] * (at + 1) + content


def draw(task, n, seed, *, train=False):
    inputs_BT, targets_BT = task.sample(n, torch.Generator().manual_seed(seed), train=train)
    return inputs_BT.tolist(), targets_BT.tolist()


@pytest.mark.parametrize("spacing", ["mad", "uniform"])
def test_the_targets_are_the_content_in_order(spacing):
    task = SelectiveCopying(spacing=spacing)
    for inputs, targets in zip(*draw(task, 10_000, 1), strict=True):
        check(inputs, targets, task)


@st.composite
def sizes(some):
    copy = some(st.integers(1, 8))
    return SelectiveCopying(
        vocab=some(st.integers(4, 20)),
        copy=copy,
        seq_len=2 * copy + some(st.integers(2, 40)),
        spacing=some(st.sampled_from(("mad", "uniform"))),
    )


@settings(deadline=None)
@given(task=sizes(), seed=st.integers(0, 2**31), train=st.booleans())
def test_the_targets_are_the_content_in_order_at_any_size(task, seed, train):
    for inputs, targets in zip(*draw(task, 4, seed, train=train), strict=True):
        assert len(inputs) == len(targets) == task.length == task.seq_len
        check(inputs, targets, task)


def test_the_checker_notices_every_wrong_label_and_every_changed_input():
    task = SelectiveCopying(seq_len=40, copy=4)
    (inputs,), (targets,) = draw(task, 1, 2)
    check(inputs, targets, task)
    for t in range(40):
        for wrong in {-100, 0, 1} - {targets[t]}:
            with pytest.raises(AssertionError):
                check(inputs, [*targets[:t], wrong, *targets[t + 1 :]], task)
        for wrong in {0, 1, 14, 15} - {inputs[t]}:
            with pytest.raises(AssertionError):
                check([*inputs[:t], wrong, *inputs[t + 1 :]], targets, task)


def test_the_checker_notices_blanks_before_the_copy_token():
    task = SelectiveCopying(spacing="uniform")
    rows = [
        (inputs, targets)
        for inputs, targets in zip(*draw(task, 50, 3), strict=True)
        if inputs[238] == 14
    ]
    for inputs, targets in rows:
        check(inputs, targets, task)
        with pytest.raises(AssertionError):
            check(inputs, targets, SelectiveCopying())
    assert rows


def test_blanks_before_each_content_token_are_binomial():
    n = 20_000
    inputs_BT, _ = SelectiveCopying().sample(n, torch.Generator().manual_seed(4))
    places_BC = (inputs_BT < 14).nonzero()[:, 1].reshape(n, 16)
    gaps_BC = places_BC.diff(dim=1, prepend=torch.full((n, 1), -1)).double() - 1
    mean, variance = 223 / 16, 223 / 16 * 15 / 16
    for token in range(16):
        gaps_B = gaps_BC[:, token]
        assert abs(gaps_B.mean() - mean) < 5 * math.sqrt(variance / n)
        # The variance of a sample variance is about 2 variance**2 / n.
        assert abs(gaps_B.var() - variance) < 5 * variance * math.sqrt(2 / n)
    # The gaps share 223 blanks, so two of them are correlated by -1 / 15.
    correlation = torch.corrcoef(gaps_BC[:, :2].T)[0, 1]
    assert abs(correlation + 1 / 15) < 5 / math.sqrt(n)


def test_uniform_spacing_puts_content_everywhere_equally_often():
    n = 20_000
    inputs_BT, _ = SelectiveCopying(spacing="uniform").sample(n, torch.Generator().manual_seed(5))
    share_R = (inputs_BT[:, :239] < 14).double().mean(0)
    expected = 16 / 239
    assert (share_R - expected).abs().max() < 5.5 * math.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("spacing", ["mad", "uniform"])
def test_content_is_uniform_at_every_place(spacing):
    n = 20_000
    _, targets_BT = SelectiveCopying(spacing=spacing).sample(n, torch.Generator().manual_seed(6))
    for answer_B in targets_BT[:, -16:].unbind(1):
        share_V = torch.bincount(answer_B, minlength=14) / n
        assert (share_V - 1 / 14).abs().max() < 5.5 * math.sqrt(1 / 14 / n)

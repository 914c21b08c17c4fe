"""Laws of compression, checked by a slow reading of each row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mad_tasks import Compression


def check(inputs: list[int], targets: list[int], vocab: int) -> None:
    """Require one row of free tokens and the constant last one, all of them scored."""
    assert all(0 <= token < vocab - 1 for token in inputs[:-1])
    assert inputs[-1] == vocab - 1
    assert len(targets) == len(inputs)
    for token, want in zip(inputs, targets, strict=True):
        assert want == token


def draw(task, n, seed, *, train=False):
    inputs_BT, targets_BT = task.sample(n, torch.Generator().manual_seed(seed), train=train)
    return inputs_BT.tolist(), targets_BT.tolist()


@pytest.mark.parametrize("train", [False, True])
def test_every_target_is_the_input(train):
    for inputs, targets in zip(*draw(Compression(), 10_000, 1, train=train), strict=True):
        check(inputs, targets, 16)


@settings(deadline=None)
@given(vocab=st.integers(3, 40), seq_len=st.integers(2, 40), seed=st.integers(0, 2**31))
def test_every_target_is_the_input_at_any_size(vocab, seq_len, seed):
    task = Compression(vocab=vocab, seq_len=seq_len)
    for inputs, targets in zip(*draw(task, 4, seed), strict=True):
        assert len(inputs) == task.length == seq_len
        check(inputs, targets, vocab)


def test_the_checker_notices_every_wrong_label_and_every_changed_input():
    (inputs,), (targets,) = draw(Compression(), 1, 2)
    for t in range(32):
        for wrong in {-100, *range(16)} - {targets[t]}:
            with pytest.raises(AssertionError):
                check(inputs, [*targets[:t], wrong, *targets[t + 1 :]], 16)
            with pytest.raises(AssertionError):
                check([*inputs[:t], wrong, *inputs[t + 1 :]], targets, 16)


def test_writing_to_the_targets_leaves_the_inputs():
    inputs_BT, targets_BT = Compression().sample(2, torch.Generator().manual_seed(3))
    targets_BT.fill_(-100)
    assert inputs_BT.min() >= 0


def test_tokens_are_uniform_and_independent():
    n = 20_000
    inputs_BT, _ = Compression().sample(n, torch.Generator().manual_seed(4))
    free = inputs_BT[:, :-1]
    share_V = torch.bincount(free.flatten(), minlength=16) / free.numel()
    assert share_V[15] == 0
    assert (share_V[:15] - 1 / 15).abs().max() < 5 * math.sqrt(1 / 15 / free.numel())
    equal = (free[:, :-1] == free[:, 1:]).double().mean()
    assert abs(equal - 1 / 15) < 5 * math.sqrt(1 / 15 / (30 * n))

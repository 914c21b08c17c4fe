"""Laws of memorization, checked by a slow reading of each row."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mad_tasks import Memorization


def map_of_mad(vocab: int) -> dict[int, int]:
    """Build the fixed map: keys and values shuffled one after the other, then zipped."""
    rng = np.random.default_rng(12345)
    keys = list(range((vocab - 1) // 2))
    values = list(range((vocab - 1) // 2, vocab - 1))
    rng.shuffle(keys)
    rng.shuffle(values)
    return dict(zip(keys, values, strict=False))


def check(inputs: list[int], targets: list[int], vocab: int, value_of: dict[int, int]) -> None:
    """Read one row pair by pair and require the only legal targets."""
    assert len(inputs) == len(targets)
    assert len(inputs) % 2 == 0
    for t in range(0, len(inputs), 2):
        assert 0 <= inputs[t] < (vocab - 1) // 2
        assert inputs[t + 1] == vocab - 1
        assert targets[t] == -100
        assert targets[t + 1] == value_of[inputs[t]]


def draw(task, n, seed, *, train=False):
    inputs_BT, targets_BT = task.sample(n, torch.Generator().manual_seed(seed), train=train)
    return inputs_BT.tolist(), targets_BT.tolist()


@pytest.mark.parametrize("train", [False, True])
def test_every_target_is_the_mapped_value(train):
    value_of = map_of_mad(256)
    for inputs, targets in zip(*draw(Memorization(), 10_000, 1, train=train), strict=True):
        check(inputs, targets, 256, value_of)


@settings(deadline=None)
@given(vocab=st.integers(5, 300), pairs=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_every_target_is_the_mapped_value_at_any_size(vocab, pairs, seed):
    task = Memorization(vocab=vocab, seq_len=2 * pairs)
    value_of = map_of_mad(vocab)
    for inputs, targets in zip(*draw(task, 4, seed), strict=True):
        assert len(inputs) == task.length == 2 * pairs
        check(inputs, targets, vocab, value_of)


@pytest.mark.parametrize("vocab", [5, 6, 256, 8192])
def test_the_map_is_injective_into_the_values(vocab):
    value_of = map_of_mad(vocab)
    assert sorted(value_of) == list(range((vocab - 1) // 2))
    assert len(set(value_of.values())) == len(value_of)
    assert set(value_of.values()) <= set(range((vocab - 1) // 2, vocab - 1))


def test_the_map_leaves_out_the_value_that_the_one_of_mad_leaves_out():
    assert set(range(127, 255)) - set(map_of_mad(256).values()) == {149}


def test_the_checker_notices_every_wrong_label_and_every_changed_input():
    (inputs,), (targets,) = draw(Memorization(), 1, 2)
    value_of = map_of_mad(256)
    check(inputs, targets, 256, value_of)
    for t in range(32):
        for wrong in {-100, 127, 128} - {targets[t]}:
            with pytest.raises(AssertionError):
                check(inputs, [*targets[:t], wrong, *targets[t + 1 :]], 256, value_of)
        for wrong in {0, 1, 127, 255} - {inputs[t]}:
            with pytest.raises(AssertionError):
                check([*inputs[:t], wrong, *inputs[t + 1 :]], targets, 256, value_of)


def test_keys_are_uniform():
    inputs_BT, _ = Memorization().sample(20_000, torch.Generator().manual_seed(3))
    share_K = torch.bincount(inputs_BT[:, ::2].flatten(), minlength=127) / (20_000 * 16)
    assert (share_K - 1 / 127).abs().max() < 5 * math.sqrt(1 / 127 / (20_000 * 16))
    # Keys of one row are independent: two neighbours are equal as often as any two.
    equal = (inputs_BT[:, 0] == inputs_BT[:, 2]).double().mean()
    assert abs(equal - 1 / 127) < 5 * math.sqrt(1 / 127 / 20_000)

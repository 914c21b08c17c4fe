"""Laws of noisy in-context recall, checked by a slow reading of each row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mad_tasks import NoisyInContextRecall


def check(inputs: list[int], targets: list[int], task: NoisyInContextRecall) -> None:
    """Read one evaluation row pair by pair and require the only legal targets."""
    clean = task.vocab - task.noise_vocab
    keys, values, noise = range(clean // 2), range(clean // 2, clean), range(clean, task.vocab)
    value_of: dict[int, int] = {}
    for t in range(0, len(inputs) - 1, 2):
        left, right = inputs[t : t + 2]
        assert targets[t + 1] == -100
        if left in noise:
            assert right in noise
            assert targets[t] == -100
        else:
            assert left in keys
            assert right in values
            if left in value_of:
                assert right == value_of[left]
                assert targets[t] == right
            else:
                assert targets[t] == -100
            value_of[left] = right
    assert value_of, "no key-value pair before the probe"
    assert inputs[-1] in keys
    assert targets[-1] == value_of[inputs[-1]]
    assert len(inputs) == len(targets) == task.seq_len - 1


def draw(task, n, seed, *, train=False):
    inputs_BT, targets_BT = task.sample(n, torch.Generator().manual_seed(seed), train=train)
    return inputs_BT.tolist(), targets_BT.tolist()


def test_every_target_is_the_value_shown_before():
    task = NoisyInContextRecall()
    for inputs, targets in zip(*draw(task, 10_000, 1), strict=True):
        check(inputs, targets, task)


@st.composite
def sizes(some):
    noise_vocab = some(st.integers(1, 6))
    return NoisyInContextRecall(
        vocab=noise_vocab + 2 * some(st.integers(2, 8)),
        noise_vocab=noise_vocab,
        seq_len=2 * some(st.integers(2, 20)),
        frac_noise=some(st.sampled_from((0.0, 0.2, 0.5, 0.8, 0.99))),
    )


@settings(deadline=None)
@given(task=sizes(), seed=st.integers(0, 2**31), n=st.integers(1, 6))
def test_every_target_is_the_value_shown_before_at_any_size(task, seed, n):
    for inputs, targets in zip(*draw(task, n, seed), strict=True):
        check(inputs, targets, task)


@settings(deadline=None)
@given(task=sizes(), seed=st.integers(0, 2**31))
def test_training_targets_are_the_next_tokens(task, seed):
    clean = task.vocab - task.noise_vocab
    for inputs, targets in zip(*draw(task, 4, seed, train=True), strict=True):
        assert targets[:-1] == inputs[1:]
        shown: dict[int, int] = {}
        answers = []
        for t in range(0, len(inputs), 2):
            answers += [shown.get(inputs[t], -100), -100]
            if inputs[t] < clean:
                shown.setdefault(inputs[t], targets[t])
        assert targets[-1] == answers[-2]
        check(inputs, answers[:-1], task)


def test_the_checker_notices_every_wrong_label():
    task = NoisyInContextRecall()
    (inputs,), (targets,) = draw(task, 1, 2)
    for t, want in enumerate(targets):
        for wrong in {-100, 8, 9} - {want}:
            with pytest.raises(AssertionError):
                check(inputs, [*targets[:t], wrong, *targets[t + 1 :]], task)


def test_the_checker_notices_half_a_noise_pair():
    task = NoisyInContextRecall()
    (inputs,), (targets,) = draw(task, 1, 3)
    for t, token in enumerate(inputs):
        # A position of a key gets noise; noise gets a key.
        other = 16 if token < 8 else 0
        with pytest.raises(AssertionError):
            check([*inputs[:t], other, *inputs[t + 1 :]], targets, task)


def near(share: float, expected: float, n: float) -> bool:
    """Whether a share of n independent draws is within 5 standard errors of its expectation."""
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("frac_noise", [0.2, 0.8])
def test_share_of_noise(frac_noise):
    task = NoisyInContextRecall(frac_noise=frac_noise)
    inputs_BT, _ = task.sample(5_000, torch.Generator().manual_seed(4))
    noise_BQ = inputs_BT[:, 0:126:2] >= 16
    assert near(noise_BQ.double().mean(), frac_noise * (1 - 1 / 64), 5_000 * 63)


def test_no_noise_at_fraction_zero():
    inputs_BT, _ = NoisyInContextRecall(frac_noise=0.0).sample(
        500, torch.Generator().manual_seed(5)
    )
    assert inputs_BT.max() < 16


def test_noise_tokens_are_uniform_and_independent():
    inputs_BT, _ = NoisyInContextRecall().sample(5_000, torch.Generator().manual_seed(6))
    left, right = inputs_BT[:, 0:126:2], inputs_BT[:, 1:127:2]
    noise = left >= 16
    n = int(noise.sum())
    for token in range(16, 32):
        assert near((left[noise] == token).double().mean(), 1 / 16, n)
        assert near((right[noise] == token).double().mean(), 1 / 16, n)
    assert near((left[noise] == right[noise]).double().mean(), 1 / 16, n)


def test_context_keys_are_uniform():
    inputs_BT, _ = NoisyInContextRecall().sample(5_000, torch.Generator().manual_seed(7))
    left = inputs_BT[:, 0:126:2]
    left = left[left < 16]
    for key in range(8):
        assert near((left == key).double().mean(), 1 / 8, left.numel())


def test_number_of_scored_targets():
    _, targets_BT = NoisyInContextRecall().sample(20_000, torch.Generator().manual_seed(8))
    scored_B = (targets_BT != -100).sum(1).double()

    def mean_power(z: float) -> float:
        """Mean of z**N for N context pairs: one of 63 is kept, in 63 of 64 rows."""
        return (0.2 + 0.8 * z) ** 62 * (z * 63 / 64 + (0.2 + 0.8 * z) / 64)

    pairs = 63 * (1 - 0.2 * (1 - 1 / 64))
    expected = 1 + pairs - 8 * (1 - mean_power(7 / 8))
    assert abs(expected - 43.6) < 0.05
    assert abs(scored_B.mean() - expected) < 5 * scored_B.std() / math.sqrt(20_000)


def test_noise_is_as_likely_at_every_context_pair_of_a_short_row():
    task = NoisyInContextRecall(seq_len=8, frac_noise=0.8)
    inputs_BT, _ = task.sample(20_000, torch.Generator().manual_seed(9))
    noise_BQ = (inputs_BT[:, 0:6:2] >= 16).double()
    # Index 3 keeps none; all three are then noise with 0.8**3, and one of them is restored.
    expected = 0.8 * 3 / 4 - 0.8**3 / 4 / 3
    for slot in range(3):
        assert near(noise_BQ[:, slot].mean(), expected, 20_000)


def test_probe_is_uniform_over_distinct_keys_not_over_slots():
    # Two distinct keys, of which one is in the majority.
    major = total = 0
    task = NoisyInContextRecall(vocab=20, seq_len=14, frac_noise=0.4)
    for row in draw(task, 20_000, 10)[0]:
        context = [token for token in row[0:-1:2] if token < 4]
        if len(context) in (3, 5) and len(set(context)) == 2:
            total += 1
            major += 2 * context.count(row[-1]) > len(context)
    assert total > 1_000
    assert near(major / total, 1 / 2, total)

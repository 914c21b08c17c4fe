"""Laws of fuzzy in-context recall, checked by a slow reading of each row."""

import math
from collections import Counter
from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mad_tasks import FuzzyInContextRecall

Motif = tuple[int, ...]


def runs_of(tokens: list[int], task: FuzzyInContextRecall) -> list[tuple[Motif, Motif]]:
    """Split a row into (key, value) motifs; the value of the last may be cut or missing."""
    keys, pad = (task.vocab - 1) // 2, task.vocab - 1
    kinds = [(token == pad, token < keys) for token in tokens]
    runs: list[tuple[bool, Motif]] = []
    for n, ((is_pad, is_key), group) in enumerate(
        groupby(range(len(tokens)), key=lambda t: kinds[t])
    ):
        motif = tuple(tokens[t] for t in group)
        if is_pad:
            assert n == 0, "padding after the beginning"
            continue
        assert len(set(motif)) == len(motif), "a motif repeats a token"
        assert all(0 <= token < pad for token in motif)
        assert len(motif) <= task.motif
        runs.append((is_key, motif))
    assert runs[0][0], "the row does not begin with a key"
    if runs[-1][0]:
        runs.append((False, ()))
    assert [is_key for is_key, _ in runs] == [True, False] * (len(runs) // 2)
    motifs = [motif for _, motif in runs]
    return list(zip(motifs[::2], motifs[1::2], strict=True))


def answer(tokens: list[int], task: FuzzyInContextRecall) -> list[int]:
    """Derive the evaluation targets from the inputs alone."""
    pairs = runs_of(tokens, task)
    shown: dict[Motif, Motif] = {}
    due: list[int] = []
    for key, value in pairs[:-1]:
        assert shown.get(key, value) == value, "a key has two values"
        due += [-100] * len(key) + (list(value) if key in shown else [-100] * len(value))
        shown[key] = value
    key, begun = pairs[-1]
    assert key in shown, "the last key was not shown"
    assert begun == shown[key][:-1], "the last value is not the one shown"
    due += [-100] * len(key) + list(shown[key])
    pads = len(tokens) + 1 - len(due)
    assert pads >= 1
    return ([-100] * pads + due)[1:]


def check(inputs: list[int], targets: list[int], task: FuzzyInContextRecall) -> None:
    """Require the only legal targets of one evaluation row."""
    assert len(inputs) == len(targets) == task.seq_len
    assert targets == answer(inputs, task)
    assert all(len(key) == task.motif for key, _ in runs_of(inputs, task))


def draw(task, n, seed, *, train=False):
    inputs_BT, targets_BT = task.sample(n, torch.Generator().manual_seed(seed), train=train)
    return inputs_BT.tolist(), targets_BT.tolist()


def test_every_target_is_a_token_of_a_value_shown_before():
    task = FuzzyInContextRecall()
    for inputs, targets in zip(*draw(task, 10_000, 1), strict=True):
        check(inputs, targets, task)
        assert 2 <= inputs.count(15) <= 7


@st.composite
def sizes(some):
    motif = some(st.integers(1, 4))
    return FuzzyInContextRecall(
        vocab=some(st.integers(max(5, 2 * motif + 1), 24)),
        seq_len=some(st.integers(4 * motif + 1, 60)),
        motif=motif,
    )


@settings(deadline=None)
@given(task=sizes(), seed=st.integers(0, 2**31), n=st.integers(1, 6))
def test_every_target_is_a_token_of_a_value_shown_before_at_any_size(task, seed, n):
    for inputs, targets in zip(*draw(task, n, seed), strict=True):
        check(inputs, targets, task)


@settings(deadline=None)
@given(task=sizes(), seed=st.integers(0, 2**31))
def test_training_targets_are_the_next_tokens_and_the_last_is_answerable(task, seed):
    for inputs, targets in zip(*draw(task, 4, seed, train=True), strict=True):
        assert targets[:-1] == inputs[1:]
        assert targets[-1] == answer(inputs, task)[-1]


@pytest.mark.parametrize("task", [FuzzyInContextRecall(vocab=128), FuzzyInContextRecall()])
def test_training_rows_are_consistent(task):
    for inputs, targets in zip(*draw(task, 1_000, 2, train=True), strict=True):
        assert targets[-1] == answer(inputs, task)[-1]


def test_the_checker_notices_every_wrong_label():
    task = FuzzyInContextRecall()
    (inputs,), (targets,) = draw(task, 1, 3)
    check(inputs, targets, task)
    for t, want in enumerate(targets):
        for wrong in {-100, 7, 8} - {want}:
            with pytest.raises(AssertionError):
                check(inputs, [*targets[:t], wrong, *targets[t + 1 :]], task)


def test_the_checker_notices_a_changed_input():
    task = FuzzyInContextRecall()
    (inputs,), (targets,) = draw(task, 1, 4)
    at_probe = len(inputs) - len(runs_of(inputs, task)[-1][1]) - 3
    for t in range(len(inputs)):
        # A key in the place of a value, a value in that of a key: runs get another length.
        other = 7 if inputs[t] < 7 else 0
        with pytest.raises(AssertionError):
            check([*inputs[:t], other, *inputs[t + 1 :]], targets, task)
    for t in range(at_probe, at_probe + 3):
        for other in {0, 1, 2, 3, 4, 5, 6} - {inputs[t]}:
            with pytest.raises(AssertionError):
                check([*inputs[:t], other, *inputs[t + 1 :]], targets, task)


def near(share: float, expected: float, n: float) -> bool:
    """Whether a share of n independent draws is within 5 standard errors of its expectation."""
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


@pytest.fixture(scope="module")
def evaluation():
    task = FuzzyInContextRecall()
    inputs, targets = draw(task, 10_000, 5)
    return [runs_of(row, task) for row in inputs], inputs, targets


@pytest.fixture(scope="module")
def training():
    task = FuzzyInContextRecall()
    return [runs_of(row, task) for row in draw(task, 10_000, 6, train=True)[0]]


def test_number_of_scored_targets_and_of_pads_are_those_of_mad(evaluation):
    # MAD's own generator gave 4.36 +/- 0.04 targets and 4.94 +/- 0.03 pads in 3000 rows.
    _, inputs, targets = evaluation
    assert abs(sum(sum(y != -100 for y in row) for row in targets) / 10_000 - 4.36) < 0.2
    assert abs(sum(row.count(15) for row in inputs) / 10_000 - 4.94) < 0.15


def test_motif_sizes_are_uniform(evaluation, training):
    for rows, what in ((evaluation[0], "eval"), (training, "train")):
        values = Counter(len(row[0][1]) for row in rows)
        keys = Counter(len(row[0][0]) for row in rows)
        probes = Counter(len(row[-1][0]) for row in rows)
        for size in (1, 2, 3):
            assert near(values[size] / 10_000, 1 / 3, 10_000)
            if what == "train":
                assert near(keys[size] / 10_000, 1 / 3, 10_000)
                assert near(probes[size] / 10_000, 1 / 3, 10_000)
    assert {len(key) for row in evaluation[0] for key, _ in row} == {3}


def chi_square_per_sigma(counts: Counter, kinds: int) -> float:
    """How many standard deviations the counts are less even than `kinds` fair ones."""
    expected = sum(counts.values()) / kinds
    missing = kinds - len(counts)
    chi2 = sum((n - expected) ** 2 / expected for n in counts.values()) + missing * expected
    return (chi2 - (kinds - 1)) / math.sqrt(2 * (kinds - 1))


def test_motifs_of_one_size_are_equally_likely(evaluation, training):
    first, last = (Counter(row[at][0] for row in evaluation[0]) for at in (0, -1))
    assert chi_square_per_sigma(first, 7 * 6 * 5) < 6
    assert chi_square_per_sigma(last, 7 * 6 * 5) < 6
    for size, keys, values in ((1, 7, 8), (2, 7 * 6, 8 * 7), (3, 7 * 6 * 5, 8 * 7 * 6)):
        key = Counter(row[0][0] for row in training if len(row[0][0]) == size)
        value = Counter(row[0][1] for row in training if len(row[0][1]) == size)
        assert chi_square_per_sigma(key, keys) < 6
        assert chi_square_per_sigma(value, values) < 6


def test_the_probe_is_put_in_everywhere(evaluation):
    # Uniform up to the effect of whole pairs: every tenth of the body holds it about as often.
    tenths = Counter()
    for row in evaluation[0]:
        keys = [key for key, _ in row]
        tenths[10 * keys.index(keys[-1]) // (len(keys) - 1)] += 1
    assert all(0.07 < tenths[tenth] / 10_000 < 0.14 for tenth in range(10))


def test_the_value_of_a_key_differs_between_rows():
    task = FuzzyInContextRecall(vocab=7, seq_len=40)
    values = Counter(runs_of(row, task)[0][1] for row in draw(task, 200, 7)[0])
    assert len(values) == 3 + 6 + 6

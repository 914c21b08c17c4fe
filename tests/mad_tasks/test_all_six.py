"""Laws that hold for each of the six tasks, and the shape of the package."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mad_tasks
from mad_tasks import (
    IGNORE,
    TASKS,
    Compression,
    FuzzyInContextRecall,
    InContextRecall,
    Memorization,
    NoisyInContextRecall,
    SelectiveCopying,
    difficulties,
)

SMALL = [
    InContextRecall(vocab=8, seq_len=32),
    NoisyInContextRecall(vocab=10, noise_vocab=2, seq_len=32),
    FuzzyInContextRecall(seq_len=32),
    Memorization(vocab=32, seq_len=16),
    Compression(seq_len=8),
    SelectiveCopying(seq_len=40, copy=4),
    SelectiveCopying(seq_len=40, copy=4, spacing="uniform"),
]

each_task = pytest.mark.parametrize("task_class", TASKS.values(), ids=TASKS.keys())
either_split = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_names():
    assert list(TASKS) == [
        "mad/in-context-recall",
        "mad/noisy-in-context-recall",
        "mad/fuzzy-in-context-recall",
        "mad/memorization",
        "mad/compression",
        "mad/selective-copying",
    ]
    assert all(task.name == name for name, task in TASKS.items())
    assert set(mad_tasks.__all__) <= set(dir(mad_tasks))


def test_only_compression_is_read_from_the_code():
    assert [task.name for task in TASKS.values() if task.readout == "code"] == ["mad/compression"]
    assert {task.readout for task in TASKS.values()} == {"code", "token"}


@each_task
def test_instances_are_hashable_values(task_class):
    assert task_class() == task_class()
    assert hash(task_class()) == hash(task_class())
    with pytest.raises(dataclasses.FrozenInstanceError):
        task_class().vocab = 20


@each_task
@either_split
def test_rows_have_the_declared_length_and_int64(task_class, train):
    task = task_class()
    inputs_BT, targets_BT = task.sample(7, generator(0), train=train)
    assert inputs_BT.shape == targets_BT.shape == (7, task.length)
    assert inputs_BT.dtype == targets_BT.dtype == torch.int64
    assert inputs_BT.is_contiguous()
    assert targets_BT.is_contiguous()


@settings(deadline=None)
@given(task=st.sampled_from(SMALL), seed=st.integers(0, 2**31), train=st.booleans())
def test_every_id_is_in_the_vocabulary_and_every_row_is_scored(task, seed, train):
    inputs_BT, targets_BT = task.sample(5, generator(seed), train=train)
    assert inputs_BT.min() >= 0
    assert inputs_BT.max() < task.vocab
    scored_BT = targets_BT != IGNORE
    assert scored_BT.any(dim=1).all()
    assert targets_BT[scored_BT].min() >= 0
    assert targets_BT[scored_BT].max() < task.vocab


@settings(deadline=None)
@given(task=st.sampled_from(SMALL), seed=st.integers(0, 2**31), train=st.booleans())
def test_the_generator_alone_decides(task, seed, train):
    state = torch.get_rng_state()
    rng = generator(seed)
    first, then = task.sample(5, rng, train=train), task.sample(5, rng, train=train)
    again = task.sample(5, generator(seed), train=train)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], then[0])
    assert torch.equal(state, torch.get_rng_state())


@each_task
def test_train_and_eval_share_no_row(task_class):
    train_BT, _ = task_class().sample(12_800, generator(1), train=True)
    eval_BT, _ = task_class().sample(1_280, generator(2))
    train = set(map(tuple, train_BT.tolist()))
    assert len(train) == 12_800
    assert train.isdisjoint(map(tuple, eval_BT.tolist()))


@pytest.mark.parametrize("task", [*SMALL, *(task() for task in TASKS.values())], ids=str)
def test_the_best_guess_that_ignores_the_row_scores_chance(task):
    n = 4_000
    _, targets_BT = task.sample(2 * n, generator(3))
    # For each position the commonest answer in one half of the rows, scored on the other.
    shown_BT, asked_BT = targets_BT[:n], targets_BT[n:]
    counts_TV = torch.stack([(shown_BT == token).sum(0) for token in range(task.vocab)], dim=1)
    hits_B = (asked_BT == counts_TV.argmax(1)).sum(1).double()
    scored_B = (asked_BT != IGNORE).sum(1).double()
    accuracy = hits_B.sum() / scored_B.sum()
    error = (hits_B - accuracy * scored_B).std() / scored_B.mean() / math.sqrt(n)
    assert abs(accuracy - task.chance) < 5 * error


@each_task
def test_chance_is_below_the_ceiling(task_class):
    assert all(0 < task.chance < task.ceiling == 1.0 for task in difficulties(task_class))


@each_task
def test_difficulties_are_the_baseline_and_each_value_alone(task_class):
    # Settings of MAD less its four sizes of the training set.
    settings_of_mad = {
        "mad/in-context-recall": 7,
        "mad/noisy-in-context-recall": 10,
        "mad/fuzzy-in-context-recall": 7,
        "mad/memorization": 6,
        "mad/compression": 7,
        "mad/selective-copying": 9,
    }
    baseline, *others = difficulties(task_class)
    assert baseline == task_class()
    assert 1 + len(others) == settings_of_mad[task_class.name]
    assert len({baseline, *others}) == 1 + len(others)
    changes = [
        {
            field.name: getattr(task, field.name)
            for field in dataclasses.fields(task)
            if getattr(task, field.name) != getattr(baseline, field.name)
        }
        for task in others
    ]
    assert changes == [{k: v} for k, values in task_class.axes.items() for v in values]


@each_task
@either_split
def test_every_difficulty_can_be_sampled(task_class, train):
    for task in difficulties(task_class):
        inputs_BT, targets_BT = task.sample(2, generator(4), train=train)
        assert inputs_BT.shape == targets_BT.shape == (2, task.length)
        assert inputs_BT.max() < task.vocab


@pytest.mark.parametrize(
    ("task_class", "fields", "message"),
    [
        (InContextRecall, {"vocab": 15}, "vocab 15 is odd.* even vocab of at least 4"),
        (InContextRecall, {"vocab": 2}, "vocab 2 is too small.* at least 4"),
        (InContextRecall, {"seq_len": 33}, "seq_len 33 is odd.* at least 4"),
        (InContextRecall, {"seq_len": 2}, "seq_len 2 is too short.* at least 4"),
        (NoisyInContextRecall, {"vocab": 16}, "leaves 0 ids.* at least 4, so vocab 20, 22"),
        (NoisyInContextRecall, {"vocab": 21}, "leaves 5 ids.* even number"),
        (NoisyInContextRecall, {"noise_vocab": 0}, "noise_vocab 0 is too small.* at least 1"),
        (NoisyInContextRecall, {"seq_len": 2}, "seq_len 2 is too short.* at least 4"),
        (NoisyInContextRecall, {"seq_len": 127}, "seq_len 127 is odd"),
        (NoisyInContextRecall, {"frac_noise": 1.0}, "frac_noise 1.0 .* 0 <= frac_noise < 1"),
        (NoisyInContextRecall, {"frac_noise": -0.1}, "frac_noise -0.1 .* 0 <= frac_noise < 1"),
        (NoisyInContextRecall, {"frac_noise": math.nan}, "frac_noise nan "),
        (FuzzyInContextRecall, {"vocab": 6}, "vocab 6 is too small for motif 3.* at least 7"),
        (FuzzyInContextRecall, {"vocab": 4, "motif": 1}, "vocab 4 .* at least 5"),
        (FuzzyInContextRecall, {"motif": 0}, "motif 0 is too small.* at least 1"),
        (FuzzyInContextRecall, {"seq_len": 12}, "seq_len 12 is too short.* at least 13"),
        (FuzzyInContextRecall, {"vocab": 128, "motif": 11, "seq_len": 64}, "motif 11 .* 2 .. 63"),
        (Memorization, {"vocab": 4}, "vocab 4 is too small.* at least 5"),
        (Memorization, {"seq_len": 31}, "seq_len 31 is odd.* at least 2"),
        (Memorization, {"seq_len": 0}, "seq_len 0 is too short.* at least 2"),
        (Compression, {"vocab": 2}, "vocab 2 is too small.* at least 3"),
        (Compression, {"seq_len": 1}, "seq_len 1 is too short.* at least 2"),
        (SelectiveCopying, {"vocab": 3}, "vocab 3 is too small.* at least 4"),
        (SelectiveCopying, {"copy": 0}, "copy 0 is too small.* at least 1"),
        (SelectiveCopying, {"copy": 128}, "seq_len 256 is too short for copy 128.* at least 258"),
        (SelectiveCopying, {"spacing": "even"}, "spacing 'even' is unknown.* 'mad' and 'uniform'"),
    ],
)
def test_an_illegal_parameter_names_the_legal_ones(task_class, fields, message):
    with pytest.raises(ValueError, match=message):
        task_class(**fields)


@pytest.mark.parametrize(
    "task",
    [
        InContextRecall(vocab=4, seq_len=4),
        NoisyInContextRecall(vocab=5, noise_vocab=1, seq_len=4, frac_noise=0.99),
        FuzzyInContextRecall(vocab=7, seq_len=13),
        FuzzyInContextRecall(vocab=5, seq_len=5, motif=1),
        FuzzyInContextRecall(vocab=128, motif=10, seq_len=64),
        Memorization(vocab=5, seq_len=2),
        Compression(vocab=3, seq_len=2),
        SelectiveCopying(vocab=4, seq_len=4, copy=1),
        SelectiveCopying(vocab=4, seq_len=4, copy=1, spacing="uniform"),
    ],
    ids=str,
)
@either_split
def test_the_smallest_legal_sizes_can_be_sampled(task, train):
    inputs_BT, _ = task.sample(100, generator(5), train=train)
    assert inputs_BT.shape == (100, task.length)
    assert inputs_BT.max() < task.vocab


def test_importing_the_package_and_checking_parameters_loads_neither_torch_nor_numpy():
    code = (
        "import sys, mad_tasks\n"
        "all(list(mad_tasks.difficulties(task)) for task in mad_tasks.TASKS.values())\n"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

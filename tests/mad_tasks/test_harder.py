"""The held-out difficulty: the same ids and the same readout in longer rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mad_tasks import (
    IGNORE,
    TASKS,
    FuzzyInContextRecall,
    Memorization,
    SelectiveCopying,
    difficulties,
)

EVERY = [task for task_class in TASKS.values() for task in difficulties(task_class)]
LADDERS = [task for task in EVERY if not isinstance(task, Memorization)]


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("task", LADDERS, ids=str)
def test_a_harder_task_is_longer_and_has_the_same_ids_and_readout(task):
    harder = task.harder()
    assert type(harder) is type(task)
    assert (harder.vocab, harder.readout) == (task.vocab, task.readout)
    assert harder.seq_len == 2 * task.seq_len
    assert harder.length > 1.5 * task.length
    assert harder.chance <= task.chance


def test_memorization_has_no_harder_task_of_the_same_vocabulary():
    assert Memorization().harder() is None


def test_there_is_twice_as_much_to_copy():
    assert SelectiveCopying(seq_len=48, copy=6).harder() == SelectiveCopying(seq_len=96, copy=12)


@settings(deadline=None, max_examples=30)
@given(task=st.sampled_from(LADDERS), seed=st.integers(0, 2**31))
def test_more_is_asked_in_a_harder_row_or_it_is_longer_ago(task, seed):
    rows = [t.sample(8, generator(seed)) for t in (task, task.harder())]
    scored = [int((targets_BT != IGNORE).sum()) for _, targets_BT in rows]
    if not isinstance(task, FuzzyInContextRecall):  # there hardly a key comes up again
        assert scored[1] > scored[0]
    assert rows[1][0].max() < task.vocab

"""Several answers with a verifier: the estimator is exact, and more answers never help less."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch

from archsearch.inference import load
from archsearch.inference.verified import best_of, passing
from mad_tasks import InContextRecall


@dataclass(frozen=True)
class Known:
    """Rows whose targets are their inputs; two questions, of one and of two positions."""

    vocab: int = 4

    def sample(self, n, rng, train=False):
        inputs_BT = torch.randint(self.vocab, (n, 5), generator=rng)
        targets_BT = inputs_BT.clone()
        targets_BT[:, 0] = targets_BT[:, 2] = -100
        return inputs_BT, targets_BT


class Copying(torch.nn.Module):
    """Says its input with a given chance, and anything else with what is left."""

    def __init__(self, chance, vocab=4):
        super().__init__()
        self.device, self.chance, self.vocab = torch.device("cpu"), chance, vocab

    def forward(self, tokens_BT):
        one_BTV = torch.nn.functional.one_hot(tokens_BT, self.vocab)
        rest = (1 - self.chance) / (self.vocab - 1)
        return (rest + (self.chance - rest) * one_BTV).log()


@pytest.mark.parametrize(("count", "right"), [(5, 0), (5, 2), (6, 5), (4, 4)])
def test_the_chance_to_pass_is_that_of_all_choices(count, right):
    for k in range(1, count + 1):
        choices = list(combinations([True] * right + [False] * (count - right), k))
        share = sum(map(any, choices)) / len(choices)
        assert passing(count, right, k) == pytest.approx(share)


def test_shares_are_those_of_the_model():
    found = best_of(Copying(0.7), Known(), 8, rows=2000)
    assert (found.questions, found.positions) == (4000, 1.5)
    for k, share in found.passed.items():
        want = sum(1 - (1 - 0.7**n) ** k for n in (1, 2)) / 2
        assert abs(share.value - want) < 4 * share.error + 1e-3, k
    values = [share.value for share in found.passed.values()]
    assert list(found.passed) == [1, 2, 4, 8]
    assert values == sorted(values)
    assert found.greedy.value == 1
    assert found.passed[1].value < found.majority.value < 1


def test_temperature_and_seed_matter_as_they_should():
    cold, hot = (best_of(Copying(0.6), Known(), 4, temperature=t) for t in (0.3, 3.0))
    assert cold.passed[1].value > hot.passed[1].value
    assert best_of(Copying(0.6), Known(), 4, seed=1) == best_of(Copying(0.6), Known(), 4, seed=1)
    assert best_of(Copying(0.6), Known(), 4, seed=1) != best_of(Copying(0.6), Known(), 4, seed=2)
    assert best_of(Copying(0.6), Known(), 4, top_p=0.5).passed[1].value == 1


def test_questions_of_a_row_are_not_taken_to_be_independent():
    """A model that is right on whole rows or not at all has the error of so many rows."""

    class Moody(Copying):
        def forward(self, tokens_BT):
            odd_B11 = (tokens_BT.sum(1) % 2 == 0)[:, None, None]
            one_BTV = torch.nn.functional.one_hot(tokens_BT, 4).float()
            return 100 * torch.where(odd_B11, one_BTV, one_BTV.roll(1, -1))

    found = best_of(Moody(0.5), Known(), 2, rows=400)
    rows = math.sqrt(found.greedy.value * (1 - found.greedy.value) / 400)
    assert found.greedy.error == pytest.approx(rows, rel=0.01)


def test_a_trained_model_beats_guessing(of_tasks):
    loaded = load(of_tasks)
    found = best_of(loaded.model, loaded.task, 2, rows=64)
    assert isinstance(loaded.task, InContextRecall)
    assert found.greedy.value > loaded.task.chance

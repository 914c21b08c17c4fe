"""A panel is drawn by name, half from the space and half from the best trials."""

import random

import pytest

from archsearch.errors import RunError
from archsearch.scale.panel import draw

SAMPLED = [f"s{i}" for i in range(60)]
TRIALS = {f"t{i:02}": float(i) for i in range(80)}
ANCHORS = ("transformer", "mamba")


def picked(number=0, sampled=SAMPLED, trials=TRIALS, size=24, maximize=True):
    return draw(sampled, trials, ANCHORS, size=size, number=number, maximize=maximize)


def keys(panel, origin):
    return [pick.key for pick in panel if pick.origin == origin]


@pytest.mark.parametrize("maximize", [True, False])
def test_half_is_of_the_space_and_half_of_the_best_quarter(maximize):
    panel = picked(maximize=maximize)
    assert len(keys(panel, "uniform")) == len(keys(panel, "top")) == 12
    assert keys(panel, "anchor") == list(ANCHORS)
    best = sorted(TRIALS, key=TRIALS.get, reverse=maximize)[:20]
    assert set(keys(panel, "top")) <= set(best)
    assert set(keys(panel, "uniform")) <= set(SAMPLED)


def test_the_seed_names_the_panel():
    shuffled = dict(random.Random(0).sample(list(TRIALS.items()), len(TRIALS)))
    assert picked() == picked(trials=shuffled) != picked(number=1)


def test_no_genome_is_drawn_twice():
    sampled = [*TRIALS, *ANCHORS, *TRIALS]
    panel = picked(sampled=sampled, trials=TRIALS | dict.fromkeys(ANCHORS, 99.0))
    assert len({pick.key for pick in panel}) == len(panel) == 26


def test_the_space_fills_what_too_few_trials_leave_open():
    few = {key: TRIALS[key] for key in list(TRIALS)[:8]}
    panel = picked(trials=few)
    assert (len(keys(panel, "top")), len(keys(panel, "uniform"))) == (2, 22)
    assert len(picked(trials={}, sampled=SAMPLED[:5])) == 7


def test_a_trial_without_a_value_is_refused():
    with pytest.raises(RunError, match="t99"):
        picked(trials=TRIALS | {"t99": float("nan")})

"""Ranks, shares and the kernel; and that a strategy beats chance where it should."""

import os
import random
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.search import evolution, graphgp, local
from archsearch.search.evolution import Tried, dominates, fitness, fronts, shares
from archsearch.search.moves import MOVES
from archsearch.space_yaml import load

SPACE = load("everything").space
points = st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 2), min_size=1, max_size=25)


@given(points)
def test_the_front_is_what_nothing_dominates_and_ranks_count_what_is_taken_off(values):
    ranks = fronts(values)
    for rank in range(max(ranks) + 1):
        left = [v for v, r in zip(values, ranks, strict=True) if r >= rank]
        front = [v for v, r in zip(values, ranks, strict=True) if r == rank]
        assert front
        assert not any(dominates(a, b) for a in left for b in front)
        assert all(any(dominates(a, v) for a in front) for v in left if v not in front)


@given(points, st.randoms(use_true_random=False))
def test_fitness_does_not_depend_on_the_order_of_trials(values, rng):
    values = list(dict.fromkeys(values))
    order = list(range(len(values)))
    rng.shuffle(order)
    ranks, shuffled = fitness(values), fitness([values[i] for i in order])
    assert [ranks[i][0] for i in order] == [rank for rank, _ in shuffled]


def test_the_ends_of_a_front_come_before_its_middle():
    line = [(0.0, 4.0), (1.0, 3.0), (1.1, 2.9), (4.0, 0.0)]
    order = sorted(range(4), key=fitness(line).__getitem__)
    assert {*order[:2]} == {0, 3}


def test_an_edit_that_paid_is_made_more_often_and_none_is_forgotten():
    start = [Tried({}, (1.0,))]
    won = [Tried({}, (0.0,), "swap", 0)] * 40
    lost = [
        Tried({}, (2.0,), name, 0) for name in ("choice", "number", "repeat") for _ in range(40)
    ]
    usual = {name: share for name, (share, _) in MOVES.items()}
    assert shares(start + lost) == usual
    found = shares(start + won + lost)
    assert found["swap"] > 3 * usual["swap"]
    assert min(found.values()) >= evolution.LEAST


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=12, unique=True))
def test_the_kernel_is_one_of_a_gaussian_process(seeds):
    members = [SPACE.sample(random.Random(seed)) for seed in seeds]
    found = [graphgp.features(SPACE, graphgp.genome_graph, m) for m in members]
    K = graphgp.kernel(found, found)
    np.testing.assert_allclose(K, K.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(K), 1.0, atol=1e-12)
    assert np.linalg.eigvalsh(K).min() > -1e-9
    assert K.min() >= -1e-12


def test_the_model_passes_through_what_it_has_seen_and_doubts_what_it_has_not():
    members = [SPACE.sample(random.Random(seed)) for seed in range(8)]
    found = [graphgp.features(SPACE, graphgp.genome_graph, m) for m in members]
    y = np.linspace(-1.0, 1.0, 6)
    K = graphgp.kernel(found, found[:6])
    model = graphgp.Model(K[:6], y, noise=1e-6)
    mean, deviation = model.predict(K)
    np.testing.assert_allclose(mean[:6], y, atol=1e-3)
    assert deviation[6:].min() > 10 * deviation[:6].max()


PROBE = """
import random
from archsearch.search import graphgp
from archsearch.search.evolution import Tried
from archsearch.space_yaml import load
space = load("quickstart").space
rng = random.Random(0)
history = [Tried(space.sample(rng), (rng.random(),)) for _ in range(15)]
child = graphgp.child(space, graphgp.genome_graph, history, (), rng, lambda d: True)
print(sorted(child.decisions.items(), key=str), child.move, child.parent)
"""


def test_a_proposal_is_the_same_in_every_process():
    told = [
        subprocess.run(
            [sys.executable, "-c", PROBE], check=True, capture_output=True, text=True,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2)
    ]  # fmt: skip
    assert told[0] == told[1] != ""


def depth(decisions):
    """A loss that is known: the share of answers that are not the first that is legal."""
    asked = {}
    SMALL.ask(lambda path, dim: asked.setdefault(path, dim) and decisions[path])
    away = [dim.values.index(decisions[path]) for path, dim in asked.items() if dim.values]
    return statistics.mean(place > 0 for place in away) + 0.01 * len(away)


SMALL = load("zamba-like").space


def best(strategy, seed, trials):
    rng, history, taken = random.Random(seed), [], []

    def wanted(decisions):
        return decisions not in taken

    def child():
        if strategy == "evolution":
            return next(evolution.children(SMALL, history, rng, trials))
        if strategy == "local":
            return local.child(SMALL, history, rng, wanted)
        if strategy == "graphgp":
            return graphgp.child(SMALL, graphgp.genome_graph, history, (), rng, wanted)
        return evolution.Child(SMALL.sample(rng))

    while len(history) < trials:
        made = child()
        if wanted(made.decisions):
            taken.append(made.decisions)
            loss = depth(made.decisions)
            history.append(Tried(made.decisions, (loss,), made.move, made.parent))
    return min(tried.values[0] for tried in history)


@pytest.mark.parametrize("strategy", ["evolution", "local", "graphgp"])
def test_a_strategy_beats_chance_where_answers_matter_one_by_one(strategy):
    seeds, trials = range(4), 30 if strategy == "graphgp" else 80
    found, chance = ([best(name, seed, trials) for seed in seeds] for name in (strategy, "random"))
    assert statistics.mean(found) < statistics.mean(chance) - statistics.stdev(chance)


def test_chance_does_not_beat_chance():
    chance = [best("random", seed, 80) for seed in range(8)]
    assert not statistics.mean(chance[:4]) < statistics.mean(chance[4:]) - statistics.stdev(chance)

"""A better strategy comes out as better, and two equal ones as not distinguishable."""

import dataclasses
import itertools
import math
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.errors import RunError, SpaceError
from archsearch.rules import members
from archsearch.search import compare, paired
from archsearch.search.compare import Judge, Walk, found, hypervolume, search
from archsearch.search.proposals import NAMES
from archsearch.search.table import Curve, Row, Table
from archsearch.space_yaml import parse

SPACE = """\
version: 1
name: formula
model:
  d_model: 16
  stack:
    - repeat: 3
      choose: per_repeat
      pattern:
        - ffn: [swiglu: {mult: [1, 2, 3], act: [silu, relu2]}, none]
objectives: [{maximize: score}]
tasks: {use: [mad/in-context-recall: {vocab: 8, seq_len: 16}]}
recipe: {steps: 2, evals: 1, seeds: 2}
"""
TWO = "objectives=[{maximize: score}, {minimize: params}]"


def experiment(*overrides):
    return parse(SPACE, overrides=overrides)


def formula(genome, replicate):
    """What a member scores: wide and smooth is good, and chance plays its part."""
    worth = sum(
        dict(g.params)["mult"] + 2 * (dict(g.params)["act"] == "silu") for g in genome.genes
    )
    luck = random.Random(f"{genome.key} {replicate}").gauss(0, 0.02)
    return 0.5 + worth / 30 + luck


@cache
def table(*overrides):
    """Every member, scored by the formula."""
    known = Table(experiment(*overrides), Path("nowhere"))
    for candidate in members(known.experiment.space, known.experiment.context):
        genome = candidate.genome
        curves = tuple(Curve((formula(genome, k),), (1.0,)) for k in (0, 1))
        known.rows[genome.key] = Row(genome=genome, status="ok", why="", curves={"t": curves})
    return known


@cache
def walks(strategy, first=0, count=8, trials=40, *overrides):
    known = table(*overrides)
    numbers = range(first, first + count)
    return [search(known.experiment, known, strategy, n, trials) for n in numbers]


def judge(*overrides):
    return Judge(table(*overrides), experiment(*overrides))


def walk(*pairs):
    """A search that saw these values of these members."""
    keys, values = zip(*pairs, strict=True)
    return Walk(keys=keys, observed=tuple((-v,) for v in values), milliseconds=0.0)


def ranking():
    """Keys of the members with their true scores, best first."""
    true = {key: -point[0] for key, point in judge().true.items()}
    return sorted(true.items(), key=lambda pair: -pair[1])


# What a search does


def test_a_search_is_a_function_of_its_seed():
    one, other = (search(experiment(), table(), "evolution", 3, 30) for _ in range(2))
    assert (one.keys, one.observed) == (other.keys, other.observed)
    assert walks("random", 0)[0].keys != walks("random", 1)[0].keys


@pytest.mark.parametrize("strategy", sorted(NAMES))
def test_a_search_tries_no_member_twice_and_begins_like_the_others(strategy):
    once = search(experiment(), table(), strategy, 5, 20)
    assert len(set(once.keys)) == 20
    assert once.keys[:10] == search(experiment(), table(), "random", 5, 10).keys


def test_a_member_shows_the_same_replicate_to_every_strategy():
    seen = {}
    for strategy in ("random", "evolution", "local"):
        one = search(experiment(), table(), strategy, 5, 40)
        for key, values in zip(one.keys, one.observed, strict=True):
            assert seen.setdefault(key, values) == values
    shown = [
        min((0, 1), key=lambda k: abs(-values[0] - row.observed(experiment(), k).score))
        for key, values in seen.items()
        for row in [table().rows[key]]
    ]
    assert 0.3 < sum(shown) / len(shown) < 0.7


def test_a_failed_member_is_nobodys_incumbent():
    known = Table(experiment(), Path("nowhere"))
    known.rows |= table().rows
    best, second = ranking()[0][0], ranking()[1][0]
    known.rows[best] = dataclasses.replace(known.rows[best], status="invalid", curves={})
    failed = Walk(keys=(best, second), observed=((), (-0.9,)), milliseconds=0.0)
    worst, then = Judge(known, experiment()).curve(failed)
    assert worst == ranking()[-1][1]
    assert then == ranking()[1][1]


# What is judged


def test_the_incumbent_is_observed_and_judged_by_what_is_true():
    (good, high), (bad, low) = ranking()[0], ranking()[-1]
    assert judge().curve(walk((bad, 0.5), (good, 0.4))).tolist() == [low, low]
    assert judge().curve(walk((bad, 0.3), (good, 0.4), (bad, 0.9))).tolist() == [low, high, low]


def test_the_target_is_the_top_percent_of_a_complete_table():
    level, what = judge().target
    scores = [score for _, score in ranking()]
    assert level == scores[len(scores) // 100 - 1]
    assert str(len(scores)) in what
    reached = judge().reached(np.array([level - 0.1, level, level - 0.1]))
    assert reached == 2
    assert judge().reached(np.array([level - 0.1])) is None


def test_the_target_of_a_table_with_holes_is_within_the_noise_of_the_best_known():
    known = Table(experiment(), Path("nowhere"))
    known.rows |= dict(list(table().rows.items())[:50])
    holes = Judge(known, experiment())
    assert holes.target[0] == pytest.approx(-holes.points[0][0] - holes.noise)
    assert holes.noise == pytest.approx(0.02, rel=0.3)  # the sd that the formula draws with


def test_a_minimised_objective_is_judged_the_other_way_round():
    overrides = ("objectives=[{minimize: params}]",)
    small = judge(*overrides)
    curve = small.curve(walks("random", 0, 1, 40, *overrides)[0])
    assert (np.diff(curve) <= 0).all()
    assert small.reached(np.array([1e9, small.target[0]])) == 2


CELLS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8)


@given(CELLS)
def test_the_hypervolume_counts_the_cells_that_points_dominate(points):
    cells = sum(
        any(x <= a and y <= b for x, y in points) for a, b in itertools.product(range(5), repeat=2)
    )
    assert hypervolume([(float(x), float(y)) for x, y in points], (5.0, 5.0)) == cells


def test_the_hypervolume_of_all_members_is_all_of_it():
    both = judge(TWO)
    rows = table(TWO).rows.values()
    points = tuple(compare.signed(experiment(TWO), r.true(experiment(TWO))) for r in rows)
    everything = Walk(keys=tuple(table(TWO).rows), observed=points, milliseconds=0.0)
    curve = both.curve(everything)
    assert curve[-1] == pytest.approx(1.0)
    assert (np.diff(curve) >= -1e-12).all()  # what is observed is true here


# What is told


def verdicts(name, **runs):
    (finding,) = [f for f in found(judge(), runs, 40) if f.name == name]
    return [test.verdict for test in finding.tests]


def test_two_searches_of_one_kind_cannot_be_told_apart():
    again = walks("random", 100)
    assert verdicts("again", random=walks("random"), again=again) == ["not distinguishable"] * 4


def test_a_search_that_knows_the_answer_is_better_and_one_that_avoids_it_worse():
    best = [key for key, _ in ranking()]
    knowing = [walk(*((key, 1.0 - i / 1e3) for i, key in enumerate(best[:40])))] * 8
    avoiding = [walk(*((key, 0.1) for key in best[-40:]))] * 8
    assert verdicts("knowing", random=walks("random"), knowing=knowing) == ["better"] * 4
    *values, _ = verdicts("avoiding", random=walks("random"), avoiding=avoiding)
    assert values == ["worse"] * 3  # random search seldom gets to the target, too


def test_equal_strategies_are_told_apart_as_seldom_as_the_level_says():
    rng = np.random.default_rng(0)
    told = [
        any(test.verdict != "not distinguishable" for test in paired.against(*pair))
        for pair in rng.normal(size=(200, 2, 15, 3))
    ]
    assert sum(told) / len(told) <= 0.08  # 5 %, and two standard errors


def test_holm_corrects_the_smallest_most():
    ours = np.array([[i + 1.0, (i + 1.0) * (-1) ** (i % 3 == 0)] for i in range(9)])
    first, second = paired.against(ours, np.zeros_like(ours))
    alone = [paired.against(ours[:, [k]], np.zeros((9, 1)))[0].p for k in (0, 1)]
    assert first.p == pytest.approx(min(1, 2 * alone[0]))
    assert second.p == pytest.approx(max(first.p, alone[1]))


@pytest.mark.parametrize("budgets", [1, 2, 3, 5])
def test_enough_seeds_are_the_fewest_that_can_tell(budgets):
    for seeds, told in ((paired.enough(budgets), True), (paired.enough(budgets) - 1, False)):
        ours = np.linspace(1, 2, seeds)[:, None] * np.ones(budgets)
        tests = paired.against(ours, np.zeros_like(ours))
        assert any(test.verdict == "better" for test in tests) is told


def test_a_band_holds_the_mean_and_narrows_with_seeds():
    values = np.random.default_rng(1).normal(size=(400, 1))
    few, many = paired.band(values[:10]), paired.band(values)
    for (low, high), some in ((few, values[:10]), (many, values)):
        assert low[0] < some.mean() < high[0]
    assert many[1] - many[0] == pytest.approx(4 * 1.96 * values.std() / 20 / 2, rel=0.1)
    assert (many[1] - many[0])[0] < (few[1] - few[0])[0]


def test_times_that_never_come_are_later_than_all_others():
    assert paired.median_reached([5, None, 3]) == 5
    assert math.isinf(paired.median_reached([5, None, None]))
    assert paired.median_reached([1, 2, 3, None]) == 3


# What is refused


@pytest.mark.parametrize(
    ("given_", "error", "words"),
    [
        (
            (["evolutoin"], 15, 40),
            SpaceError,
            "unknown strategy 'evolutoin'; did you mean 'evolution'",
        ),
        ((["auto"], 15, 40), SpaceError, "unknown strategy 'auto'"),
        ((["evolution"], 4, 40), RunError, "fewer than 5 paired seeds tell nothing"),
        ((["evolution"], 15, 10**4), RunError, "covers all 258 members"),
    ],
)
def test_what_cannot_be_compared_is_refused(given_, error, words):
    with pytest.raises(error, match=words):
        compare.check(experiment(), *given_)


def test_three_objectives_are_refused():
    three = experiment(TWO.replace("]", ", {minimize: state_bytes}]"))
    with pytest.raises(SpaceError, match="one or two"):
        compare.check(three, ["evolution"], 15, 40)


def test_the_reference_is_always_among_them():
    assert compare.check(experiment(), ["local"], 15, 40) == ["local", "random"]

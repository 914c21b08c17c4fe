"""Hints are used at once, and cost little where they are bad."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from archsearch.genome import Gene, Genome
from archsearch.search import mixing
from archsearch.search.proposals import ASKS, Proposals
from archsearch.space_yaml import dump, parse
from tests.search.helpers import LARGE
from tests.search.test_proposals import LAG, sequence

FIRST = 10
HINTED = LARGE.replace(", none]\n", ", none]\n          prior: {none: 9}\n")


def arms(origins, draws=4000):
    rng = random.Random(0)
    counts = Counter(mixing.pick(origins, FIRST, rng) for _ in range(draws))
    return {arm: counts[arm] / draws for arm in ("random", "prior", "strategy")}


@pytest.mark.parametrize(("known", "uniform"), [(0, 1 / 2), (9, 1 / 2), (10, 1 / 4), (30, 1 / 10)])
def test_the_uniform_share_falls_with_every_tripling_of_what_is_known(known, uniform):
    shares = arms(["random"] * known)
    assert shares["random"] == pytest.approx(uniform, abs=0.03)
    assert (shares["strategy"] == 0) == (known < FIRST)


def test_who_made_the_best_makes_the_next():
    good, bad = ["prior"] * 20, ["evolution"] * 40
    by_hints, by_strategy = arms(good + bad), arms(bad + good)
    assert by_hints["prior"] > 5 * by_hints["strategy"] > 0
    assert by_strategy["strategy"] > 5 * by_strategy["prior"] > 0


def proposals(text, *overrides):
    return Proposals(parse(text, overrides=("search.trials=60", *overrides)), LAG)


@pytest.mark.parametrize("strategy", ["evolution", "graphgp", "local"])
def test_a_space_with_hints_is_searched_by_all_three_and_one_without_as_before(strategy):
    hinted = proposals(HINTED, f"search.strategy={strategy}")
    origins = Counter(candidate.origin for candidate in sequence(hinted, 50)[0])
    assert {*origins} == {"random", "prior", strategy}
    plain = proposals(LARGE, f"search.strategy={strategy}")
    origins = [candidate.origin for candidate in sequence(plain, 50)[0]]
    assert {*origins[: plain.first]} == {"random"}
    assert {*origins[plain.first :]} == {strategy}


def test_before_anything_is_known_half_of_the_members_are_near_a_seed(tmp_path):
    wanted = Genome(16, tuple(Gene.of("swiglu", mult=m, act="relu2") for m in (4, 3, 2, 1)))
    (tmp_path / "mine.yaml").write_text(dump(wanted))
    made = proposals(
        LARGE, "search.strategy=evolution", f"search.start_from=[{tmp_path}/mine.yaml]"
    )
    candidates, _ = sequence(made, made.first)
    seed = dict(candidates[0].decisions)
    assert (candidates[0].genome, candidates[0].origin) == (wanted, "start_from")
    near = [c for c in candidates[1:] if c.origin == "prior"]
    assert len(near) > len(candidates) / 4
    for candidate in near:
        decisions = dict(candidate.decisions)
        changed = {p for p in seed.keys() | decisions.keys() if seed.get(p) != decisions.get(p)}
        places = {path.partition(".")[0] for path in changed}
        assert len(places) <= 2, "one edit touches one place, or swaps two"


def test_a_uniform_draw_ignores_the_prior():
    space, rng = parse(HINTED).space, random.Random(0)

    def nothing(uniform):
        """Share of slots that are the identity."""
        draws = [space.sample(rng, uniform=uniform) for _ in range(ASKS)]
        slots = [v for d in draws for path, v in d.items() if path.endswith(".ffn")]
        return slots.count("none") / len(slots)

    assert nothing(uniform=False) > 0.8
    assert nothing(uniform=True) < 0.65
    assert parse(HINTED).identity == parse(LARGE).identity, "a hint may change on the way"
    assert space.has_prior
    assert not parse(LARGE).space.has_prior

"""The sequence of genomes is a function of the seed, the index and the trials a lag ago."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome
from archsearch.rules import settle
from archsearch.search.proposals import WARMUP, Proposals, strangers
from archsearch.search.study import Record
from archsearch.space_yaml import dump, parse
from tests.search.helpers import LARGE, LISTED

LAG = 4
SOME = 30
"""Proposals that are made of each space; the model is asked for the last of them."""
MEDIUM = LISTED.replace("mult: [1, 2, 3, 4]", "mult: {from: 1, to: 16}")
"""48 members: listed, but more than are tried."""
SINGLE = LARGE.replace(", {minimize: params}", "")


def proposals(text, strategy, *overrides, seed=0, trials=SOME):
    more = (f"search.strategy={strategy}", f"search.seed={seed}", f"search.trials={trials}")
    experiment = parse(text, "space.yaml", (*more, *overrides))
    return Proposals(experiment, LAG)


def by_formula(candidate):
    """A score without training: the share of relu2, wide at the front."""
    genes = candidate.genome.genes
    return sum(dict(g.params).get("act") == "relu2" for g in genes) / 4 + 0.01 * len(genes)


def record(index, candidate, score=by_formula, goals=2):
    """The trial of a candidate, as the study would know it."""
    values = (score(candidate), float(len(candidate.genome.genes)))[:goals]
    return Record(
        index=index, number=index, genome=candidate.genome, params=dict(candidate.decisions),
        status="ok", why="", values=values, scores=(),
        attrs={"origin": candidate.origin, "outside": candidate.outside},
    )  # fmt: skip


def sequence(made, count=SOME, score=by_formula):
    """The first candidates and their records, one trial after the other."""
    records, begun, candidates = {}, {}, []
    for index in range(count):
        candidate = made.propose(index, records, begun)
        candidates.append(candidate)
        records[index] = record(index, candidate, score, len(made.experiment.goals))
        begun[index] = candidate.genome
    return candidates, records


CASES = [
    pytest.param(text, strategy, id=f"{name}-{strategy}")
    for name, text in (("listed", MEDIUM), ("large", LARGE))
    for strategy in ("random", "tpe", "nsga2", "evolution", "graphgp", "local")
]


@pytest.mark.parametrize(("text", "strategy"), CASES)
@pytest.mark.parametrize("seed", [0, 7])
def test_who_finished_first_and_who_was_restarted_changes_nothing(text, strategy, seed):
    candidates, records = sequence(proposals(text, strategy, seed=seed))
    chosen = random.Random(seed)
    for index in chosen.sample(range(SOME), 12):
        needed = range(max(0, index - LAG + 1))
        others = [i for i in range(len(needed), SOME) if i != index]
        ended = {*needed, *chosen.sample(others, chosen.randrange(len(others)))}
        described = ended | {*chosen.sample(others, chosen.randrange(len(others)))}
        fresh = proposals(text, strategy, seed=seed)
        known = {i: records[i] for i in ended}
        begun = {i: records[i].genome for i in described}
        assert fresh.propose(index, known, begun) == candidates[index]


@pytest.mark.parametrize(("text", "strategy"), CASES)
def test_the_order_of_asking_changes_nothing(text, strategy):
    candidates, records = sequence(proposals(text, strategy))
    begun = {i: r.genome for i, r in records.items()}
    made = proposals(text, strategy)
    indices = list(range(SOME))
    random.Random(0).shuffle(indices)
    for index in indices:
        assert made.propose(index, records, begun) == candidates[index]


@pytest.mark.parametrize(("text", "strategy"), CASES)
def test_the_seed_decides(text, strategy):
    first, again, other = (sequence(proposals(text, strategy, seed=s))[0] for s in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("text", [MEDIUM, LARGE], ids=["listed", "large"])
def test_the_model_learns_from_results_and_from_those_a_lag_ago_alone(text):
    candidates, records = sequence(proposals(text, "tpe"))
    begun = {i: r.genome for i, r in records.items()}

    def unlike(last, praised):
        """Whether the last proposal changes if some of the earlier trials score best."""
        other = {
            i: record(i, candidates[i], lambda c, i=i: 9 * (i in praised) + by_formula(c))
            for i in range(last)
        }
        return proposals(text, "tpe").propose(last, other, begun) != candidates[last]

    indices = range(WARMUP + LAG, WARMUP + LAG + 6)
    assert not any(unlike(last, range(last - LAG + 1, last)) for last in indices)
    assert any(unlike(last, [last - LAG]) for last in indices)


def test_before_its_warm_up_the_model_is_not_asked():
    by_model = sequence(proposals(LARGE, "tpe"))[0]
    at_random = sequence(proposals(LARGE, "random"))[0]
    first = WARMUP + LAG
    assert by_model[:first] == at_random[:first]
    assert by_model[first:] != at_random[first:]


@pytest.mark.slow
def test_the_model_finds_better_ones_than_chance():
    trials, first = 40, WARMUP + LAG

    def late(strategy, score=by_formula):
        """Mean formula of what is proposed after the warm-up, over four seeds."""
        scores = []
        for seed in range(4):
            made = proposals(SINGLE, strategy, seed=seed, trials=trials)
            scores += map(by_formula, sequence(made, trials, score)[0][first:])
        return sum(scores) / len(scores)

    by_chance = late("random")
    assert late("tpe") > by_chance + 0.15
    assert late("tpe", lambda candidate: 0.0) < by_chance + 0.1


@pytest.mark.parametrize(("text", "strategy"), CASES)
def test_no_genome_comes_twice_and_each_is_in_the_space(text, strategy):
    made = proposals(text, strategy)
    space, context = made.experiment.space, made.experiment.context
    candidates, _ = sequence(made)
    assert len({c.genome.key for c in candidates}) == SOME
    for candidate in candidates:
        assert settle(space, space.replay(dict(candidate.decisions)), context) == candidate.genome


@settings(deadline=None, max_examples=25)
@given(
    turns=st.lists(st.integers(1, SOME - 1), min_size=0, max_size=3, unique=True).map(sorted),
    strategies=st.permutations(["random", "tpe", "auto"]),
    budgets=st.permutations([SOME, 40, 48]),
    unknown=st.sets(st.integers(0, SOME - 1), max_size=5),
)
def test_no_genome_comes_twice_when_strategy_or_budget_change_on_the_way(
    turns, strategies, budgets, unknown
):
    """Trials that are in work while they change (`unknown`) are known by their genome alone."""
    records, begun, made_of = {}, {}, {}
    for (start, end), strategy, budget in zip(
        pairwise([0, *turns, SOME]), [*strategies, "tpe"], [*budgets, 48], strict=False
    ):
        made = proposals(MEDIUM, strategy, trials=budget)
        for index in range(start, end):
            if not made.ready(index, records):
                records |= {i: record(i, made_of[i]) for i in range(index - LAG + 1)}
            made_of[index] = candidate = made.propose(index, records, begun)
            begun[index] = candidate.genome
            if index not in unknown:
                records[index] = record(index, candidate)
    assert len({genome.key for genome in begun.values()}) == SOME


@pytest.mark.parametrize("strategy", ["auto", "random", "tpe"])
def test_a_budget_that_allows_it_tries_every_member_once(strategy):
    made = proposals(LISTED, strategy, trials=100)
    assert made.total == 12
    assert "all 12" in made.why
    candidates, _ = sequence(made, 12)
    assert len({c.genome.key for c in candidates}) == 12


def test_auto_goes_by_the_budget_where_the_space_is_larger():
    for text, trials in ((LARGE, SOME), (LISTED, 5)):
        made = proposals(text, "auto", trials=trials)
        assert (made.strategy, made.total) == ("graphgp", trials)
        assert "Gaussian process" in made.why
    assert proposals(LARGE, "auto", trials=151).strategy == "evolution"
    assert proposals(LISTED, "auto", trials=12).strategy == "random"


@given(ended=st.sets(st.integers(0, 20)), index=st.integers(0, 20))
def test_a_proposal_is_ready_once_all_that_it_learns_from_have_ended(ended, index):
    made = proposals(LISTED, "random")
    ready = index < made.total and set(range(index - LAG + 1)) <= ended
    assert made.ready(index, dict.fromkeys(ended)) == ready


def test_genomes_to_start_from_come_first_and_once(tmp_path):
    wanted = Genome(16, (Gene.of("swiglu", mult=3, act="relu2"),))
    (tmp_path / "mine.yaml").write_text(dump(wanted))
    twice = f"search.start_from=[{tmp_path}/mine.yaml, {tmp_path}/mine.yaml]"
    for strategy, trials in (("random", 12), ("random", 5), ("tpe", 5)):
        candidates, _ = sequence(proposals(LISTED, strategy, twice, trials=trials), trials)
        assert candidates[0].genome == wanted
        assert len({c.genome for c in candidates}) == trials


def test_a_space_too_large_to_list_says_when_it_is_exhausted():
    narrow = LARGE.replace("objectives", "require: ['layers <= 1', 'params < 1000']\nobjectives")
    made = proposals(narrow, "random", trials=100)
    with pytest.raises(SpaceError, match="no new member") as caught:
        sequence(made, 100)
    for rule in ("layers <= 1", "trained before"):
        assert rule in str(caught.value)


def test_a_genome_to_start_from_that_is_not_in_the_space_is_trained_beside_it(tmp_path):
    stranger = Genome(64, (Gene.of("attention", heads=4),))
    member = Genome(16, (Gene.of("swiglu", mult=3, act="relu2"),))
    for name, genome in (("stranger", stranger), ("member", member)):
        (tmp_path / f"{name}.yaml").write_text(dump(genome))
    start = f"search.start_from=[{tmp_path}/stranger.yaml, {tmp_path}/member.yaml]"
    for strategy in ("evolution", "graphgp", "local", "tpe", "nsga2"):
        made = proposals(LARGE, strategy, start)
        assert strangers(made.experiment) == [f"{tmp_path}/stranger.yaml"]
        candidates, _ = sequence(made)
        assert candidates[0].outside
        assert candidates[0].genome.d_model == 16, "at the width of the space"
        assert candidates[0].genome.genes == stranger.genes
        assert candidates[1].genome == member
        assert not any(candidate.outside for candidate in candidates[1:])
        assert all(candidate.parent != 0 for candidate in candidates), "it has no children"


def test_a_space_that_is_tried_whole_has_room_for_those_beside_it(tmp_path):
    (tmp_path / "stranger.yaml").write_text(dump(Genome(16, (Gene.of("attention", heads=2),))))
    made = proposals(LISTED, "auto", f"search.start_from=[{tmp_path}/stranger.yaml]", trials=12)
    assert made.total == 13, "it is no trial of the budget"
    candidates, _ = sequence(made, 13)
    assert len({c.genome for c in candidates}) == 13

"""Laws of the search space: what it holds, how it is counted, drawn from and looked up."""

import contextlib
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archsearch.dims import Dim
from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome
from archsearch.library import shipped
from archsearch.space import Option, SearchSpace, Slot, Stage
from archsearch.space_yaml import load

from .strategies import NEXT, genomes, parsed, spaces

some = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
ONE = Dim(options=(1,))


def replayed(space, decisions):
    """The genome that the decisions lead to, or None where every slot is the identity."""
    try:
        return space.replay(decisions)
    except SpaceError:
        return None


def a_space(*stages, **around):
    return SearchSpace(name="s", d_model=Dim(options=(16,)), stages=stages, **around)


@some
@given(spaces())
def test_the_size_is_the_number_of_answers(experiment):
    space = experiment.space
    every = [tuple(sorted(decisions.items())) for decisions in space.every()]
    assert len(set(every)) == len(every) == space.size


@some
@given(spaces(), st.randoms(use_true_random=False))
def test_a_sample_is_one_of_all_answers(experiment, rng):
    space = experiment.space
    every = list(space.every())
    for _ in range(10):
        assert space.sample(rng) in every


@some
@given(spaces())
def test_every_member_is_found_again(experiment):
    space = experiment.space
    every = {frozenset(decisions.items()) for decisions in space.every()}
    for decisions in map(dict, every):
        genome = replayed(space, decisions)
        if genome is not None:
            found = space.locate(genome)
            assert found is not None, genome.text()
            assert space.replay(found) == genome
            assert frozenset(found.items()) in every


@settings(some, max_examples=15)
@given(spaces(most=60), spaces(most=60), genomes(most=3), st.data())
def test_located_are_members_and_no_others(experiment, other, foreign, data):
    space = experiment.space
    members = {replayed(space, decisions) for decisions in space.every()} - {None}
    strangers = [foreign, *filter(None, (replayed(other.space, d) for d in other.space.every()))]
    for genome in sorted(members, key=lambda genome: genome.key)[:8]:
        i = data.draw(st.integers(0, len(genome.genes) - 1))
        cut = genome.genes[:i] + genome.genes[i + 1 :]
        doubled = genome.genes[: i + 1] + genome.genes[i:]
        unshared = tuple(replace(gene, share=None) for gene in genome.genes)
        for edited in (cut, doubled, unshared):
            try:
                strangers.append(replace(genome, genes=edited))
            except SpaceError:
                continue
    for genome in strangers[:40]:
        assert (space.locate(genome) is not None) == (genome in members), genome.text()


def shared_twice():
    option = Option("use:a", "swiglu", (("mult", Dim(options=(1, 3))),), "a")
    plain = Option("swiglu", "swiglu", (("mult", Dim(options=(1, 3))),))
    slot = Slot("f", (option, plain), ONE)
    return a_space(Stage("b", (slot,), Dim(options=(2,)), "per_repeat"))


def test_sharing_is_a_gene_of_its_own():
    space = shared_twice()
    one, three = Gene.of("swiglu", mult=1), Gene.of("swiglu", mult=3)
    shared = Gene.of("swiglu", "z", mult=3)
    assert space.locate(Genome(16, (shared, shared)))["define.a.mult"] == 3
    assert space.locate(Genome(16, (one, three))) is not None
    assert space.size == 2 + 2 * (2 * 2) + 4
    once = a_space(Stage("b", (Slot("f", (Option("use:a", "swiglu", (), "a"),), ONE),), ONE))
    assert once.locate(Genome(16, (Gene.of("swiglu"),))) == {}
    assert once.locate(Genome(16, (Gene.of("swiglu"),) * 2)) is None


def test_two_definitions_are_two_sets_of_weights():
    slots = tuple(Slot(n, (Option(f"use:{n}", "swiglu", (), n),), Dim(options=(2,))) for n in "ab")
    space = a_space(Stage("s", slots, ONE))
    one, other = Gene.of("swiglu", "x"), Gene.of("swiglu", "y")
    assert space.locate(Genome(16, (one, one, other, other))) == {}
    assert space.locate(Genome(16, (one, one, one, one))) is None
    assert space.locate(Genome(16, (one, other, one, other))) is None


def test_shared_parameters_are_asked_for_once_wherever_they_are_used():
    option = Option("use:a", "swiglu", (("mult", Dim(options=(1, 3))),), "a")
    stages = [Stage(n, (Slot("f", (option,), ONE),), ONE, c) for n, c in (
        ("p", "once"), ("q", "per_repeat"), ("r", "once"))]  # fmt: skip
    asked = []
    genome = a_space(*stages).resolve(lambda path, dim: asked.append(path) or dim.values[-1])
    assert asked == ["define.a.mult"]
    assert genome.text() == "3xswiglu*A[mult=3]"


def test_a_large_space_is_searched_in_no_time_for_a_genome_that_it_does_not_hold():
    slots = tuple(Slot(f"s{i}", (Option("a", "swiglu"), Option("none", None)), Dim(
        low=0, high=4, step=1)) for i in range(4))  # fmt: skip
    space = a_space(Stage("b", slots, Dim(low=0, high=20, step=1), "per_repeat"))
    assert space.size > 1e50
    genes = (Gene.of("swiglu"),) * 60
    found = space.locate(Genome(16, genes))
    assert space.replay(found) == Genome(16, genes)
    assert space.locate(Genome(16, (*genes, Gene.of("attention")))) is None
    assert space.locate(Genome(32, genes)) is None


def test_a_deep_member_is_found_without_running_out_of_stack():
    slot = Slot("s", (Option("a", "swiglu"), Option("b", "attention")), ONE)
    pattern = tuple(Slot(f"s{i}", slot.options, ONE) for i in range(16))
    space = a_space(Stage("b", pattern, Dim(options=(64,)), "per_repeat"))
    genome = space.replay(space.sample(random.Random(0)))
    assert len(genome.genes) == 1024
    assert space.replay(space.locate(genome)) == genome


def test_branches_that_nobody_reads_are_found_in_the_shared_answers():
    side = Option("use:a", NEXT, (("heads", Dim(options=(2, 4))),), "a")
    slots = (Slot("m", (side, Option("none", None)), ONE), Slot("f", (Option("f", "swiglu"),), ONE))
    space = a_space(Stage("b", slots, ONE), Stage("c", (Slot("m", (side,), ONE),), ONE))
    for decisions in space.every():
        genome = space.replay(decisions)
        assert space.replay(space.locate(genome)) == genome
    assert space.size == 4


@some
@given(spaces(), st.randoms(use_true_random=False))
def test_a_draw_answers_what_was_asked_and_nothing_else(experiment, rng):
    space, asked = experiment.space, []
    decisions = space.sample(rng)

    def choose(path, dim):
        assert decisions[path] in dim
        assert dim.count > 1
        asked.append(path)
        return decisions[path]

    with contextlib.suppress(SpaceError):  # every slot may have become the identity
        space.resolve(choose)
    assert asked == list(decisions)


def drawn_share(text, path, label, draws=4000):
    space, rng = parsed(text).space, random.Random(3)
    return Counter(space.sample(rng)[path] for _ in range(draws))[label] / draws


def weighted(**more):
    slot = {"mixer": ["attention", "mamba2", "none"]} | more
    return {"model": {"stack": [{"stage": "b", "choose": "per_repeat", "repeat": 2,
                                 "pattern": [slot, {"ffn": ["swiglu", "none"]}]}]}}  # fmt: skip


def test_draws_follow_the_prior():
    prior = {"prior": {"mamba2": 7, "attention": 2}}
    for repeat in (0, 1):
        path = f"b[{repeat}].mixer"
        assert abs(drawn_share(weighted(**prior), path, "mamba2") - 0.7) < 0.03
        assert abs(drawn_share(weighted(**prior), path, "none") - 0.1) < 0.03
        assert abs(drawn_share(weighted(), path, "mamba2") - 1 / 3) < 0.03
    assert abs(drawn_share(weighted(**prior), "b[0].ffn", "none") - 0.5) < 0.03


def test_a_prior_leaves_the_space_as_it_is():
    plain, hinted = parsed(weighted()).space, parsed(weighted(prior={"mamba2": 7})).space
    assert list(plain.every()) == list(hinted.every())


def test_a_continuous_choice_makes_the_space_infinite():
    theta = {"attention": {"theta": {"from": 100, "to": 1000}}}
    space = parsed({"model": {"stack": [{"pattern": [{"mixer": theta}]}]}}).space
    assert space.size == float("inf")
    with pytest.raises(ValueError, match="is continuous"):
        list(space.every())
    decisions = space.sample(random.Random(0))
    assert space.locate(space.replay(decisions)) == decisions


def test_an_answer_that_is_missing_is_named():
    with pytest.raises(KeyError, match=r"b\[0\]\.mixer"):
        parsed(weighted()).space.replay({})


def test_the_parameters_that_vary():
    space = load("quickstart").space
    assert space.varying == {("attention", "window")}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_members_of_the_shipped_spaces_are_found_again(name):
    space, rng = load(name).space, random.Random(0)
    for _ in range(20):
        genome = replayed(space, space.sample(rng))
        if genome is not None:
            assert space.replay(space.locate(genome)) == genome

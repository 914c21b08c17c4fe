import math
import random
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from archsearch.genome import Gene, Genome
from archsearch.rules import cached_cost
from archsearch.search import effects
from archsearch.search.ablation import Edit, changes, edits
from tests.search.helpers import LARGE, searched
from tests.strategies import genomes

MAMBA, ATTENTION, SWIGLU = (Gene.of(name) for name in ("mamba2", "attention", "swiglu"))


@given(genomes(), st.lists(genomes(), max_size=3))
def test_no_edit_leaves_a_genome_as_it_is_and_no_two_are_equal(genome, others):
    keys = [edit.genome.key for edit in edits(genome, others)]
    assert genome.key not in keys
    assert len(keys) == len(set(keys))


@given(genomes())
def test_what_is_removed_costs_no_more(genome):
    whole = cached_cost(genome, 64).params
    for edit in edits(genome):
        if edit.what.endswith("removed"):
            assert cached_cost(edit.genome, 64).params <= whole
        if edit.what.endswith("unshared"):
            assert cached_cost(edit.genome, 64).params >= whole


def test_every_kind_of_edit_is_made_where_it_can_be():
    shared = Gene.of("attention", share="A")
    mod = Gene.of("mod", of=(SWIGLU,))
    genome = Genome(32, (shared, mod, shared))
    other = Genome(32, (MAMBA, Gene.of("kan")))
    assert [edit.what for edit in edits(genome, [other])] == [
        "1: attention removed",
        "1: attention replaced by mamba2",
        "1: attention moved behind mod",
        "2: mod removed",
        "2: mod replaced by what it holds",
        "2: mod moved behind attention",
        "3: attention removed",
        "3: attention replaced by mamba2",
        "*A: attention unshared",
    ]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=6), st.floats(0.05, 0.2))
def test_a_steady_loss_is_found_and_noise_around_zero_is_not(usual, loss):
    genome, edited = Genome(32, (MAMBA, SWIGLU)), Genome(32, (MAMBA,))
    tied = [value + loss * (-1) ** i for i, value in enumerate(usual)]
    assume(len(usual) % 2 == 0)
    scores = {genome.key: tuple(usual), edited.key: tuple(value - loss for value in usual)}
    (found,) = changes(genome, [Edit("removed", edited)], scores, 64)
    assert found.verdict == "worse"
    assert found.mean == pytest.approx(-loss)
    (found,) = changes(genome, [Edit("removed", edited)], scores | {edited.key: tuple(tied)}, 64)
    assert found.verdict == "not distinguishable"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return searched(
        tmp_path_factory.mktemp("large"), LARGE, "search.strategy=evolution", "search.trials=40"
    )


def test_shares_of_choices_are_shares(study):
    shares = effects.choices(study)
    assert shares
    assert sum(shares.values()) == pytest.approx(1)
    asked = {path for record in study.records().values() for path in record.params}
    assert set(shares) <= asked


def test_a_lineage_is_a_chain_of_parents_that_ends_without_one(study):
    records = study.records()
    lines = [effects.lineage(records, record) for record in records.values()]
    assert any(len(line) > 1 for line in lines)
    for line in lines:
        assert "parent" not in line[0].attrs
        for parent, child in pairwise(line):
            assert child.attrs["parent"] == parent.index < child.index


def test_a_motif_that_pays_is_found_and_chance_is_not(study):
    rng = random.Random(0)
    template = next(iter(study.records().values()))

    def record(score):
        genes = [rng.choice([MAMBA, ATTENTION, SWIGLU]) for _ in range(6)]
        genome = Genome(32, tuple(genes))
        value = score(sum(gene.block == "mamba2" for gene in genes))
        attrs = {"score": value, "error": 0.0}
        return type(template)(
            index=0, number=0, genome=genome, params={}, status="ok", why="",
            values=(value,), scores=(), attrs=attrs,
        )  # fmt: skip

    paid = effects.motifs([record(lambda n: 0.1 * n + rng.gauss(0, 0.01)) for _ in range(60)])
    assert paid[0].name == "mamba2"
    assert paid[0].mean > paid[0].spread > 0
    chance = effects.motifs([record(lambda _: rng.gauss(0, 0.1)) for _ in range(60)])
    wrong = [effect for effect in chance if abs(effect.mean) > effect.spread]
    assert len(wrong) <= len(chance) / 4
    assert all(math.isfinite(effect.mean) for effect in chance)

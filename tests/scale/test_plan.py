"""A genome at another size is the same architecture; its plan says what will be built."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome
from archsearch.mup import Base, widened
from archsearch.scale.plan import ScalePlan, deepened, enlarged, rival
from archsearch.sections import Recipe
from archsearch.space_yaml import load, load_genome
from archsearch.stack import configured

SPACE = load("quickstart").space
BASELINES = ("transformer_pp", "zamba2", "albert", "mamba2")


def plan(genome, width, depth):
    return ScalePlan(
        genome=enlarged(genome, width, depth),
        base=Base(genome.d_model, len(genome.genes)),
        recipe=Recipe(),
        context=64,
        vocab=256,
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_a_larger_genome_repeats_the_small_one_with_heads_as_wide(seed, growth, periods):
    genome = SPACE.replay(SPACE.sample(random.Random(seed)))
    large = enlarged(genome, growth * genome.d_model, periods * len(genome.genes))
    assert len(large.genes) == periods * len(genome.genes)
    for index, gene in enumerate(large.genes):
        small = genome.genes[index % len(genome.genes)]
        (kind, wide), (_, narrow) = configured(gene), configured(small)
        assert gene.block == small.block
        assert kind.channels_per_head(large.d_model, wide) == kind.channels_per_head(
            genome.d_model, narrow
        )
    assert widened(large, genome.d_model) == deepened(genome, periods)


def test_weights_that_are_shared_stay_shared_across_repeats():
    albert = load_genome("albert")
    assert {gene.share for gene in deepened(albert, 3).genes} == {
        gene.share for gene in albert.genes
    }
    assert (
        plan(albert, albert.d_model, 3 * len(albert.genes)).params
        == plan(albert, albert.d_model, len(albert.genes)).params
    )


def test_a_branch_reads_the_streams_of_its_own_repeat():
    genes = (Gene.of("attention"), Gene.of("swiglu"), Gene("swiglu", Gene.of("swiglu").params))
    skipping = Genome(64, (*genes[:2], Gene("swiglu", genes[1].params, inputs=(0,))))
    assert [gene.inputs for gene in deepened(skipping, 2).genes] == [
        (), (), (0,), (), (), (3,)
    ]  # fmt: skip


def test_a_width_that_would_change_heads_is_refused_with_its_neighbours():
    with pytest.raises(
        SpaceError, match=r"cannot be 100 wide: attention has heads.*legal widths: 96, 112"
    ):
        widened(load_genome("transformer_pp"), 100)


@pytest.mark.parametrize("name", BASELINES)
def test_a_plan_counts_what_is_built(name):
    made = plan(load_genome(name), 128, 8)
    assert made.params == sum(p.numel() for p in made.model.parameters())
    assert made.params == sum(number for _, number, _ in made.factors())
    assert made.tokens == made.recipe.steps * made.recipe.batch * 64


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("width", [64, 160, 512])
def test_a_rival_has_about_as_many_parameters_and_the_same_training(name, width):
    ours = plan(load_genome("mamba2"), width, 8)
    other = rival(ours, load_genome(name))
    assert other.params / ours.params == pytest.approx(1, abs=0.12)
    assert other.tokens == ours.tokens
    assert other.base.depth / ours.base.depth == pytest.approx(
        len(other.genome.genes) / len(ours.genome.genes)
    )

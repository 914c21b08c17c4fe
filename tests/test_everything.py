"""Random architectures of every block at once build, learn, stream and cost what is said."""

from __future__ import annotations

import random

import pytest

from archsearch.canonical import nested
from archsearch.catalogue import block_info, block_names
from archsearch.genome import FRAME
from archsearch.rules import settle
from archsearch.sections import Recipe
from archsearch.space_yaml import dump, load, parse
from archsearch.trial import run_trial
from tests.streaming import require_that_it_streams

EVERYTHING = load("everything")
RECIPE = Recipe(steps=20, evals=2, batch=4, eval_rows=8, lr=3e-3, warmup=0.1)


def member(seed):
    """A random member of the space."""
    space = EVERYTHING.space
    genome = space.replay(space.sample(random.Random(seed)))
    return settle(space, genome, EVERYTHING.context)


def require_that_it_works(genome):
    """Train a genome as a trial does, then let it stream; raise for whatever is not right."""
    assert parse(dump(genome)).space.resolve(lambda path, dim: dim.first) == genome
    found = EVERYTHING.space.locate(genome)
    assert found is not None
    assert EVERYTHING.space.replay(found) == genome
    result = run_trial(genome, EVERYTHING.tasks, RECIPE, seed=0)
    assert (result.status, result.why) == ("ok", "")
    require_that_it_streams(result.models[0])


@pytest.mark.parametrize("seed", range(12))
def test_a_random_architecture_of_everything_learns_and_streams(seed):
    require_that_it_works(member(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 212))
def test_two_hundred_architectures_of_everything_learn_and_stream(seed):
    require_that_it_works(member(seed))


def test_everything_is_in_the_space_and_in_its_members():
    """A block that is new belongs into the space file."""
    causal = {name for name in block_names() if not block_info(name).bidirectional}
    assert set(EVERYTHING.space.frame) == set(FRAME)
    genomes = [member(seed) for seed in range(212)]
    genes = [gene for genome in genomes for gene in nested(genome.genes)]
    assert {gene.block for gene in genes} == causal
    assert {gene.combine for gene in genes} == {"add", "concat", "gate"}
    assert any(gene.share and gene.inner for gene in genes)


def test_a_model_that_streams_otherwise_is_seen():
    result = run_trial(member(0), EVERYTHING.tasks, RECIPE.model_copy(update={"steps": 1}), seed=0)
    model = result.models[0]
    step = model.step
    model.step = lambda token_B, decoding: step(token_B, decoding) + (decoding.position == 30)
    with pytest.raises(AssertionError, match="not close"):
        require_that_it_streams(model)

"""Random architectures of every block at once build, learn, stream and cost what is said."""

from __future__ import annotations

import random

import pytest
import torch

from archsearch.canonical import nested
from archsearch.catalogue import block_info, block_names
from archsearch.genome import FRAME
from archsearch.model import cost
from archsearch.rules import settle
from archsearch.sections import Recipe
from archsearch.space_yaml import dump, load, parse
from archsearch.trial import run_trial

EVERYTHING = load("everything")
RECIPE = Recipe(steps=20, evals=2, batch=4, eval_rows=8, lr=3e-3, warmup=0.1)
LENGTH = 37
"""Tokens that are streamed: more than were trained on, and no multiple of any chunk."""


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


@torch.no_grad()
def require_that_it_streams(model):
    """Require that a model says token by token what it says of a text as a whole."""
    tokens_BT = torch.randint(model.vocab, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    promised = cost(model.genome, LENGTH)
    outside = sum(p.numel() for name, p in model.named_parameters() if around(name))
    assert sum(p.numel() for p in model.parameters()) - outside == promised.params
    assert model.start(1, LENGTH).bytes == promised.state_bytes
    model.eval()
    assert model(tokens_BT).isfinite().all()
    model.double()
    logits_BTV, decoding = model(tokens_BT), model.start(2, LENGTH)
    decoding.state = {name: doubled(tensor) for name, tensor in decoding.state.items()}
    said_BTV = torch.stack([model.step(token_B, decoding) for token_B in tokens_BT.unbind(1)], 1)
    torch.testing.assert_close(said_BTV, logits_BTV, rtol=1e-6, atol=1e-6)


def around(name):
    """Whether a parameter belongs to embeddings or readout, which `cost` leaves out."""
    return name.split(".")[0] in ("embedding", "lift", "lower", "readout", "decoder")


def doubled(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor


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

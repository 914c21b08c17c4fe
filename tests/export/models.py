"""Models to export: members of everything, and small ones with a property each."""

from __future__ import annotations

import random
from functools import cache
from importlib.util import find_spec

import pytest
import torch

from archsearch.errors import SpaceError
from archsearch.export.origin import Origin
from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.mup import Base, widened
from archsearch.rules import settle
from archsearch.space_yaml import load
from archsearch.train import generator

VOCAB = 256
TRANSFORMERS = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed"
)
ATTENTION, SWIGLU = Gene.of("attention", heads=2), Gene.of("swiglu")
WINDOW = Gene.of("attention", heads=2, window=5)
MAMBA = Gene.of("mamba2", d_state=8, head_dim=8)
SHARED = Gene.of("shared_attention", "A", heads=2, lora_rank=2)
MIXED = Gene.of("mod", None, (ATTENTION, SWIGLU))
EXPERTS = Gene.of("moe", experts=4, mult=0.5)
HYDRA = Gene.of("hydra", d_state=8, head_dim=8)
GENOMES = {
    "attention": Genome(16, (ATTENTION, SWIGLU, ATTENTION, SWIGLU)),
    "recurrent": Genome(16, (MAMBA, SWIGLU, Gene.of("gla", head_dim=4), EXPERTS)),
    "hybrid": Genome(16, (MAMBA, WINDOW, MIXED, Gene.of("ttt", head_dim=8), SWIGLU)),
    "tied and shared": Genome(
        16, (SHARED, MAMBA, SHARED, ATTENTION), "layer", True, pause_tokens=1, soft_cap=20.0
    ),
    "held twice": Genome(
        16, (Gene.of("loop", "L", (MAMBA, Gene.of("swiglu", "F"))), SWIGLU, Gene.of("swiglu", "F"),
             Gene.of("loop", "L", (MAMBA, Gene.of("swiglu", "F")))), embedding_rank=4,
    ),
}  # fmt: skip
"""What decodes in different ways."""


@cache
def everything():
    """The space of all blocks."""
    return load("everything")


def member(seed):
    """A random architecture of all blocks."""
    space = everything().space
    genome = space.replay(space.sample(random.Random(seed)))
    return settle(space, genome, everything().context)


def scaled(genome, seed):
    """A model whose hyper-parameters come from a smaller one where its heads allow that."""
    base = Base(max(1, genome.d_model // 2), 0.5 * len(genome.genes))
    try:
        widened(genome, base.width)
    except SpaceError:
        base = Base(genome.d_model, base.depth)
    return stirred(build(genome, VOCAB, generator=generator("export", seed), base=base))


def named(name):
    """One of `GENOMES` with weights."""
    return stirred(build(GENOMES[name], VOCAB, generator=generator("export", name)))


@torch.no_grad()
def stirred(model):
    """What starts at 0 or 1 hides mistakes: no parameter has one number everywhere."""
    stream = generator("export", "stir")
    for parameter in model.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=stream)
    return model.eval()


def origin(model):
    """A model of text by bytes."""
    return Origin(model=model, what="random weights", tokenizer="byte", separator=0)

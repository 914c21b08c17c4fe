"""A model as plain data: what `export.runtime.model` builds, and the weights to fill it with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from archsearch.block import Block, block_class
from archsearch.canonical import nested, sharing
from archsearch.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from archsearch.genome import Gene, Genome
    from archsearch.model import Model

FRAME = ("norm", "norm_place", "embedding_rank", "tie_embeddings", "soft_cap", "pause_tokens")
"""What the architecture says of a genome as it stands."""


def architecture(model: Model) -> dict[str, Any]:
    """What a model is made of; weights are not looked at."""
    genome = model.genome
    uses = {share: len(genes) for share, genes in sharing(genome.genes).items()}
    return {
        "width": genome.d_model,
        "vocab": model.vocab,
        **{name: getattr(genome, name) for name in FRAME},
        "readout": model.readout_kind,
        "logit_multiplier": 1.0 if _folded(model) else model.logit_multiplier,
        "causal": not genome.bidirectional,
        "rewinds": not genome.bidirectional and _rewinds(genome),
        "stack": _entries(genome.genes, model.stack, uses, set()),
    }


@dataclass
class Used:
    """How a model uses a block."""

    configs: list[dict[str, Any]] = field(default_factory=list)
    parameters: set[str] = field(default_factory=set)
    """What its parameters are called."""


def blocks_of(model: Model) -> dict[type[Block], Used]:
    """The blocks of a model, in order of first use."""
    found: dict[type[Block], Used] = {}
    for module in model.modules():
        if isinstance(module, Block):
            used = found.setdefault(type(module), Used())
            used.parameters |= {name for name, _ in module.named_parameters()}
    for gene in nested(model.genome.genes):
        found[block_class(gene.block)].configs.append(dict(gene.params))
    return found


def weights(model: Model) -> dict[str, Tensor]:
    """The weights by name, each once, with the multiplier of the logits in a matrix of its own."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    if last := _folded(model):
        named[last] = named[last] * model.logit_multiplier
    return {name: tensor.contiguous() for name, tensor in named.items()}


def _rewinds(genome: Genome) -> bool:
    """Whether decode states can go back: all that is kept is an entry for each token."""
    with torch.device("meta"):
        stack = Stack(genome, genome.genes)
        long, longer = (stack.init_state(1, context) for context in (2**40, 2**41))
    return all(t.numel() == 0 or t.shape != longer[name].shape for name, t in long.items())


def _folded(model: Model) -> str | None:
    """The matrix that the multiplier of the logits goes into; None if it is the embedding."""
    if model.genome.embedding_rank:
        return "lower.weight"
    return None if model.genome.tie_embeddings else "readout.weight"


def _entries(
    genes: Sequence[Gene], stack: Stack, uses: Mapping[str, int], made: set[str]
) -> list[dict[str, Any]]:
    return [
        _entry(gene, node, stack, uses, made) for gene, node in zip(genes, stack.nodes, strict=True)
    ]


def _entry(
    gene: Gene, node: Any, stack: Stack, uses: Mapping[str, int], made: set[str]
) -> dict[str, Any]:
    entry: dict[str, Any] = {"share": gene.share} if gene.share else {}
    if gene.share not in made:
        kind = block_class(gene.block)
        config = {k: v for k, v in gene.params if v != kind.info.dims[k].default}
        entry = {"block": gene.block, "config": config, **entry}
        if kind.per_use and gene.share:
            entry["uses"] = uses[gene.share]
        if gene.inner:
            block: Any = stack.branches[node.name]
            entry["of"] = _entries(gene.inner, block.block.inner, uses, made)
        if gene.share:
            made.add(gene.share)
    if node.use:
        entry["use"] = node.use
    if gene.inputs:
        entry["reads"] = list(gene.inputs)
    if len(gene.inputs) > 1:
        entry["combine"] = gene.combine
    if not node.joins:
        entry["joins"] = "next"
    if node.multiplier != 1:
        entry["multiplier"] = node.multiplier
    return entry

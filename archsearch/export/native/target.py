"""What a target brings: which genomes fit it, its config and its weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from archsearch.export.native.source import Source, Weights
    from archsearch.genome import Genome

EPS = 1e-5
"""Of every norm around a block, and of the one in Mamba-2."""
FINE_EPS = 1e-6
"""Of the norms of queries and keys, in Mamba with norms, and in Gated DeltaNet."""

LEAST_STEP = 1e-9
"""Bound of the step size of Mamba-2 where a target needs one; 0 would start a training with NaN."""


class Target:
    """A published architecture."""

    name: ClassVar[str]
    """`<name>Config` and `<name>ForCausalLM` are its classes in transformers."""
    blocks: ClassVar[Collection[str]]
    """Blocks that it has in some shape."""

    def fields(self, genome: Genome) -> dict[str, Any]:
        """Its config for a genome, but for the vocabulary.

        Raises:
            Unfit: saying which part of the genome has no equivalent.
        """
        raise NotImplementedError

    def scalars(self, source: Source) -> dict[str, Any]:
        """Multipliers that stand in its config."""
        return {}

    def weights(self, source: Source) -> Weights:
        """Its weights, by name."""
        raise NotImplementedError

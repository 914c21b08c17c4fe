"""Selective state spaces alone: Mamba and Mamba-2."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from archsearch.export.native.reading import Reader
from archsearch.export.native.source import mamba, under
from archsearch.export.native.target import EPS, Target

if TYPE_CHECKING:
    from collections.abc import Collection

    from archsearch.export.native.source import Source, Weights
    from archsearch.genome import Genome


class Mamba2(Target):
    """Mamba-2."""

    name = "Mamba2"
    blocks: ClassVar[Collection[str]] = ("mamba2",)

    def fields(self, genome: Genome) -> dict[str, Any]:
        shape = Reader(genome, self.name, self.blocks).mamba2()
        return {
            **_fields(genome, shape),
            "num_heads": shape["heads"],
            "head_dim": shape["head_dim"],
            "n_groups": shape["groups"],
        }

    def weights(self, source: Source) -> Weights:
        found = source.frame("backbone.embeddings", "backbone.norm_f")
        for i, part in enumerate(source.parts):
            assert part.gain is not None
            found[f"backbone.layers.{i}.norm.weight"] = part.gain
            found |= under(f"backbone.layers.{i}.mixer", mamba(part, source.branch))
        return found


class Mamba(Mamba2):
    """Mamba, without norms of step size, B and C."""

    name = "Mamba"
    blocks = ("mamba1",)

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks)
        reader.every("mamba1", "norm", (False,))
        shape = reader.uniform("mamba1")
        rank = math.ceil(genome.d_model / shape["dt_ratio"])
        return {**_fields(genome, shape), "time_step_rank": rank}


def _fields(genome: Genome, shape: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": genome.d_model,
        "state_size": shape["d_state"],
        "num_hidden_layers": len(genome.genes),
        "expand": shape["expand"],
        "conv_kernel": shape["conv"],
        "layer_norm_epsilon": EPS,
        "tie_word_embeddings": genome.tie_embeddings,
    }

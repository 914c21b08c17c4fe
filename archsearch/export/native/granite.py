"""Mamba-2 or attention, each with a gated feed-forward: GraniteMoeHybrid and Bamba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from archsearch.export.native.reading import Reader, heads, mamba2_fields, rope
from archsearch.export.native.source import (
    attention,
    experts,
    feed_forward,
    mamba,
    router,
    shared_expert,
    under,
)
from archsearch.export.native.target import EPS, Target

if TYPE_CHECKING:
    from archsearch.export.native.reading import Layer
    from archsearch.export.native.source import Part, Source, Weights
    from archsearch.genome import Genome


class GraniteMoeHybrid(Target):
    """Multipliers of muP are scalars of its config, and its attention may have no positions.

    Every layer has a feed-forward for all tokens: where a mixture of experts has none, it has width
    1 and weights 0.
    """

    name = "GraniteMoeHybrid"
    blocks = ("mamba2", "attention", "swiglu", "moe")

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks)
        pairs = reader.pairs()
        shape = reader.attention(pos=("rope", "none"), bias=(True, False))
        ffn, moe = reader.feed_forward(("silu",)), reader.experts(shared=True)
        if ffn and moe:
            later = max(reader.of("swiglu")[0], reader.of("moe")[0], key=lambda at: at.number)
            reader.refuse(later, "not in all layers", f"{self.name} has experts in all or in none")
        if moe:
            has = "has gates that do not sum to 1"
            reader.need(reader.of("moe")[0], moe["normed"], f"moe {has}; {self.name}'s do")
        return {
            **_fields(genome, reader, pairs, shape),
            "layer_types": [_kind(mixer) for mixer, _ in pairs],
            "attention_multiplier": (genome.d_model // shape.get("heads", 1)) ** -0.5,
            "position_embedding_type": "rope" if shape.get("pos") == "rope" else None,
            "rope_parameters": rope(shape),
            "num_local_experts": moe.get("experts", 0),
            "num_experts_per_tok": moe.get("top_k", 1),
            "intermediate_size": moe.get("hidden", 1),
            "shared_intermediate_size": max(1, moe["shared"] * moe["hidden"])
            if moe
            else ffn["hidden"],
        }

    def scalars(self, source: Source) -> dict[str, Any]:
        return {"residual_multiplier": source.branch, "logits_scaling": 1 / source.logits}

    def weights(self, source: Source) -> Weights:
        return source.frame(logits=source.logits) | source.pairs(
            lambda part: _mixer(part, 1.0), _feed_forward
        )


class Bamba(Target):
    """Its attention turns one half of each head."""

    name = "Bamba"
    blocks = ("mamba2", "attention", "swiglu")

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks)
        pairs = reader.pairs()
        shape = reader.attention(rotary=(0.5,), bias=(True, False))
        kinds = [mixer.gene.block for mixer, _ in pairs]
        return {
            **_fields(genome, reader, pairs, shape),
            "attn_layer_indices": [i for i, kind in enumerate(kinds) if kind == "attention"],
            "rope_parameters": rope(shape, partial_rotary_factor=0.5),
            "intermediate_size": reader.feed_forward(("silu",))["hidden"],
        }

    def weights(self, source: Source) -> Weights:
        times = source.branch
        return source.frame(norm="model.final_layernorm") | source.pairs(
            lambda part: _mixer(part, times),
            lambda part: under("feed_forward", feed_forward(part, times)),
            "pre_ff_layernorm",
        )


def _fields(
    genome: Genome, reader: Reader, pairs: list[tuple[Layer, Layer]], shape: dict[str, Any]
) -> dict[str, Any]:
    """What both have. A cache counts its tokens in the attention layers."""
    return {
        "hidden_size": genome.d_model,
        "num_hidden_layers": len(pairs),
        **heads(shape),
        **mamba2_fields(genome, reader.mamba2()),
        "attention_bias": shape.get("qkv_bias", False),
        "rms_norm_eps": EPS,
        "tie_word_embeddings": genome.tie_embeddings,
        "use_cache": bool(shape),
    }


def _kind(mixer: Layer) -> str:
    return "full_attention" if mixer.gene.block == "attention" else "linear_attention"


def _mixer(part: Part, multiplier: float) -> Weights:
    if part.gene.block == "attention":
        return under("self_attn", attention(part, multiplier, o_bias=True))
    return under("mamba", mamba(part, multiplier))


def _feed_forward(part: Part) -> Weights:
    """Without a multiplier, which is a scalar of the config."""
    dense = part.gene.block == "swiglu"
    whole = feed_forward(part, 1.0) if dense else shared_expert(part, 1.0)
    both = torch.cat((whole["gate_proj.weight"], whole["up_proj.weight"]))
    found = {
        "shared_mlp.input_linear.weight": both,
        "shared_mlp.output_linear.weight": whole["down_proj.weight"],
    }
    if dense:
        return found
    found |= under("block_sparse_moe.experts", experts(part, 1.0))
    return found | under("block_sparse_moe.router", router(part))

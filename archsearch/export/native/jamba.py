"""Jamba: Mamba with norms or attention, each with a gated feed-forward or experts, in periods."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from archsearch.export.native.reading import Reader, heads
from archsearch.export.native.source import (
    attention,
    eps_factor,
    experts,
    feed_forward,
    mamba,
    router,
    under,
)
from archsearch.export.native.target import EPS, FINE_EPS, Target

if TYPE_CHECKING:
    from archsearch.export.native.reading import Layer
    from archsearch.export.native.source import Part, Source, Weights
    from archsearch.genome import Genome


class Jamba(Target):
    """Attention and experts stand in every so many layers; experts are as wide as feed-forwards."""

    name = "Jamba"
    blocks = ("mamba1", "attention", "swiglu", "moe")

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks)
        pairs = reader.pairs()
        shape = reader.attention(pos=("none",))
        reader.every("mamba1", "norm", (True,))
        state = reader.uniform("mamba1")
        ffn, moe = reader.feed_forward(("silu",)), reader.experts(shared=False)
        if moe:
            first = reader.of("moe")[0]
            text = "moe has gates that sum to 1; Jamba's do not"
            reader.need(first, not moe["normed"], text)
            text = f"moe is {moe['hidden']} wide, swiglu {ffn.get('hidden')}; Jamba has one width"
            reader.need(first, not ffn or ffn["hidden"] == moe["hidden"], text)
            text = f"moe has one expert; {self.name} then has none"
            reader.need(first, moe["experts"] > 1, text)
        mixers, ffns = zip(*pairs, strict=True)
        attends, expert = _period(reader, mixers, "attention"), _period(reader, ffns, "moe")
        return {
            "hidden_size": genome.d_model,
            "intermediate_size": (ffn or moe)["hidden"],
            "num_hidden_layers": len(pairs),
            **heads(shape),
            "attn_layer_period": attends[0],
            "attn_layer_offset": attends[1],
            "expert_layer_period": expert[0],
            "expert_layer_offset": expert[1],
            "num_experts": moe.get("experts", 1),
            "num_experts_per_tok": moe.get("top_k", 1),
            "mamba_d_state": state.get("d_state", 1),
            "mamba_d_conv": state.get("conv", 4),
            "mamba_expand": state.get("expand", 1),
            "mamba_dt_rank": math.ceil(genome.d_model / state.get("dt_ratio", 16)),
            "rms_norm_eps": EPS,
            "tie_word_embeddings": genome.tie_embeddings,
            "use_cache": bool(shape),
        }

    def weights(self, source: Source) -> Weights:
        times = source.branch
        return source.frame(norm="model.final_layernorm") | source.pairs(
            lambda part: _mixer(part, times),
            lambda part: under("feed_forward", _feed_forward(part, times)),
            "pre_ff_layernorm",
        )


def _period(reader: Reader, layers: tuple[Layer, ...], block: str) -> tuple[int, int]:
    """Period and offset of a block; a period of more than all layers where there is none."""
    places = {i for i, layer in enumerate(layers) if layer.gene.block == block}
    count = len(layers)
    periods = ((period, offset) for period in range(1, count + 2) for offset in range(period))
    fits = (found for found in periods if set(range(found[1], count, found[0])) == places)
    if found := next(fits, None):
        return found
    odd, has = reader.of(block)[-1], "does not stand in every so many layers"
    return reader.refuse(odd, has, f"{reader.target} has a period")


def _mixer(part: Part, multiplier: float) -> Weights:
    if part.gene.block == "attention":
        return under("self_attn", attention(part, multiplier))
    found = mamba(part, multiplier)
    found["x_proj.weight"] = found["x_proj.weight"] * eps_factor(FINE_EPS, EPS)
    return under("mamba", found)


def _feed_forward(part: Part, multiplier: float) -> Weights:
    if part.gene.block == "swiglu":
        return feed_forward(part, multiplier)
    return under("experts", experts(part, multiplier)) | under("router", router(part))

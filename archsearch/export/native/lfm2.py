"""LFM2: short convolutions or attention, each with a gated feed-forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archsearch.export.native.reading import Reader, heads, rope
from archsearch.export.native.source import attention, eps_factor, feed_forward, under
from archsearch.export.native.target import EPS, FINE_EPS, Target

if TYPE_CHECKING:
    from archsearch.export.native.source import Part, Source, Weights
    from archsearch.genome import Genome

NAMES = {"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
"""Llama's and Qwen3's names, and those of LFM2."""
MLP = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


class Lfm2(Target):
    """Its convolutions are as wide as the model; attention normalises queries and keys."""

    name = "Lfm2"
    blocks = ("short_conv", "attention", "swiglu")

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks)
        pairs = reader.pairs()
        shape = reader.attention(qk_norm=True)
        reader.every("short_conv", "expand", (1,))
        kinds = [mixer.gene.block for mixer, _ in pairs]
        return {
            "hidden_size": genome.d_model,
            "intermediate_size": reader.feed_forward(("silu",))["hidden"],
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": len(pairs),
            "layer_types": ["full_attention" if k == "attention" else "conv" for k in kinds],
            **heads(shape),
            "conv_L_cache": reader.uniform("short_conv").get("conv", 3),
            "rope_parameters": rope(shape),
            "norm_eps": EPS,
            "tie_word_embeddings": genome.tie_embeddings,
            "use_cache": bool(shape),
        }

    def weights(self, source: Source) -> Weights:
        times = source.branch
        found = source.frame(norm="model.embedding_norm") | source.pairs(
            lambda part: _mixer(part, times),
            lambda part: under("feed_forward", _renamed(feed_forward(part, times), MLP)),
            "ffn_norm",
        )
        return {name.replace("input_layernorm", "operator_norm"): w for name, w in found.items()}


def _mixer(part: Part, multiplier: float) -> Weights:
    if part.gene.block == "short_conv":
        last = part.weights["out_proj.weight"] * multiplier
        return under("conv", {**part.weights, "out_proj.weight": last})
    own = attention(part, multiplier, eps_factor(FINE_EPS, EPS))
    return under("self_attn", _renamed(own, NAMES))


def _renamed(weights: Weights, names: dict[str, str]) -> Weights:
    """The same weights with other names of modules."""
    found = {}
    for name, weight in weights.items():
        module, _, kind = name.partition(".")
        found[f"{names.get(module, module)}.{kind}"] = weight
    return found

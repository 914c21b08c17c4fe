"""FalconH1: attention beside Mamba-2 in every layer, then a gated feed-forward."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from archsearch.export.native.reading import Reader, heads, mamba2_fields, rope
from archsearch.export.native.source import attention, feed_forward, mamba, under
from archsearch.export.native.target import EPS, Target

if TYPE_CHECKING:
    from archsearch.export.native.source import Part, Source, Weights
    from archsearch.genome import Genome

FIRST = {"attention": "qkv.weight", "mamba2": "in_proj.weight"}
"""The matrix that the normalised input of a mixer goes through."""


class FalconH1(Target):
    """One norm stands before both mixers: the gains of ours go into their first matrices.

    Multipliers of muP are scalars of its config.
    """

    name = "FalconH1"
    blocks = ("parallel", "swiglu")

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks)
        layers = len(reader.pairs())
        reader.every("parallel", "combine", ("add",))
        for layer in reader.of("parallel"):
            held = sorted(gene.block for gene in layer.gene.inner)
            text = f"{' beside '.join(held)}; {self.name} has attention beside mamba2"
            reader.need(layer, held == [*FIRST], text)
        reader.open()
        shape, state = reader.attention(bias=(True, False)), reader.mamba2()
        return {
            "hidden_size": genome.d_model,
            "intermediate_size": reader.feed_forward(("silu",))["hidden"],
            "num_hidden_layers": layers,
            **heads(shape),
            **mamba2_fields(genome, state),
            "mamba_d_ssm": state["expand"] * genome.d_model,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "attention_bias": shape["qkv_bias"],
            "rope_parameters": rope(shape),
            "rms_norm_eps": EPS,
            "tie_word_embeddings": genome.tie_embeddings,
        }

    def scalars(self, source: Source) -> dict[str, Any]:
        return {
            "attention_out_multiplier": source.branch,
            "ssm_out_multiplier": source.branch,
            "mlp_multipliers": [1.0, source.branch],
            "lm_head_multiplier": source.logits,
        }

    def weights(self, source: Source) -> Weights:
        around = source.frame(norm="model.final_layernorm", logits=source.logits)
        return around | source.pairs(
            _mixers, lambda part: under("feed_forward", feed_forward(part, 1.0)), "pre_ff_layernorm"
        )


def _mixers(part: Part) -> Weights:
    """Both mixers of a layer, with the norm before them."""
    found: Weights = {}
    for inner in part.inner:
        gain_D, name = inner.gain, FIRST[inner.gene.block]
        assert gain_D is not None
        found["input_layernorm.weight"] = torch.ones_like(gain_D)
        inner = replace(inner, weights={**inner.weights, name: inner.weights[name] * gain_D})
        if inner.gene.block == "mamba2":
            found |= under("mamba", mamba(inner, 1.0))
        else:
            found |= under("self_attn", attention(inner, 1.0, o_bias=True))
    return found

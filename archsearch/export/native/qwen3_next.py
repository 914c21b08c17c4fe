"""Qwen3-Next: Gated DeltaNet or gated attention, each with a gated feed-forward or experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from archsearch.export.native.reading import Reader, heads, rope
from archsearch.export.native.source import (
    attention,
    eps_factor,
    experts,
    feed_forward,
    router,
    shared_expert,
    under,
)
from archsearch.export.native.target import EPS, FINE_EPS, Target

if TYPE_CHECKING:
    from torch import Tensor

    from archsearch.export.native.source import Part, Source, Weights
    from archsearch.genome import Genome

NO_DECAY = -60.0
"""Logarithm of a decay rate that leaves a state as it is, to the last bit."""


class Qwen3Next(Target):
    """What it has and a genome lacks is idle.

    A gate is written as 0, where its sigmoid is 1/2, and the matrix after it twice as large; a
    decay as 1. It has one epsilon for all norms, which is that of the fine ones: the stream is made
    smaller in turn, see `eps_factor`.
    """

    name = "Qwen3Next"
    blocks = ("gated_deltanet", "attention", "swiglu", "moe")

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks)
        pairs = reader.pairs()
        shape = reader.attention(rotary=(0.25, 0.5, 1.0), bias=(True, False), qk_norm=True)
        reader.every("gated_deltanet", "beta", (1,))
        reader.every("gated_deltanet", "gate", (True,))
        delta = reader.uniform("gated_deltanet", ("decay",))
        ffn, moe = reader.feed_forward(("silu",)), reader.experts(shared=True)
        kinds = [mixer.gene.block for mixer, _ in pairs]
        found = {
            "hidden_size": genome.d_model,
            "num_hidden_layers": len(pairs),
            "layer_types": [
                "full_attention" if kind == "attention" else "linear_attention" for kind in kinds
            ],
            **heads(shape),
            "head_dim": genome.d_model // shape.get("heads", 1),
            "attention_bias": shape.get("qkv_bias", False),
            "rope_parameters": rope(shape, partial_rotary_factor=shape.get("rotary", 1.0)),
            "rms_norm_eps": FINE_EPS,
            "tie_word_embeddings": genome.tie_embeddings,
            "use_cache": bool(shape),
            "intermediate_size": ffn.get("hidden", 1),
            "num_experts": moe.get("experts", 0),
            "mlp_only_layers": [i for i, (_, f) in enumerate(pairs) if f.gene.block == "swiglu"],
        }
        if moe:
            found |= {
                "num_experts_per_tok": moe["top_k"],
                "norm_topk_prob": moe["normed"],
                "moe_intermediate_size": moe["hidden"],
                "shared_expert_intermediate_size": max(1, moe["shared"] * moe["hidden"]),
            }
        if delta:
            key_heads = int(delta["expand_k"] * genome.d_model) // delta["head_dim"]
            found |= {
                "linear_num_key_heads": key_heads,
                "linear_num_value_heads": key_heads * delta["value_heads"],
                "linear_key_head_dim": delta["head_dim"],
                "linear_value_head_dim": delta["head_dim"] * delta["expand_v"],
                "linear_conv_kernel_dim": delta["conv"],
            }
        return found

    def weights(self, source: Source) -> Weights:
        smaller, tied = eps_factor(EPS, FINE_EPS), source.genome.tie_embeddings
        around = source.frame(logits=smaller if tied else 1.0)
        around["model.norm.weight"] = _gain(around["model.norm.weight"])
        around["model.embed_tokens.weight"] = smaller_VD = source.embedding * smaller
        if tied:
            around["lm_head.weight"] = smaller_VD
        times = source.branch * smaller
        found = source.pairs(
            lambda part: _mixer(part, times), lambda part: _feed_forward(part, times), gain=_gain
        )
        return around | found


def _gain(gain: Tensor) -> Tensor:
    """Its norms multiply by 1 + w."""
    return gain - 1


def _mixer(part: Part, multiplier: float) -> Weights:
    if part.gene.block == "gated_deltanet":
        return under("linear_attn", _delta(part, multiplier))
    return under("self_attn", _gated(attention(part, 2 * multiplier, o_bias=True), part))


def _gated(found: Weights, part: Part) -> Weights:
    """Attention with rows for an idle gate after the queries of each head."""
    for name in ("q_proj.weight", "q_proj.bias"):
        if name in found:
            rows = found[name].unflatten(0, (part.params["heads"], -1))
            found[name] = torch.cat((rows, torch.zeros_like(rows)), 1).flatten(0, 1)
    gains = {name: _gain(found[name]) for name in ("q_norm.weight", "k_norm.weight")}
    return found | gains


def _delta(part: Part, multiplier: float) -> Weights:
    """Gated DeltaNet, its rows put together by key head."""
    own = dict(part.weights)
    params = part.params
    inner = own["out_proj.weight"].shape[1]
    keys = (len(own["conv1d.weight"]) - inner) // 2
    groups = keys // params["head_dim"]
    heads = groups * params["value_heads"]
    rows = own.pop("in_proj.weight")
    if not params["decay"]:
        rows = torch.cat((rows, torch.zeros_like(rows[:heads])))
        own["A_log"] = rows.new_full((heads,), NO_DECAY)
        own["dt_bias"] = rows.new_zeros(heads)
    parts = rows.split([keys, keys, inner, inner, heads, heads])
    q, k, v, z, b, a = (part.unflatten(0, (groups, -1)) for part in parts)
    own["in_proj_qkvz.weight"] = torch.cat((q, k, v, z), 1).flatten(0, 1)
    own["in_proj_ba.weight"] = torch.cat((b, a), 1).flatten(0, 1)
    own["out_proj.weight"] = own["out_proj.weight"] * multiplier
    return own


def _feed_forward(part: Part, multiplier: float) -> Weights:
    if part.gene.block == "swiglu":
        return under("mlp", feed_forward(part, multiplier))
    gate = router(part)["weight"]
    found = under("experts", experts(part, multiplier)) | under("gate", {"weight": gate})
    found |= under("shared_expert", shared_expert(part, 2 * multiplier))
    return under("mlp", {**found, "shared_expert_gate.weight": torch.zeros_like(gate[:1])})

"""Attention and gated feed-forwards alone: Llama, Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from archsearch.export.native.reading import Reader, heads, rope
from archsearch.export.native.source import attention, eps_factor, feed_forward, under
from archsearch.export.native.target import EPS, FINE_EPS, Target

if TYPE_CHECKING:
    from collections.abc import Collection

    from archsearch.export.native.source import Part, Source, Weights
    from archsearch.genome import Genome


class Llama(Target):
    """Llama, and what its relatives have in common with it."""

    name = "Llama"
    blocks = ("attention", "swiglu")
    bias: ClassVar[Collection[bool]] = (False,)
    qk_norm: ClassVar[bool] = False
    windows: ClassVar[bool] = False

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks)
        layers = len(reader.pairs())
        but = ("window",) if self.windows else ()
        shape = reader.attention(bias=self.bias, qk_norm=self.qk_norm, but=but)
        ffn = reader.feed_forward(("silu", "gelu"))
        return {
            "hidden_size": genome.d_model,
            "intermediate_size": ffn["hidden"],
            "hidden_act": ffn["act"],
            "num_hidden_layers": layers,
            **heads(shape),
            "head_dim": genome.d_model // shape["heads"],
            "rms_norm_eps": EPS,
            "tie_word_embeddings": genome.tie_embeddings,
            "rope_parameters": rope(shape),
            **self.own(reader, shape),
        }

    def own(self, reader: Reader, shape: dict[str, Any]) -> dict[str, Any]:
        """Fields that Llama does not have."""
        return {}

    def mixer(self, part: Part, multiplier: float) -> Weights:
        """The weights of the attention of a layer."""
        return attention(part, multiplier)

    def weights(self, source: Source) -> Weights:
        times = source.branch
        return source.frame() | source.pairs(
            lambda part: under("self_attn", self.mixer(part, times)),
            lambda part: under("mlp", feed_forward(part, times)),
        )


class Mistral(Llama):
    """Every layer has the same window."""

    name = "Mistral"
    windows = True

    def own(self, reader: Reader, shape: dict[str, Any]) -> dict[str, Any]:
        return {"sliding_window": reader.uniform("attention")["window"]}


class Qwen2(Llama):
    """Queries, keys and values have biases; each layer has one window or none.

    Without biases in the genome they are 0.
    """

    name = "Qwen2"
    bias = (True, False)
    windows = True

    def own(self, reader: Reader, shape: dict[str, Any]) -> dict[str, Any]:
        layers = reader.of("attention")
        windows = {layer.params["window"] for layer in layers} - {None}
        for layer in layers:
            if len(windows) > 1 and layer.params["window"] == max(windows):
                has = f"with window {max(windows)}, {min(windows)} in others"
                reader.refuse(layer, has, f"{self.name} has one width of windows")
        kinds = ["sliding" if layer.params["window"] else "full" for layer in layers]
        found: dict[str, Any] = {"layer_types": [f"{kind}_attention" for kind in kinds]}
        if windows:
            found |= {"use_sliding_window": True, "sliding_window": min(windows)}
        return found

    def mixer(self, part: Part, multiplier: float) -> Weights:
        found = attention(part, multiplier)
        rows = {name: found[f"{name}_proj.weight"] for name in "qkv"}
        return {f"{n}_proj.bias": torch.zeros_like(row[:, 0]) for n, row in rows.items()} | found


class Qwen3(Qwen2):
    """Queries and keys are normalised in each head."""

    name = "Qwen3"
    qk_norm = True

    def own(self, reader: Reader, shape: dict[str, Any]) -> dict[str, Any]:
        return {**super().own(reader, shape), "attention_bias": shape["qkv_bias"]}

    def mixer(self, part: Part, multiplier: float) -> Weights:
        return attention(part, multiplier, eps_factor(FINE_EPS, EPS), o_bias=True)

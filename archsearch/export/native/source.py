"""The weights of a model, taken apart for another implementation.

Names are those that Llama has in transformers, where nothing else is said.

Shapes: D model width, E experts, F hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from archsearch.genome import Gene, Genome
    from archsearch.model import Model

Weights = dict[str, Tensor]
FIRST_NORM = "input_layernorm"


@dataclass(frozen=True, slots=True)
class Part:
    """A branch: its gene, its weights by name, and the gain of the norm before it."""

    gene: Gene
    weights: Mapping[str, Tensor]
    gain: Tensor | None
    inner: tuple[Part, ...] = ()
    """What a wrapper holds."""

    @property
    def params(self) -> dict[str, Any]:
        """All parameters of the block."""
        return dict(self.gene.params)


@dataclass(frozen=True, slots=True)
class Source:
    """All that a model knows."""

    genome: Genome
    parts: tuple[Part, ...]
    """One for each gene."""
    branch: float
    """What the output of a branch is multiplied by where it joins the stream."""
    logits: float
    """What the logits are multiplied by."""
    embedding: Tensor
    gain: Tensor
    """Of the norm before the readout."""
    readout: Tensor

    def frame(
        self, embedding: str = "model.embed_tokens", norm: str = "model.norm", logits: float = 1.0
    ) -> Weights:
        """What stands around the layers.

        Args:
            embedding: Name of the embeddings.
            norm: Name of the last norm.
            logits: What the target multiplies logits by itself. The rest goes into the last norm,
                so that tied embeddings stay tied.
        """
        return {
            f"{embedding}.weight": self.embedding,
            f"{norm}.weight": self.gain * (self.logits / logits),
            "lm_head.weight": self.readout,
        }

    def pairs(
        self,
        mixer: Callable[[Part], Weights],
        ffn: Callable[[Part], Weights],
        second_norm: str = "post_attention_layernorm",
        gain: Callable[[Tensor], Tensor] = lambda gain_D: gain_D,
    ) -> Weights:
        """Mixers, each with the feed-forward after it, as `model.layers.0` and so on.

        Args:
            mixer: The weights of a mixer, by their names in the layer.
            ffn: Those of a feed-forward.
            second_norm: Name of the norm before the feed-forward; that of the other is
                `input_layernorm`.
            gain: From the gain of a norm to its weight.
        """
        found: Weights = {}
        for index, part in enumerate(self.parts):
            place = f"model.layers.{index // 2}"
            norm, weights = (second_norm, ffn(part)) if index % 2 else (FIRST_NORM, mixer(part))
            if part.gain is not None:
                found[f"{place}.{norm}.weight"] = gain(part.gain)
            found |= under(place, weights)
        return found


def read(model: Model) -> Source:
    """Take a model apart; the tensors are its own."""
    stack: Any = model.stack
    norm: Any = model.final_norm
    return Source(
        model.genome,
        _parts(stack, model.genome.genes),
        stack.nodes[0].multiplier,
        model.logit_multiplier,
        model.embedding.weight.detach(),
        norm.weight.detach(),
        model.readout.weight.detach(),
    )


def _parts(stack: Any, genes: Sequence[Gene]) -> tuple[Part, ...]:
    parts = []
    for gene, node in zip(genes, stack.nodes, strict=True):
        branch = stack.branches[node.name]
        weights = {name: weight.detach() for name, weight in branch.block.named_parameters()}
        gain = branch.norm.weight.detach() if branch.place != "none" else None
        inner = _parts(branch.block.inner, gene.inner) if gene.inner else ()
        parts.append(Part(gene, weights, gain, inner))
    return tuple(parts)


def under(place: str, weights: Mapping[str, Tensor]) -> Weights:
    """The same weights with longer names."""
    return {f"{place}.{name}": weight for name, weight in weights.items()}


def mamba(part: Part, multiplier: float) -> Weights:
    """Mamba and Mamba-2, which have the same names everywhere."""
    last = part.weights["out_proj.weight"] * multiplier
    return {**part.weights, "out_proj.weight": last}


def attention(
    part: Part, multiplier: float, sharpness: float = 1.0, *, o_bias: bool = False
) -> Weights:
    """Attention in four matrices.

    Args:
        part: A branch with attention.
        multiplier: Factor of the output.
        sharpness: Factor of queries and keys before their norms, see `eps_factor`.
        o_bias: Whether the output has a bias as well, where the queries have one.
    """
    kv_heads = part.params["kv_heads"]
    width = part.weights["out.weight"].shape[0]
    head = width // part.params["heads"]
    rows, factors = (width, kv_heads * head, kv_heads * head), (sharpness, sharpness, 1.0)
    found = {"o_proj.weight": part.weights["out.weight"] * multiplier}
    for kind in ("weight", "bias"):
        if f"qkv.{kind}" in part.weights:
            cut = part.weights[f"qkv.{kind}"].split(rows)
            for name, factor, weight in zip("qkv", factors, cut, strict=True):
                found[f"{name}_proj.{kind}"] = weight * factor
    if o_bias and "q_proj.bias" in found:
        found["o_proj.bias"] = torch.zeros_like(found["q_proj.bias"][:width])
    return found | {
        n: w for n, w in part.weights.items() if n in ("q_norm.weight", "k_norm.weight")
    }


def feed_forward(part: Part, multiplier: float) -> Weights:
    """SwiGLU or GeGLU in three matrices; ReLU^2 in two."""
    last = part.weights["down.weight"] * multiplier
    weights = {**part.weights, "down.weight": last}
    return {name.replace(".", "_proj."): weight for name, weight in weights.items()}


def experts(part: Part, multiplier: float) -> Weights:
    """The experts alone: `gate_up_proj` (E, 2F, D), gate first, and `down_proj` (E, D, F)."""
    return {
        "gate_up_proj": part.weights["experts.gate_up_proj"],
        "down_proj": part.weights["experts.down_proj"] * multiplier,
    }


def router(part: Part) -> Weights:
    """The router of a mixture of experts."""
    name = "gate" if "gate.weight" in part.weights else "noisy_gate"
    return {"weight": part.weights[f"{name}.weight"]}


def shared_expert(part: Part, multiplier: float) -> Weights:
    """The feed-forward of all tokens beside the experts: of width 1 and 0 where there is none."""
    width = part.weights["experts.down_proj"].shape[1]
    found = {}
    for name, shape in (("gate", (1, width)), ("up", (1, width)), ("down", (width, 1))):
        own = part.weights.get(f"shared_experts.{name}_proj.weight")
        idle = part.weights["experts.down_proj"].new_zeros(shape)
        found[f"{name}_proj.weight"] = idle if own is None else own
    found["down_proj.weight"] = found["down_proj.weight"] * multiplier
    return found


def eps_factor(own: float, eps: float) -> float:
    """What the input of a norm with `eps` is multiplied by, so that it acts as one with `own`.

    c x / sqrt(mean(c^2 x^2) + eps) = x / sqrt(mean(x^2) + eps / c^2).
    """
    return (eps / own) ** 0.5

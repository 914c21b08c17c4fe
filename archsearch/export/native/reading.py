"""Reads a genome for one target, and says in words what does not fit.

A layer is a gene; they are counted from 1, as the streams of `Gene.inputs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from archsearch.catalogue import block_info
from archsearch.dims import word
from archsearch.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Collection

    from archsearch.dims import Value
    from archsearch.genome import Gene, Genome

CONTEXT = 32_768
"""Longest context that a config says. No genome has one, and plain RoPE reads none."""
TRAINING = frozenset({"aux", "z_loss"})
"""Parameters of blocks that have no effect outside training."""


class Unfit(ExportError):
    """A genome does not fit a target."""

    def __init__(self, text: str, layer: int = 0) -> None:
        super().__init__(text)
        self.layer = layer
        """The layer that does not fit; 0 for what stands around the layers."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A gene with its number; what a wrapper holds has the number of the wrapper."""

    number: int
    gene: Gene

    @property
    def params(self) -> dict[str, Any]:
        """All parameters of the block."""
        return dict(self.gene.params)


class Reader:
    """The layers of a genome of which all blocks are known to a target.

    Raises:
        Unfit: if the frame, a block, or how the layers are joined has no equivalent.
    """

    def __init__(
        self, genome: Genome, target: str, blocks: Collection[str], *, shares: bool = False
    ) -> None:
        self.genome, self.target = genome, target
        self.layers = tuple(Layer(n, gene) for n, gene in enumerate(genome.genes, 1))
        for layer in self.layers:
            name = layer.gene.block
            self.need(layer, name in blocks, f"{name} has no equivalent in {target}")
        self._check_frame()
        for layer in self.layers:
            if layer.gene.share and not shares:
                self._refuse_sharing(layer)
            if layer.gene.inputs:
                read = " and ".join(f"stream {n}" for n in layer.gene.inputs)
                self.refuse(layer, f"reads {read}", f"{target} reads the last one")

    def _check_frame(self) -> None:
        genome = self.genome
        found = {
            "LayerNorm": genome.norm != "rms",
            f"{genome.norm_place} norms": genome.norm_place != "pre",
            f"embeddings of rank {genome.embedding_rank}": genome.embedding_rank is not None,
            f"logits capped at {word(genome.soft_cap)}": genome.soft_cap is not None,
            f"{genome.pause_tokens} pause tokens": genome.pause_tokens > 0,
        }
        wrong = [what for what, present in found.items() if present]
        if wrong:
            raise Unfit(f"the model has {wrong[0]}; {self.target} has RMSNorm before every block "
                        "and plain embeddings")  # fmt: skip

    def open(self) -> None:
        """Put what wrappers hold in their place.

        Raises:
            Unfit: if that shares its weights.
        """
        self.layers = tuple(
            Layer(layer.number, gene)
            for layer in self.layers
            for gene in layer.gene.inner or (layer.gene,)
        )
        for layer in self.layers:
            if layer.gene.share:
                self._refuse_sharing(layer)

    def _refuse_sharing(self, layer: Layer) -> NoReturn:
        self.refuse(layer, "shares its weights", f"{self.target} has a set for every layer")

    def refuse(self, layer: Layer, has: str, instead: str) -> NoReturn:
        """Raise with what a layer has and what the target has instead."""
        raise Unfit(f"layer {layer.number}: {layer.gene.block} {has}; {instead}", layer.number)

    def need(self, layer: Layer, fits: bool, text: str) -> None:
        """Raise with the text unless something fits."""
        if not fits:
            raise Unfit(f"layer {layer.number}: {text}", layer.number)

    def of(self, *blocks: str) -> list[Layer]:
        """The layers with one of these blocks."""
        return [layer for layer in self.layers if layer.gene.block in blocks]

    def uniform(self, block: str, but: Collection[str] = ()) -> dict[str, Any]:
        """The parameters of a block, which must be the same in all of its layers.

        Args:
            block: Its name.
            but: Parameters that may differ.

        Returns:
            Those of the first layer; nothing where there is no such layer.
        """
        layers = self.of(block)
        if not layers:
            return {}
        first = layers[0].params
        for layer in layers[1:]:
            for name, value in layer.params.items():
                if name not in TRAINING and name not in but and value != first[name]:
                    has = f"with {name} {word(value)}, {word(first[name])} in layer "
                    has += str(layers[0].number)
                    self.refuse(layer, has, f"{self.target} has one for all layers")
        return first

    def every(self, block: str, name: str, legal: Collection[Value]) -> None:
        """Require that a parameter of a block is one of some values in every layer."""
        words = " or ".join(map(word, legal))
        for layer in self.of(block):
            value = layer.params[name]
            if value not in legal:
                self.refuse(layer, f"with {name} {word(value)}", f"{self.target} has {words}")

    def pairs(self) -> list[tuple[Layer, Layer]]:
        """The layers as mixers, each with the feed-forward after it."""
        alternates = f"{self.target} alternates mixers and feed-forwards"
        for layer in self.layers:
            kind = block_info(layer.gene.block).kind
            if (kind == "ffn") != (layer.number % 2 == 0):
                place = "a mixer" if kind == "ffn" else "a feed-forward"
                self.refuse(layer, f"stands where {place} should", alternates)
        last = self.layers[-1]
        self.need(last, len(self.layers) % 2 == 0, f"nothing follows the last mixer; {alternates}")
        return list(zip(self.layers[::2], self.layers[1::2], strict=True))

    def attention(
        self,
        *,
        pos: Collection[str] = ("rope",),
        rotary: Collection[float] = (1.0,),
        bias: Collection[bool] = (False,),
        qk_norm: bool = False,
        but: Collection[str] = (),
    ) -> dict[str, Any]:
        """The shape of all attention layers, without a window unless `but` lets it differ.

        Returns:
            Parameters of the block; nothing where there is none.
        """
        legal: dict[str, Collection[Value]] = {
            "pos": pos, "rotary": rotary, "qkv_bias": bias, "qk_norm": (qk_norm,),
        }  # fmt: skip
        legal |= {} if "window" in but else {"window": (None,)}
        for name, values in legal.items():
            self.every("attention", name, values)
        return self.uniform("attention", but)

    def mamba2(self) -> dict[str, Any]:
        """The shape of all Mamba-2 layers, with `heads`; nothing where there is none."""
        self.every("mamba2", "neg_eigval", (False,))
        params = self.uniform("mamba2")
        if params:
            params["heads"] = params["expand"] * self.genome.d_model // params["head_dim"]
        return params

    def feed_forward(self, act: Collection[str]) -> dict[str, Any]:
        """The shape of all feed-forwards, with `hidden`; nothing where there is none."""
        self.every("swiglu", "act", act)
        params = self.uniform("swiglu")
        if params:
            params["hidden"] = round(params["mult"] * self.genome.d_model)
        return params

    def experts(self, *, shared: bool) -> dict[str, Any]:
        """The shape of all mixtures of experts, with `hidden` and `normed`.

        Noisy top-k is noisy in training alone; else its gates are those of `softmax`.

        Returns:
            Parameters of the block; nothing where there is none.
        """
        self.every("moe", "router", ("softmax", "noisy_top_k"))
        if not shared:
            self.every("moe", "shared", (0,))
        params = self.uniform("moe", ("router",))
        if params:
            params["hidden"] = round(params["mult"] * self.genome.d_model)
            params["normed"] = params["top_k"] > 1 and params["renormalise"]
        return params


def rope(params: dict[str, Any], **more: Any) -> dict[str, Any]:
    """RoPE as transformers spells it."""
    return {"rope_type": "default", "rope_theta": params.get("theta", 10_000.0), **more}


def heads(params: dict[str, Any]) -> dict[str, Any]:
    """Numbers of heads as transformers spells them; one where there is no attention."""
    count = params.get("heads", 1)
    return {
        "num_attention_heads": count,
        "num_key_value_heads": params.get("kv_heads") or count,
        "max_position_embeddings": CONTEXT,
    }


def mamba2_fields(genome: Genome, shape: dict[str, Any]) -> dict[str, Any]:
    """Mamba-2 as the relatives of Bamba spell it; anything legal where there is none."""
    expand = shape.get("expand", 2)
    return {
        "mamba_n_heads": shape.get("heads", 1),
        "mamba_d_head": shape.get("head_dim", expand * genome.d_model),
        "mamba_n_groups": shape.get("groups", 1),
        "mamba_d_state": shape.get("d_state", 1),
        "mamba_d_conv": shape.get("conv", 4),
        "mamba_expand": expand,
    }

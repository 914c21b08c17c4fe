"""Zamba2: Mamba-2 layers, some of which read a shared attention block as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from archsearch.export.native.reading import Layer, Reader, Unfit, heads, rope
from archsearch.export.native.source import mamba, under
from archsearch.export.native.target import EPS, LEAST_STEP, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from archsearch.export.native.source import Part, Source, Weights
    from archsearch.genome import Gene, Genome


class Zamba2(Target):
    """All LoRAs have one rank: smaller ones, and those that are missing, are filled up with 0."""

    name = "Zamba2"
    blocks = ("mamba2", "shared_attention")

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks, shares=True)
        layers = _layers(reader)
        shared = reader.of("shared_attention")
        attends, shape = reader.uniform("shared_attention"), reader.mamba2()
        if not shared:
            raise Unfit(f"no layer is shared_attention; {self.name} has one")
        blocks = _blocks(reader, shared)
        if blocks < len(shared) and not genome.tie_embeddings:
            has = "embeddings of its own for the readout"
            raise Unfit(f"the model has {has}; transformers shares the blocks of {self.name} only "
                        "where embeddings are tied too")  # fmt: skip
        return {
            "hidden_size": genome.d_model,
            "intermediate_size": attends["mult"] * genome.d_model,
            "num_hidden_layers": len(layers),
            "layers_block_type": ["hybrid" if by else "linear_attention" for by, _ in layers],
            **heads(attends),
            "num_mem_blocks": blocks,
            "use_shared_attention_adapter": attends["qkv_lora_rank"] > 0,
            "adapter_rank": _rank(attends),
            "use_mem_rope": attends["pos"] == "rope",
            "rope_parameters": rope(attends),
            "mamba_d_state": shape["d_state"],
            "mamba_d_conv": shape["conv"],
            "mamba_expand": shape["expand"],
            "mamba_ngroups": shape["groups"],
            "n_mamba_heads": shape["heads"],
            "time_step_min": LEAST_STEP,
            "rms_norm_eps": EPS,
            "tie_word_embeddings": genome.tie_embeddings,
        }

    def weights(self, source: Source) -> Weights:
        found = source.frame(norm="model.final_layernorm")
        shares = _shares([part.gene for part in source.parts])
        count, layer, uses = len(set(shares)), 0, 0
        before: Part | None = None
        for part in source.parts:
            if part.gene.block == "shared_attention":
                before = part
                continue
            place = f"model.layers.{layer}"
            if before:
                last = before.weights[f"linears.{uses // count}.weight"]
                found[f"{place}.linear.weight"] = last
                block = _shared(before, uses % count, count, len(shares))
                found |= under(f"{place}.shared_transformer", block)
                place, before, uses = f"{place}.mamba_decoder", None, uses + 1
            assert part.gain is not None
            found[f"{place}.input_layernorm.weight"] = part.gain
            found |= under(f"{place}.mamba", mamba(part, source.branch))
            layer += 1
        return found


def _layers(reader: Reader) -> list[tuple[Layer | None, Layer]]:
    """The Mamba-2 layers, each with the shared block that it reads."""
    found: list[tuple[Layer | None, Layer]] = []
    by: Layer | None = None
    for layer in reader.layers:
        if layer.gene.block == "shared_attention":
            if by:
                has = "before the same mamba2 as another"
                reader.refuse(layer, has, f"{reader.target} has one before each")
            by = layer
            continue
        if layer.gene.share:
            reader.refuse(layer, "shares its weights", f"{reader.target} shares attention alone")
        found.append((by, layer))
        by = None
    return found


def _shares(genes: list[Gene]) -> list[str]:
    """Which weights each use of a shared block has; those that are used once by their place."""
    return [g.share or str(i) for i, g in enumerate(genes) if g.block == "shared_attention"]


def _blocks(reader: Reader, shared: list[Layer]) -> int:
    """How many blocks take turns."""
    shares = _shares([layer.gene for layer in reader.layers])
    first = list(dict.fromkeys(shares))
    for use, (layer, share) in enumerate(zip(shared, shares, strict=True)):
        wanted = first[use % len(first)]
        if share != wanted:
            reader.refuse(layer, "comes out of turn", f"{reader.target}'s blocks take turns")
    return len(first)


def _rank(params: dict[str, Any]) -> int:
    return max(1, params["lora_rank"], params["qkv_lora_rank"])


def _shared(part: Part, turn: int, count: int, uses: int) -> Weights:
    """A shared block, with the adapters of all of its uses: every `count`th one from `turn` on."""
    own, rank = part.weights, _rank(part.params)
    found = {
        "input_layernorm.weight": own["norm.weight"],
        "pre_ff_layernorm.weight": own["mlp_norm.weight"],
        "self_attn.o_proj.weight": own["out.weight"],
        "feed_forward.gate_up_proj.weight": own["gate_up.weight"],
        "feed_forward.down_proj.weight": own["down.weight"],
    }
    for name, weight in zip("qkv", own["qkv.weight"].chunk(3), strict=True):
        found[f"self_attn.{name}_proj.weight"] = weight
    for at, use in enumerate(range(turn, uses, count)):
        shape = own["gate_up.weight"].shape
        a, b = _lora(own, f"mlp_loras.{at}", rank, shape)
        adapter = f"feed_forward.gate_up_proj_adapter_list.{use}"
        found |= {f"{adapter}.0.weight": a, f"{adapter}.1.weight": b}
        for n, name in enumerate("qkv" if part.params["qkv_lora_rank"] else ""):
            shape = found[f"self_attn.{name}_proj.weight"].shape
            a, b = _lora(own, f"qkv_loras.{3 * at + n}", rank, shape)
            adapter = f"self_attn.linear_{name}_adapter_list.{use}"
            found |= {f"{adapter}.0.weight": a, f"{adapter}.1.weight": b}
    return found


def _lora(
    own: Mapping[str, Tensor], name: str, rank: int, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Both factors of a LoRA of a matrix of that shape, filled up to a rank."""
    outputs, inputs = shape
    like = own["out.weight"]
    a, b = like.new_zeros(rank, inputs), like.new_zeros(outputs, rank)
    if f"{name}.a.weight" in own:
        own_a = own[f"{name}.a.weight"]
        a[: len(own_a)], b[:, : len(own_a)] = own_a, own[f"{name}.b.weight"]
    return a, b

"""A genome as a published architecture, where it is one: a directory that needs no code of ours.

A target fits if it computes the same function with weights of the genome alone, and with constants
where it has a part that the genome lacks (a gate, a bias, an adapter). Weights that a genome shares
are never written twice, but for tied embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from archsearch.errors import ExportError, nearest
from archsearch.export.native.falcon_h1 import FalconH1
from archsearch.export.native.granite import Bamba, GraniteMoeHybrid
from archsearch.export.native.hub import transformers
from archsearch.export.native.jamba import Jamba
from archsearch.export.native.lfm2 import Lfm2
from archsearch.export.native.llama import Llama, Mistral, Qwen2, Qwen3
from archsearch.export.native.mamba import Mamba, Mamba2
from archsearch.export.native.nemotron_h import NemotronH
from archsearch.export.native.qwen3_next import Qwen3Next
from archsearch.export.native.reading import Unfit
from archsearch.export.native.source import read
from archsearch.export.native.zamba2 import Zamba2

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from archsearch.export.native.target import Target
    from archsearch.genome import Genome
    from archsearch.model import Model

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Mamba2(), Mamba(), Llama(), Mistral(), Qwen2(), Qwen3(), NemotronH(), GraniteMoeHybrid(),
        Zamba2(), Bamba(), FalconH1(), Qwen3Next(), Jamba(), Lfm2(),
    )
}  # fmt: skip
"""In the order in which they are tried: those of one mixer first, which more tools know, then
hybrids. By the names that their classes in transformers begin with."""
SYMBOLS = {"mamba2": "M", "attention": "*", "swiglu": "-", "moe": "E"}
"""Of a pattern of Megatron's hybrid models (`megatron.core.ssm.mamba_hybrid_layer_allocation`)."""
OTHERWISE = "--format hf writes any genome"


def candidates(genome: Genome) -> list[tuple[str, str]]:
    """Every target with the reason why the genome does not fit it; "" where it does."""
    return [(name, str(_refusal(target, genome) or "")) for name, target in TARGETS.items()]


def fitting(genome: Genome, name: str | None = None) -> Target:
    """The first target that a genome fits, or the named one.

    Raises:
        ExportError: saying which layer does not fit it, or the one that comes nearest, and why.
    """
    if name is not None and name not in TARGETS:
        raise ExportError(f"unknown architecture '{name}'; {nearest(name, TARGETS)}")
    targets = [TARGETS[name]] if name else list(TARGETS.values())
    refusals = []
    for target in targets:
        refusal = _refusal(target, genome)
        if refusal is None:
            return target
        known = sum(gene.block in target.blocks for gene in genome.genes)
        refusals.append((known, refusal.layer, str(refusal)))
    why = max(refusals, key=lambda found: found[:2])[2]
    blocks = {block for target in targets for block in target.blocks}
    for number, gene in enumerate(genome.genes, 1):
        if gene.block not in blocks:
            where = name or "any architecture"
            why = f"layer {number}: {gene.block} has no equivalent in {where}"
            break
    raise ExportError(f"{why}; {OTHERWISE}")


def native(
    model: Model,
    folder: Path,
    tokenizer_files: Mapping[str, str] | None = None,
    end: int | None = None,
    name: str | None = None,
) -> str:
    """Write a model as a directory of a published architecture: config and safetensors.

    Its logits are those of the model: multipliers of muP stand in the config, or in the weights.

    Args:
        model: With its weights, trained or not.
        folder: Where; files of the same names are replaced.
        tokenizer_files: Texts of files that go with it, by name.
        end: The token between documents; None if there is none.
        name: The architecture, one of `TARGETS`; None for the first that fits.

    Returns:
        The name of the architecture.

    Raises:
        ExportError: if none fits, or transformers is missing.
    """
    if model.readout_kind != "token":
        raise ExportError("a model that rebuilds its input from a code is no language model")
    target = fitting(model.genome, name)
    source = read(model)
    fields = target.fields(model.genome) | target.scalars(source)
    # without a token for padding, every row of the embeddings can be trained
    fields |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None}
    with transformers() as package:
        config = getattr(package, f"{target.name}Config")(vocab_size=model.vocab, **fields)
        with torch.device("meta"):
            written = getattr(package, f"{target.name}ForCausalLM")(config)
        written.load_state_dict(target.weights(source), assign=True)
        written.save_pretrained(folder)
    for file, text in (tokenizer_files or {}).items():
        (folder / file).write_text(text, encoding="utf-8")
    return target.name


def pattern(genome: Genome) -> str:
    """The layers as Megatron writes them: M Mamba-2, * attention, - feed-forward, E experts.

    Raises:
        ExportError: if a layer has no symbol.
    """
    for number, gene in enumerate(genome.genes, 1):
        odd = {
            "is none of M * - E": gene.block not in SYMBOLS,
            "shares its weights": gene.share is not None,
            "reads another stream than the last": bool(gene.inputs),
            "has negative eigenvalues": bool(dict(gene.params).get("neg_eigval")),
        }
        what = next((what for what, present in odd.items() if present), None)
        if what:
            where = f"layer {number}: {gene.block} {what}"
            raise ExportError(f"{where}, which Megatron's patterns cannot say; {OTHERWISE}")
    return "".join(SYMBOLS[gene.block] for gene in genome.genes)


def _refusal(target: Target, genome: Genome) -> Unfit | None:
    """Why a genome does not fit a target; None where it does."""
    try:
        target.fields(genome)
    except Unfit as refusal:
        return refusal
    return None

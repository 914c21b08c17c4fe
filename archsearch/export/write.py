"""A model in one of the formats that other tools read, checked before it takes its place."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

from safetensors.torch import save_file

from archsearch.drawing import draw_svg
from archsearch.errors import ExportError
from archsearch.export.architecture import weights
from archsearch.export.card import PICTURE, card
from archsearch.export.check import check
from archsearch.export.folder import whole
from archsearch.export.hf_folder import hf_files
from archsearch.export.torch_file import NAME, torch_source
from archsearch.export.vocabulary import tokenizer_files
from archsearch.space_yaml import dump

if TYPE_CHECKING:
    from pathlib import Path

    from archsearch.export.origin import Origin

Kind = Literal["hf", "torch", "native", "gguf", "pattern"]
WEIGHTS = "model.safetensors"


def write(origin: Origin, target: Path, kind: Kind, *, force: bool = False) -> None:
    """Write a model into a directory; on failure nothing is left.

    Args:
        origin: The model.
        target: Directory to make.
        kind: The format.
        force: Replace an earlier export there. Other files in the directory stay.

    Raises:
        ExportError: if the format cannot hold the model, what was written is not equal to it, or
            the directory holds something else or cannot be written.
    """
    genome = origin.model.genome
    about = {"kind": kind, "weights": origin.what, "genome": genome.to_json(), "key": genome.key}
    with whole(target, about, force=force) as folder:
        fill(origin, folder, kind, target.name)
        if kind in ("hf", "torch"):
            check(folder, kind, origin.model)


def fill(origin: Origin, folder: Path, kind: Kind, name: str) -> None:
    """Write the files of a model, nothing is checked.

    Raises:
        ExportError: if the format cannot hold the model.
    """
    if kind == "hf":
        _fill_hf(origin, folder, name)
    elif kind == "torch":
        (folder / NAME).write_text(torch_source(origin.model), encoding="utf-8")
        (folder / "model.yaml").write_text(dump(origin.model.genome), encoding="utf-8")
        save_file(weights(origin.model), folder / WEIGHTS)
    else:
        _fill_other(origin, folder, kind)


def _fill_hf(origin: Origin, folder: Path, name: str) -> None:
    model, end = origin.model, origin.separator
    files = hf_files(model, end) | {"README.md": card(origin, name)}
    files[PICTURE] = draw_svg(model.genome)
    if origin.tokenizer is not None and end is not None:
        files |= tokenizer_files(origin.tokenizer, model.vocab, end)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    named = {f"model.{name}": tensor for name, tensor in weights(model).items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})


def _fill_other(origin: Origin, folder: Path, kind: Kind) -> None:
    """Formats of other programs, which hold some models only; each has a module of its own."""
    modules = {"native": "native", "gguf": "gguf", "pattern": "native"}
    try:
        module = importlib.import_module(f"archsearch.export.{modules[kind]}")
    except ModuleNotFoundError as error:
        raise ExportError(f"the format {kind} needs the package {error.name}") from None
    if kind == "pattern":
        (folder / "pattern.txt").write_text(module.pattern(origin.model.genome) + "\n")
    elif kind == "native":
        module.native(origin.model, folder)
    else:
        module.gguf(origin.model, folder)

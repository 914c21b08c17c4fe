"""A model in one of the formats that other tools read, checked before it takes its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import save_file

from archsearch.drawing import draw_svg
from archsearch.export.architecture import weights
from archsearch.export.card import PICTURE, card
from archsearch.export.check import check
from archsearch.export.folder import whole
from archsearch.export.gguf import gguf
from archsearch.export.hf_folder import hf_files
from archsearch.export.native import native, pattern
from archsearch.export.torch_file import NAME, torch_source
from archsearch.export.vocabulary import tokenizer_files
from archsearch.space_yaml import dump

if TYPE_CHECKING:
    from pathlib import Path

    from archsearch.export.origin import Origin
    from archsearch.genome import Genome

Kind = Literal["hf", "torch", "native", "gguf"]
WEIGHTS, PATTERN = "model.safetensors", "pattern.txt"


def write(origin: Origin, target: Path, kind: Kind, *, force: bool = False) -> str:
    """Write a model into a directory and compare it with itself; on failure nothing is left.

    Args:
        origin: The model.
        target: Directory to make.
        kind: The format.
        force: Replace an earlier export there. Other files in the directory stay.

    Returns:
        What other programs know it as: a published architecture, or nothing.

    Raises:
        ExportError: if the format cannot hold the model, what was written is not equal to it, or
            the directory holds something else or cannot be written.
    """
    about = {"kind": kind, "weights": origin.what, **_named(origin.model.genome)}
    with whole(target, about, force=force) as folder:
        known_as = fill(origin, folder, kind, target.name)
        check(folder, kind, origin.model)
    return known_as


def write_pattern(genome: Genome, target: Path, *, force: bool = False) -> str:
    """Write the layers of a genome as Megatron does, into a directory; they are returned too.

    Raises:
        ExportError: if a layer has no symbol, or the directory holds something else.
    """
    said = pattern(genome)
    with whole(target, {"kind": "pattern", **_named(genome)}, force=force) as folder:
        (folder / PATTERN).write_text(said + "\n", encoding="utf-8")
    return said


def _named(genome: Genome) -> dict[str, Any]:
    return {"genome": genome.to_json(), "key": genome.key}


def fill(origin: Origin, folder: Path, kind: Kind, name: str) -> str:
    """Write the files of a model, nothing is checked.

    Returns:
        See `write`.

    Raises:
        ExportError: if the format cannot hold the model.
    """
    model, end = origin.model, origin.separator
    if kind == "native":
        return native(model, folder, _tokenizer(origin), end)
    if kind == "gguf":
        gguf(model, folder, _tokenizer(origin), end)
    elif kind == "hf":
        _fill_hf(origin, folder, name)
    else:
        (folder / NAME).write_text(torch_source(model), encoding="utf-8")
        (folder / "model.yaml").write_text(dump(model.genome), encoding="utf-8")
        save_file(weights(model), folder / WEIGHTS)
    return ""


def _fill_hf(origin: Origin, folder: Path, name: str) -> None:
    model = origin.model
    files = hf_files(model, origin.separator) | _tokenizer(origin)
    files |= {"README.md": card(origin, name), PICTURE: draw_svg(model.genome)}
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    named = {f"model.{name}": tensor for name, tensor in weights(model).items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})


def _tokenizer(origin: Origin) -> dict[str, str]:
    """The files of the tokenizer; none for a model of a task."""
    if origin.tokenizer is None or origin.separator is None:
        return {}
    return tokenizer_files(origin.tokenizer, origin.model.vocab, origin.separator)

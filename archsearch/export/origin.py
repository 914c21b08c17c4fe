"""What is exported: a model with its weights, and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from archsearch.errors import ExportError, RunError, SpaceError
from archsearch.export.files import filled, no_weights
from archsearch.genome import Genome
from archsearch.model import Model, build
from archsearch.mup import Base
from archsearch.scale import checkpoint
from archsearch.scale.tokens import BYTE, kept, tokenizer
from archsearch.train import generator

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from archsearch.model import Readout


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model that may be exported."""

    model: Model
    what: str
    """Where its weights come from, in words."""
    tokenizer: str | None = None
    """The tokenizer of a model of text; None for one of a task."""
    separator: int | None = None
    """The token between documents."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """What was measured of it, with units."""


def untrained(genome: Genome, name: str) -> Origin:
    """A model of text with random weights.

    Args:
        genome: The architecture.
        name: Its tokenizer: byte, a tokenizer.json, a directory that has one; empty for byte.

    Raises:
        CorpusError: if the tokenizer cannot be read.
    """
    name = name or BYTE
    known = tokenizer(name)
    model = build(genome, known.vocab, generator=generator("export", genome.key)).eval()
    return Origin(
        model=model, what="random weights", tokenizer=name, separator=known.separator
    )  # fmt: skip


def of_task(genome: Genome, weights: Path, task: str | None) -> Origin | None:
    """A model of a search, with its weights for one task; None if a run does not keep them.

    Args:
        genome: The architecture.
        weights: What `save_weights` wrote.
        task: Which weights; by default those of the first task.

    Raises:
        ExportError: if there are none for the task, or they are damaged.
    """
    if not (weights / "tasks.json").is_file():
        return None
    try:
        tasks: dict[str, Any] = json.loads((weights / "tasks.json").read_text())
        name = task or next(iter(tasks))
        if name not in tasks:
            raise no_weights(genome.key, name, tasks)
        about = tasks[name]
        file, vocab, readout = (about[key] for key in ("file", "vocab", "readout"))
        where = about.get("trained", "one training of the search or of its finals")
        figures = {f"accuracy on {name}": f"{about['accuracy']:.3f} on held-out rows ({where})"}
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise ExportError(f"{weights / 'tasks.json'} is damaged") from None
    known: Readout = readout
    model = filled(genome, int(vocab), weights / file, known)
    of_text = about.get("tokenizer")
    return Origin(
        model=model, what=f"trained on the task {name}", figures=figures, tokenizer=of_text,
        separator=tokenizer(of_text).separator if of_text else None,
    )  # fmt: skip


def scaled_up(folder: Path, name: str) -> Origin | None:
    """A model that `archsearch scale` trained; None if there is none in a directory.

    Args:
        folder: What `scale` wrote, or one of the trainings in it; the winner unless one is named.
        name: The tokenizer that it was trained with; empty for the one beside it, or bytes.

    Raises:
        ExportError: if files are damaged, or the tokenizer is not that of the model.
    """
    for place in (folder, folder / "winner"):
        try:
            known = checkpoint.latest(place)
        except RunError as error:
            raise ExportError(str(error)) from None
        if known:
            return _of_checkpoint(place, *known, name)
    return None


def _of_checkpoint(place: Path, step: Path, state: dict[str, Any], name: str) -> Origin:
    file, about = step / "model.safetensors", state["about"]
    try:
        with safe_open(file, "pt") as tensors:
            vocab = tensors.get_slice("embedding.weight").get_shape()[0]
        genome, base = Genome.from_json(about["genome"]), Base(**about["base"])
    except (OSError, SafetensorError, KeyError, TypeError, SpaceError) as error:
        text = " ".join(str(error).split())[:200]
        raise ExportError(f"{step} is damaged or from another version: {text}") from None
    name = name or kept(place, 1) or BYTE
    known = tokenizer(name)
    if known.vocab != vocab:
        hint = "name the one it was trained with: --tokenizer FILE" if name == BYTE else ""
        raise ExportError(
            f"the tokenizer {name} has {known.vocab} tokens, the model in {place} {vocab}; {hint}"
        )
    model = filled(genome, vocab, file, base=base)
    marks = state.get("marks") or []
    figures = {"steps": str(state["step"])}
    if marks:
        figures["held-out loss"] = f"{marks[-1]['held_out']:.3f} nats per token"
    figures |= _result(place)
    return Origin(
        model=model, what="trained on text by archsearch scale", tokenizer=name,
        separator=known.separator, figures=figures,
    )  # fmt: skip


def below(folder: Path) -> str:
    """The trainings of `scale` one and two levels below a directory, as the end of an error."""
    inside = sorted({str(step.parent) for step in folder.glob("*/*/step-*")})
    return f"; models in it: {', '.join(inside)}" if inside else ""


def _result(place: Path) -> dict[str, str]:
    """What `scale` says of a training that came to its end."""
    try:
        told = json.loads((place.parent / "result.json").read_text())
        own = told[place.name]
        return {
            "bits per byte": f"{own['bits_per_byte']:.3f}",
            "training tokens": f"{own['tokens']:,}",
            "text": str(told["text"]["name"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}

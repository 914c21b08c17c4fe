"""Behind `archsearch export`: what is meant by a source, and what is said of the outcome."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from archsearch.errors import ExportError, RunError
from archsearch.export.files import export
from archsearch.export.gguf import FILE
from archsearch.export.origin import Origin, below, of_task, scaled_up, untrained
from archsearch.export.write import PATTERN, Kind, write, write_pattern
from archsearch.inference import load
from archsearch.report.session import pick
from archsearch.space_yaml import load_genome

if TYPE_CHECKING:
    from rich.console import Console

    from archsearch.genome import Genome
    from archsearch.search.study import Record, Study

Format = Literal["auto", "yaml", "hf", "native", "gguf", "pattern", "torch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What was asked for."""

    format: Format
    task: str | None
    """Which weights, where a run has several."""
    tokenizer: str
    """Of a model of text; empty for that of its training, or bytes."""
    force: bool


def export_run(
    study: Study, folder: Path, trial: str, target: Path, asked: Asked, console: Console
) -> None:
    """Export trials of a run: the best, one by its index, or each of the front.

    Raises:
        RunError: if there is no such trial.
        ExportError: if it cannot be written in this format; others of the front are.
    """
    if asked.task and asked.format in ("auto", "yaml", "pattern"):
        what = "no weights" if asked.format == "pattern" else "the weights of every task"
        raise ExportError(
            f"{'pattern' if asked.format == 'pattern' else 'yaml'} holds {what}; leave --task "
            f"{asked.task} out, or choose --format hf, torch, native or gguf for those of one task"
        )
    if trial != "front":
        _next(console, _export_trial(pick(study, trial), folder, target, asked, console))
        return
    front = study.front()
    if not front:
        pick(study, "best")
    if target.exists() and not asked.force and (target.is_file() or any(target.iterdir())):
        raise ExportError(f"{target} is not empty; nothing was written. --force replaces it")
    refused, follow = [], list[str]()
    for record in front:
        try:
            place = target / f"trial-{record.index}"
            follow.append(_export_trial(record, folder, place, asked, console))
        except ExportError as error:
            refused.append(f"trial {record.index} was not written: {error}")
    _next(console, next(filter(None, follow), ""))
    if refused:
        raise ExportError("\n".join(refused))


def export_other(source: str, target: Path, asked: Asked, console: Console) -> None:
    """Export what `scale` or an earlier export wrote, or a space of one member.

    Raises:
        SpaceError: if there is no such thing, or the space has several members.
        RunError: if it is a directory of something else.
        ExportError: if it is damaged or cannot be written in this format.
    """
    place = Path(source)
    origin = scaled_up(place, asked.tokenizer) if place.is_dir() else None
    if origin is None and (place / "model.yaml").is_file() and (place / "config.json").is_file():
        loaded = load(place, asked.task or "")
        origin = Origin(
            model=loaded.model, what=f"those of {place.resolve().name}",
            tokenizer=loaded.vocabulary.tokenizer or None, separator=loaded.vocabulary.end,
        )  # fmt: skip
    if origin is None and place.is_dir():
        raise RunError(f"{source} holds no run, no training of `archsearch scale` and no "
                       f"export{below(place)}")  # fmt: skip
    if asked.task and not (place / "model.yaml").is_file():
        raise ExportError(f"{source} has no weights of tasks; leave --task {asked.task} out")
    if origin is None:
        genome = load_genome(source)
        if asked.format == "yaml":
            export(genome, None, target, force=asked.force)
            _told(console, target, genome, "without weights")
            return
        if asked.format == "pattern":
            _next(console, _pattern(genome, target, asked, console))
            return
        origin = untrained(genome, asked.tokenizer)
    elif asked.format == "yaml":
        raise ExportError("yaml holds weights of a search alone; these fit --format hf or torch")
    _next(console, _write(origin, target, asked, console))


def _export_trial(
    record: Record, folder: Path, target: Path, asked: Asked, console: Console
) -> str:
    """Export one trial; what may be typed next."""
    weights = folder / "weights" / record.genome.key
    if asked.format in ("auto", "yaml"):
        export(record.genome, weights, target, force=asked.force)
        _told(console, target, record.genome)
        if not (weights / "tasks.json").is_file():
            console.print(NO_WEIGHTS)
            return ""
        return _python(f"import archsearch; print(archsearch.load('{target}'))")
    if asked.format == "pattern":
        return _pattern(record.genome, target, asked, console)
    origin = of_task(record.genome, weights, asked.task)
    if origin is None:
        console.print(NO_WEIGHTS)
        origin = untrained(record.genome, asked.tokenizer)
    return _write(origin, target, asked, console)


NO_WEIGHTS = (
    "without weights: a run keeps those of its front and finalists, on the machine that trained "
    "them"
)


def _write(origin: Origin, target: Path, asked: Asked, console: Console) -> str:
    """Write a model; what may be typed next."""
    if asked.format == "pattern":
        return _pattern(origin.model.genome, target, asked, console)
    kind: Kind = "hf" if asked.format == "auto" or asked.format == "yaml" else asked.format
    known_as = write(origin, target, kind, force=asked.force)
    said = f"as {known_as}, {origin.what}" if known_as else origin.what
    _told(console, target, origin.model.genome, said)
    if kind == "torch":
        return _python(
            f"import sys; sys.path.append('{target}'); import model; print(model.load())"
        )
    if kind == "native":
        known = "from transformers import AutoModelForCausalLM as Auto"
        return _python(f"{known}; print(Auto.from_pretrained('{target}'))")
    if kind == "gguf":
        return f"llama-cli -m {target / FILE} -p Once"
    if origin.tokenizer and not origin.model.genome.bidirectional:
        return f"archsearch generate {target} --prompt Once"
    return f"archsearch bench {target}" if not origin.model.genome.bidirectional else ""


def _pattern(genome: Genome, target: Path, asked: Asked, console: Console) -> str:
    said = write_pattern(genome, target, force=asked.force)
    _told(console, target, genome, said)
    return f"cat {target / PATTERN}"


def _python(code: str) -> str:
    return f'python -c "{code}"'


def _next(console: Console, command: str) -> None:
    if command:
        console.print(f"next: {command}", markup=False, soft_wrap=True)


def _told(console: Console, target: Path, genome: Genome, what: str = "") -> None:
    more = f" ({what})" if what else ""
    console.print(f"wrote {target}: {genome.text()}{more}", markup=False, soft_wrap=True)

"""What the dashboard shows of a trial: artifacts in a fixed order, and a note."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.artifacts import upload_artifact
from optuna_dashboard import save_note
from optuna_dashboard.artifact import get_artifact_path

from archsearch.catalogue import block_info
from archsearch.dims import word
from archsearch.drawing import draw_svg
from archsearch.space_yaml import dump
from archsearch.words import count, size, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import optuna
    from optuna.artifacts import FileSystemArtifactStore

    from archsearch.cost import Cost
    from archsearch.genome import Gene, Genome
    from archsearch.trial import TrialResult


def publish(
    trial: optuna.Trial,
    store: FileSystemArtifactStore,
    genome: Genome,
    cost: Cost,
    result: TrialResult,
    export: str,
) -> None:
    """Attach the drawing as artifact 0, tables, curves and the genome, then write the note.

    Args:
        trial: Receives them.
        store: Where the files go.
        genome: What was trained.
        cost: Of the genome.
        result: What came of it.
        export: The command that writes its model, for the note.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "genome.svg").write_text(draw_svg(genome))
        _write_rows(folder / "per_task.csv", ("task", "seed", "steps", "accuracy", "error"), [
            (r.task, r.seed, r.curve[-1].step, r.accuracy, r.curve[-1].error)
            for r in result.runs if r.curve
        ])  # fmt: skip
        _write_rows(folder / "curves.csv", ("task", "seed", "step", "loss", "accuracy"), [
            (r.task, r.seed, p.step, p.loss, p.accuracy) for r in result.runs for p in r.curve
        ])  # fmt: skip
        (folder / "genome.yaml").write_text(dump(genome))
        ids = [
            upload_artifact(
                artifact_store=store, file_path=str(folder / name), study_or_trial=trial
            )
            for name in ("genome.svg", "per_task.csv", "curves.csv", "genome.yaml")
        ]
    save_note(trial, _note(genome, cost, result, get_artifact_path(trial, ids[0]), export))


def _note(genome: Genome, cost: Cost, result: TrialResult, drawing: str, export: str) -> str:
    """A trial in Markdown."""
    ended = f"**{result.status}**" + (f": {result.why}" if result.why else "")
    figures = (
        ended, f"score {result.score:.3f} +/- {result.error:.3f}",
        f"{count(cost.params)} parameters", f"state {size(cost.state_bytes)}", span(result.seconds),
    )  # fmt: skip
    lines = [
        f"## {genome.text()}", "", " | ".join(figures), "",
        f"![{genome.key}]({drawing})", "",
        "| # | block | parameters | reads | weights |", "|--:|---|---|---|---|",
        *_rows(genome.genes),
    ]  # fmt: skip
    lines += [
        "",
        *_curves(result),
        "",
        f"Genome `{genome.key}`, width {genome.d_model}. Its model:",
    ]
    return "\n".join([*lines, "", "```", export, "```"])


def _curves(result: TrialResult) -> Iterator[str]:
    """Accuracy on each task after every stretch, the mean over seeds; the last row is the score."""
    tasks = list(result.accuracies)
    if not tasks:
        return
    yield f"| step | {' | '.join(tasks)} |"
    yield f"|--:|{'--:|' * len(tasks)}"
    steps = sorted({point.step for run in result.runs for point in run.curve})
    for step in steps:
        cells = []
        for task in tasks:
            seen = [p.accuracy for r in result.runs if r.task == task for p in r.curve
                    if p.step == step]  # fmt: skip
            cells.append(f"{sum(seen) / len(seen):.3f}" if seen else "")
        yield f"| {step} | {' | '.join(cells)} |"
    ended = " | ".join(f"**{value:.3f}**" for value in result.accuracies.values())
    yield f"| ended at | {ended} |"


def _rows(genes: Sequence[Gene], within: str = "") -> Iterator[str]:
    """A row for every branch, from 1 as edges count them; what the second holds is 2.1, 2.2."""
    for number, gene in enumerate(genes, 1):
        place = f"{within}{number}"
        params = ", ".join(f"{name} {word(value)}" for name, value in gene.params)
        block = f"{gene.block} ({block_info(gene.block).kind})"
        streams = ", ".join("embedding" if n == 0 else str(n) for n in gene.inputs)
        reads = f"{gene.combine} of {streams}" if len(gene.inputs) > 1 else streams
        weights = f"shared {gene.share}" if gene.share else "own"
        yield f"| {place} | {block} | {params} | {reads} | {weights} |"
        yield from _rows(gene.inner, f"{place}.")


def _write_rows(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])

"""Behind `archsearch explain`: one page of Markdown that says why a genome won."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from archsearch.search import ablation, effects
from archsearch.search.fresh import missing, recall, remember, train, write
from archsearch.words import count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.console import Console

    from archsearch.search.ablation import Change, Edit
    from archsearch.search.study import Record, Study

MOST = 8
"""Rows of choices and of motifs."""


def explain(
    study: Study, record: Record, folder: Path, seeds: int, workers: int, console: Console
) -> None:
    """Train the edits of a trial's genome, then print the page and write it to `explain.md`.

    Trainings are kept in the run directory, so a second call is immediate and one that was stopped
    goes on.

    Raises:
        RunError: if the run directory cannot be written.
    """
    edited = edits_of(study, record)
    genomes = [record.genome, *(edit.genome for edit in edited)]
    experiment, known = study.experiment(), recall(folder, study)
    study.check_data(experiment)
    wanted = missing(genomes, seeds, known)
    with Progress(console=console, transient=True) as progress:
        total = seeds * len(genomes)
        task = progress.add_task("training the edits", total=total, completed=total - len(wanted))

        def on_trained(*told: object) -> None:
            remember(folder, experiment, known)
            progress.advance(task)

        train(experiment, genomes, seeds, workers, known, on_trained)
    scores = {g.key: [known[g.key][k].score for k in range(seeds)] for g in genomes}
    changes = ablation.changes(record.genome, edited, scores, experiment.context)
    page = "\n".join(_page(study, record, scores[record.genome.key], changes))
    write(folder / "explain.md", page)
    console.print(page, markup=False, soft_wrap=True)
    console.print(f"written to {folder / 'explain.md'}", markup=False, soft_wrap=True)


def edits_of(study: Study, record: Record) -> list[Edit]:
    """The genomes one edit away from a trial's, with the blocks of the best trials."""
    ranked = sorted(study.records().values(), key=lambda r: (-r.score, r.index))
    return ablation.edits(record.genome, [r.genome for r in ranked if not r.attrs.get("outside")])


def best_values(study: Study, path: str) -> list[tuple[float, int, Any]]:
    """The values of a choice with the mean score and the number of their trials, best first."""
    groups: dict[Any, list[float]] = {}
    for record in study.records().values():
        if record.values and path in record.params:
            groups.setdefault(record.params[path], []).append(record.score)
    found = [(statistics.mean(scores), len(scores), value) for value, scores in groups.items()]
    return sorted(found, key=lambda row: -row[0])


def _page(
    study: Study, record: Record, scores: Sequence[float], changes: Sequence[Change]
) -> list[str]:
    experiment = study.experiment()
    text = record.genome.text(experiment.space.varying)
    error = statistics.stdev(scores) / len(scores) ** 0.5
    tasks = ", ".join(task.name for task in experiment.tasks)
    return [
        f"# Why {text}",
        "",
        f"Trial {record.index} of the run {study.name}, genome `{record.genome.key}`, width "
        f"{record.genome.d_model}, {count(record.attrs['params'])} parameters. Tasks: {tasks}.",
        f"Score of the search {record.score:.3f}; on {len(scores)} fresh seeds "
        f"{statistics.mean(scores):.3f} +- {error:.3f} (s.e.).",
        "",
        *_ablations(changes, len(scores)),
        *_choices(study),
        *_motifs(study),
        *_lineage(study, record),
    ]


def _ablations(changes: Sequence[Change], seeds: int) -> list[str]:
    rows = [
        (c.edit.what, f"{c.params:+,}", f"{c.mean:+.3f}", f"{c.spread:.3f}", c.verdict)
        for c in changes
    ]
    tally = {v: sum(c.verdict == v for c in changes) for v in ("worse", "better")}
    return [
        "## One edit away",
        "",
        f"Of {len(rows)} edits {tally['worse']} are worse and {tally['better']} better; the others "
        "cannot be told apart from it.",
        f"Change of the score over {seeds} paired seeds, with half of its 95 % interval (Student).",
        "",
        *_table(("edit", "params", "score", "+-", "verdict"), rows),
        "",
    ]


def _choices(study: Study) -> list[str]:
    shares = effects.choices(study)
    if not shares:
        return [f"No word on choices and motifs: a run of {effects.FEWEST} trials has one.", ""]
    rows = []
    for path, share in list(shares.items())[:MOST]:
        values = best_values(study, path)[:3]
        best = ", ".join(f"{value} {mean:.3f} ({n})" for mean, n, value in values)
        rows.append((path, f"{100 * share:.0f} %", best))
    return [
        "## Which choices mattered",
        "",
        "Share of each in what sets good trials apart (conditional PED-ANOVA), and the values with "
        "the best mean score (trials).",
        "",
        *_table(("choice", "share", "best values"), rows),
        "",
    ]


def _motifs(study: Study) -> list[str]:
    found = effects.motifs(list(study.records().values()))
    if not found:
        return []
    shown = found if len(found) <= 2 * MOST else [*found[:MOST], *found[-MOST:]]
    rows = [(e.name, f"{e.mean:+.3f}", f"{e.spread:.3f}", str(e.trials)) for e in shown]
    return [
        "## Which motifs paid",
        "",
        "Effect of one more on the score, with half of its 95 % interval, from a linear model of "
        "Weisfeiler-Lehman subtrees; `a > b` is b behind a.",
        "",
        *_table(("motif", "score", "+-", "trials"), rows),
        "",
    ]


def _lineage(study: Study, record: Record) -> list[str]:
    line = effects.lineage(study.records(), record)
    varying = study.experiment().space.varying
    rows = []
    for before, here in zip([None, *line], line, strict=False):
        gain = f"{here.score - before.score:+.3f}" if before else ""
        made = here.attrs.get("move") or here.attrs.get("origin", "")
        rows.append((f"#{here.index}", made, here.genome.text(varying), f"{here.score:.3f}", gain))
    return ["## Where it comes from", "",
            *_table(("trial", "made by", "genome", "score", "gain"), rows)]  # fmt: skip


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose source is aligned; columns of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right = [bool(rows) and all(_numeric(row[i]) for row in rows) for i in range(len(header))]
    align: list[Callable[[str, int], str]] = [str.rjust if r else str.ljust for r in right]

    def line(cells: Sequence[str]) -> str:
        aligned = (put(cell, w) for put, cell, w in zip(align, cells, widths, strict=True))
        return f"| {' | '.join(aligned)} |"

    rule = (f"{'-' * (w - r)}{':' * r}" for w, r in zip(widths, right, strict=True))
    return [line(header), f"| {' | '.join(rule)} |", *map(line, rows)]


def _numeric(cell: str) -> bool:
    return not cell.strip("+-0123456789.,% ")

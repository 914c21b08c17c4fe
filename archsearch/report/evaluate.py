"""Behind `archsearch eval`: scores as tables, curves and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.table import Table

from archsearch.errors import ModelError
from archsearch.inference.evaluation import task_scores, text_score
from archsearch.inference.harness import harness
from archsearch.report.generate import task_of
from archsearch.report.panels import Curve, Panel, draw_panels
from archsearch.scale.corpus import Corpus
from archsearch.search.fresh import write
from archsearch.words import count

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from archsearch.inference.evaluation import TaskScore, TextScore
    from archsearch.inference.harness import HarnessScore
    from archsearch.inference.loading import Loaded

JSON, SVG = "eval.json", "eval.svg"
CONTEXT = 256
"""Tokens of a window where it is not recorded what a model was trained on."""
LONGER = (1, 2, 4)
"""Windows over those of training."""


def on_text(
    loaded: Loaded,
    sources: Sequence[str],
    contexts: Sequence[int],
    windows: int,
    cache: Path,
    console: Console,
) -> list[TextScore]:
    """Print bits per byte on held-out text, at rising lengths of context.

    Args:
        loaded: A model of text.
        sources: See `scale.sources`; none for the standard library of this Python.
        contexts: In tokens; none for 1, 2 and 4 times that of training.
        windows: Most windows of the longest context; the same text is cut into shorter ones.
        cache: Where token files are kept.
        console: Where the table goes.

    Raises:
        ModelError: if the model is not one of text.
        CorpusError: if the text cannot be used.
    """
    if not loaded.vocabulary.tokenizer:
        raise ModelError(
            f"{loaded.folder} reads the ids of a task, not text; leave --text out"
            + (
                ""
                if loaded.label
                else ", and evaluate what `archsearch export --format yaml` wrote"
            )
        )
    corpus = Corpus.open(sources, loaded.vocabulary.tokenizer, cache)
    if corpus.vocab - 1 > loaded.model.vocab:
        raise ModelError(f"the text has {corpus.vocab} ids, the model {loaded.model.vocab}")
    trained = loaded.context or CONTEXT
    lengths = contexts or [trained * factor for factor in LONGER]
    if not contexts:
        lengths = [n for n in lengths if n == trained or n < len(corpus.validation)]
    longest = max(lengths)
    scores = [text_score(loaded.model, corpus, n, windows, longest) for n in lengths]
    known = {"": "what training saw is not recorded", corpus.key: "held out from training"}
    console.print(
        f"{corpus.name}: the last {count(len(corpus.validation) * corpus.bytes_per_token)} of "
        f"{count(corpus.text_bytes)} bytes, "
        + known.get(loaded.corpus, "another text than that of training"),
        markup=False, soft_wrap=True,
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("windows", "bits per byte", "+/- s.e."):
        table.add_column(name, justify="right")
    for score in scores:
        mark = " (training)" if score.context == loaded.context else ""
        table.add_row(
            f"context {score.context}{mark}", str(score.windows), f"{score.bits:.3f}",
            "-" if score.error is None else f"{score.error:.3f}",
        )  # fmt: skip
    for name, bits in (("bytes by frequency", corpus.order0), ("xz", corpus.xz)):
        table.add_row(name, "", f"{bits:.3f}")
    console.print(table)
    if uneven := [str(n) for n in lengths if longest % n]:
        console.print(f"{', '.join(uneven)} leave out the end of each {longest} tokens")
    return scores


def on_task(loaded: Loaded, rows: int, seed: int, console: Console) -> list[TaskScore]:
    """Print accuracy at the difficulty of training and along each axis of the task.

    Raises:
        ModelError: if the model was trained on no task that is known here.
    """
    task = task_of(loaded)
    scores = list(task_scores(loaded.model, task, rows, seed))
    if loaded.corpus and task.digest() != loaded.corpus:
        console.print(f"{loaded.label}: another text than that of training", markup=False)
    console.print(f"{loaded.label}: accuracy on up to {rows} rows of each difficulty", markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("tokens", "accuracy", "+/- s.e.", "guessing"):
        table.add_column(name, justify="right")
    for score in scores:
        if score.axis and score.trained:
            continue
        label = f"{score.axis} {score.value:g}" if score.axis else "as in training"
        table.add_row(
            label, str(score.length), f"{score.accuracy:.3f}", f"{score.error:.3f}",
            f"{score.chance:.3f}",
        )  # fmt: skip
    console.print(table)
    return scores


def on_harness(
    loaded: Loaded, names: Sequence[str], tasks: Path | None, console: Console
) -> list[HarnessScore]:
    """Print scores on tasks of lm-evaluation-harness.

    Raises:
        ModelError: if that is not possible here.
    """
    scores = harness(loaded.folder, names, str(loaded.device), tasks)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("value", "+/- s.e."):
        table.add_column(name, justify="right")
    for score in scores:
        error = "" if score.error is None else f"{score.error:.3f}"
        table.add_row(score.task, score.metric, f"{score.value:.3f}", error)
    console.print(table)
    return scores


def write_scores(
    out: Path,
    text: Sequence[TextScore],
    tasks: dict[str, list[TaskScore]],
    harnessed: Sequence[HarnessScore],
    console: Console,
) -> None:
    """Write what was found as JSON, and its curves as a picture where there are any.

    Raises:
        RunError: if they cannot be written.
    """
    told: dict[str, Any] = {
        "text": [asdict(score) for score in text],
        "tasks": {name: [asdict(score) for score in of] for name, of in tasks.items()},
        "harness": [asdict(score) for score in harnessed],
    }
    out.mkdir(parents=True, exist_ok=True)
    written = [JSON]
    write(out / JSON, json.dumps({k: v for k, v in told.items() if v}, indent=1) + "\n")
    panels = [*_task_panels(tasks), *_text_panels(text)]
    if panels:
        write(out / SVG, draw_panels(panels))
        written.append(SVG)
    console.print(f"written to {out}: {', '.join(written)}", markup=False, soft_wrap=True)


def _task_panels(tasks: dict[str, list[TaskScore]]) -> Iterable[Panel]:
    for name, scores in tasks.items():
        for axis, group in groupby(scores, key=lambda score: score.axis):
            along = [score for score in group if score.axis and score.value > 0]
            if len(along) > 1:
                points = [(float(s.value), s.accuracy, s.error) for s in along]
                guesses = [(float(s.value), s.chance, 0.0) for s in along]
                trained = next((s.value for s in along if s.trained), None)
                yield Panel(
                    name,
                    axis if trained is None else f"{axis}, in training {trained:g}",
                    [Curve("accuracy", points), Curve("guessing", guesses)],
                )


def _text_panels(text: Sequence[TextScore]) -> Iterable[Panel]:
    if len(text) > 1:
        points = [(float(s.context), s.bits, s.error or 0.0) for s in text]
        yield Panel("bits per byte", "context", [Curve("bits per byte", points)])

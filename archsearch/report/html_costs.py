"""The report on what was spent, and on how to do it again."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import Counter
from typing import TYPE_CHECKING

from archsearch.dims import word
from archsearch.report.html_parts import (
    Html,
    code,
    command,
    details,
    join,
    paragraph,
    section,
    table,
    tag,
)
from archsearch.report.html_plot import Axis, Dot, scatter, stairs
from archsearch.search.revisions import split
from archsearch.space_yaml import dump
from archsearch.trial import task_label
from archsearch.words import count, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from archsearch.report.html_sheet import Sheet
    from archsearch.search.study import Record

STATES = {
    "ok": "trained to the end", "paused": "waiting at a rung", "pruned": "pruned",
    "diverged": "diverged", "oom": "out of memory", "invalid": "failed",
}  # fmt: skip
"""How trials end, and in words."""


def budget(sheet: Sheet) -> Html:
    """Trials, tokens and seconds, what was stopped and why, and how the best came up."""
    records = list(sheet.all.values())
    seconds = sum(float(r.attrs["seconds"]) for r in records)
    tokens = sum(float(r.attrs["tokens_per_second"]) * float(r.attrs["seconds"]) for r in records)
    went_on = len(sheet.all) - len(sheet.latest)
    said = f"{len(sheet.latest)} trials on about {count(tokens)} tokens took {span(seconds)} of "
    said += "training."
    if went_on:
        said += f" {went_on} times a trial went on from its checkpoint at a rung."
    if sheet.finals:
        trained = len(sheet.finals.ranked) * sheet.finals.seeds
        said += f" The finals are {trained} more trainings, each on every task."
    return section("budget", "What was spent", paragraph(said), _states(sheet.latest),
                   *_reasons(sheet), *_progress(sheet))  # fmt: skip


def _states(records: list[Record]) -> Html:
    """A bar of how the trials ended."""
    counts = {state: sum(r.status == state for r in records) for state in STATES}
    parts = [
        tag("span", f"{number} {STATES[state]}", class_=f"state {state}", style=f"flex:{number}")
        for state, number in counts.items()
        if number
    ]
    return tag("div", join(parts), class_="states")


def _reasons(sheet: Sheet) -> Iterator[Html]:
    """Why trials did not end well, the same reason once."""
    reasons: dict[tuple[str, str], list[Record]] = {}
    for record in sheet.latest:
        if record.status not in ("ok", "paused"):
            alike = re.sub(r"\d+", "0", record.why)
            reasons.setdefault((record.status, alike), []).append(record)
    rows = [
        (
            STATES[status], str(len(those)), ", ".join(f"#{r.index}" for r in those[:8])
            + (", ..." if len(those) > 8 else ""), those[0].why,
        )
        for (status, _), those in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]  # fmt: skip
    if rows:
        header = ("ended", "trials", "which", "why, of the first")
        yield table(header, rows, numbers=("trials",), lines=header[3:])


def _progress(sheet: Sheet) -> Iterator[Html]:
    """The first objective of every trial in order, and the best so far."""
    goal = sheet.goals[0]
    dots = [
        Dot(index, values[0], "other" if record.status == "ok" else "early", sheet.told(record))
        for index, record in sorted(sheet.all.items())
        if (values := sheet.values(record)) and not record.attrs.get("outside")
    ]
    path = stairs([dot for dot in dots if dot.kind == "other"], up=goal.maximize)
    if path and len(dots) > 3:
        path.append((dots[-1].x, path[-1][1]))
        x = Axis.of("trial", [dot.x for dot in dots], whole=True)
        y = Axis.of(goal.name, [dot.y for dot in dots], "; the line is the best so far")
        yield scatter(dots, x, y, f"{goal.name} of every trial in order", path)


def reproduce(sheet: Sheet) -> Html:
    """Commands, versions, seed, training and the space file."""
    about, experiment = sheet.study.about, sheet.experiment
    commands = [_run(about), f"archsearch explain {sheet.run}"]
    if sheet.best:
        commands.append(f"archsearch export {sheet.run} DIR")
    recipe, search = experiment.recipe, experiment.search
    facts = [
        ("seed", str(search.seed)),
        ("strategy", f"{search.strategy}; genomes came from {_origins(sheet)}"),
        ("training", f"{recipe.steps} steps of {recipe.batch} rows a task, learning rate "
         f"{recipe.lr:g}, {recipe.seeds} seed{'s' * (recipe.seeds > 1)}"),
        ("rungs", ", ".join(map(str, search.rungs)) + " steps" if search.rungs else "none"),
        *((task_label(t, experiment.tasks), _task(t)) for t in experiment.tasks),
        ("versions", ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())),
    ]  # fmt: skip
    listed = tag("dl", join(tag("div", join([tag("dt", k), tag("dd", v)])) for k, v in facts),
                 class_="facts")  # fmt: skip
    parts = [
        paragraph("The same file, seed and versions give the same search, with one worker or four, "
                  "interrupted or not."),
        command(*commands), listed,
        details("space.yaml", tag("pre", about["space"])),
    ]  # fmt: skip
    if sheet.best:
        model = tag("pre", dump(sheet.best.genome))
        parts.append(details("The winner as a space file of one member", model))
    return section("reproduce", "How to reproduce it", *parts)


def _run(about: Mapping[str, Any]) -> str:
    """The command that began the run."""
    more = [f"--set {shlex.quote(override)}" for override in about["overrides"]]
    if about["lag"] > 8:
        more.append(f"--workers {about['lag'] // 2}")
    return " ".join(["archsearch run space.yaml", *more])


def _origins(sheet: Sheet) -> str:
    """Who proposed how many genomes."""
    origins = Counter(r.attrs.get("origin", "") for r in sheet.latest)
    return ", ".join(f"{name} ({number})" for name, number in origins.most_common())


def _task(task: Any) -> str:
    """The parameters of a task."""
    if not dataclasses.is_dataclass(task):
        return "as its package defines it"
    values = ((f.name, getattr(task, f.name)) for f in dataclasses.fields(task))
    return ", ".join(f"{name} {word(value)}" for name, value in values)


def footer(sheet: Sheet) -> Html:
    """Who made the page."""
    made = sheet.study.about.get("versions", {}).get("archsearch", "")
    name = split(sheet.study.name)[0]
    return tag(
        "footer",
        join([f"{name}, searched with archsearch {made}. This page: ",
              code(f"archsearch report {sheet.run}")]),
    )  # fmt: skip

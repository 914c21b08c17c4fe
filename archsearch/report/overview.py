"""What the dashboard shows of a study as a whole: a note, and pictures of what its trials say."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from archsearch.catalogue import block_info
from archsearch.report.finals import control_lines, verdict
from archsearch.report.html_plot import Axis
from archsearch.trial import task_label
from archsearch.words import count, quantity, size, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from archsearch.search.study import Record, Study

TOP = 10
"""Trials in the ranking."""
MOST_COPIES = 4
"""Copies of a block from which on they are counted as so many or more."""
SHADES = ((0, "#eef4fb"), (1, "#4f8fe0"))
"""Colours of the least and the largest mean; black text is readable on both."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A Plotly figure as plain data; the dashboard asks it for nothing but its JSON."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]

    def to_json(self) -> str:
        """As Plotly writes it."""
        return json.dumps({"data": self.data, "layout": self.layout})


def attributes(study: Study) -> dict[str, Any]:
    """What was searched and how, a line each."""
    about, experiment = study.about, study.experiment()
    search, recipe = experiment.search, experiment.recipe
    versions = about.get("versions", {})
    return {
        "tasks": ", ".join(task_label(task, experiment.tasks) for task in experiment.tasks),
        "objectives": ", ".join(
            f"{'maximize' if goal.maximize else 'minimize'} {goal.name}"
            for goal in experiment.goals
        ),
        "budget": f"{search.trials} trials of {recipe.steps} steps of {recipe.batch} rows",
        "seed": search.seed,
        "strategy": search.strategy,
        "space_sha256": hashlib.sha256(about["space"].encode()).hexdigest()[:16],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def note(study: Study, study_id: int, run: str) -> str:
    """The study in Markdown: the winner, the front, the best, and the space.

    Args:
        study: The study.
        study_id: Its number in the dashboard, for links to its trials.
        run: Its directory, as commands name it.
    """
    records, experiment = study.latest(), study.experiment()
    if not records:
        return f"## {study.name}\n\nNo trial has finished yet."
    seconds = sum(float(r.attrs["seconds"]) for r in study.records().values())
    states = groupby(sorted(r.status for r in records))
    ended = ", ".join(f"{len([*group])} {state}" for state, group in states)
    lines = [f"## {study.name}", "", experiment.notes, ""] if experiment.notes else [
        f"## {study.name}", ""
    ]  # fmt: skip
    lines += [f"{len(records)} trials ({ended}), {span(seconds)} of training.", ""]
    lines += _winner(study)
    ranked = [r for r in records if r.values and r.status == "ok"]
    up = -1 if experiment.goals[0].maximize else 1
    ranked.sort(key=lambda r: (up * r.values[0], r.index))
    if len(experiment.goals) > 1:
        lines += ["### Front", "", *_table(study, study.front(), study_id), ""]
    best = _table(study, ranked[:TOP], study_id)
    lines += [f"### The best {TOP} by {experiment.goals[0].name}", "", *best, ""]
    lines += [
        "### Go on", "", "```", f"archsearch report {run}", f"archsearch explain {run}",
        f"archsearch export {run} DIR", "```", "",
        "### Space", "", "```yaml", study.about["space"].rstrip(), "```",
    ]  # fmt: skip
    return "\n".join(lines)


def _winner(study: Study) -> list[str]:
    best, finals = study.best(), study.finals()
    if best is None:
        return []
    said = [f"**Best: #{best.index} `{best.genome.text(study.experiment().space.varying)}`**", ""]
    if finals:
        score, half = finals.winner.score
        goals = [goal.name for goal in study.experiment().goals]
        said += [f"Score {score:.3f} +- {half:.3f} (95 %) on {finals.seeds} fresh seeds: "
                 f"{verdict(finals, goals)}.", ""]  # fmt: skip
    control = " ".join(line.plain.strip() for line in control_lines(study))
    return said + ([control, ""] if control else [])


def _table(study: Study, records: Sequence[Record], study_id: int) -> Iterator[str]:
    """Trials as a Markdown table with links to their pages."""
    names = [goal.name for goal in study.experiment().goals]
    extra = [(i, n) for i, n in enumerate(names) if n not in ("score", "params", "state_bytes")]
    header = ["trial", "genome", "score", "parameters", "state", *(name for _, name in extra)]
    yield f"| {' | '.join(header)} |"
    yield f"|---|---|{'--:|' * (len(header) - 2)}"
    varying = study.experiment().space.varying
    for record in records:
        page = f"/dashboard/studies/{study_id}/trials?numbers={record.number}"
        beside = " (not in the space)" if record.attrs.get("outside") else ""
        cells = [
            f"[#{record.index}]({page})", f"`{record.genome.text(varying)}`{beside}",
            f"{record.score:.3f} +- {record.error:.3f}", count(record.attrs["params"]),
            size(record.attrs["state_bytes"]),
            *(quantity(name, record.values[i]) for i, name in extra),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def figures(study: Study) -> dict[str, Figure]:
    """Pictures of the trials that were trained to their end, by name."""
    done = [r for r in study.latest() if r.values and r.status == "ok"]
    if not done:
        return {}
    kinds = {
        kind: Figure([heat], _layout(f"Mean score by {kind} and place", f"place among all {kind}s"))
        for kind in ("mixer", "ffn")
        if (heat := _heat(done, kind))
    }
    effect = _layout("Mean score by how often a block is used", "", "score")
    effect["legend"] = {"title": {"text": "times used"}}
    costs = {f"score_{i}": figure for i, figure in enumerate(_costs(study, done))}
    for figure in kinds.values():
        figure.layout["xaxis"]["type"] = "category"
    return {**kinds, **costs, "blocks": Figure(_copies(done), effect)}


def _layout(title: str, across: str, up: str = "") -> dict[str, Any]:
    return {
        "title": {"text": title, "x": 0.02, "xanchor": "left"},
        "margin": {"l": 60, "r": 20, "t": 70, "b": 50},
        "xaxis": {"title": {"text": across}, "automargin": True},
        "yaxis": {"title": {"text": up}, "automargin": True},
    }  # fmt: skip


def _heat(done: Sequence[Record], kind: str) -> dict[str, Any] | None:
    """Mean score of the trials that have a block as the first, second, ... of its kind."""
    scores: dict[tuple[str, int], list[float]] = defaultdict(list)
    for record in done:
        blocks = [g.block for g in record.genome.branches if block_info(g.block).kind == kind]
        for place, block in enumerate(blocks, 1):
            scores[block, place].append(record.score)
    if not scores:
        return None
    names = sorted({block for block, _ in scores}, reverse=True)
    places = range(1, max(place for _, place in scores) + 1)
    cells = [[scores.get((name, place), []) for place in places] for name in names]
    means = [[statistics.mean(cell) if cell else None for cell in row] for row in cells]
    shown = [[f"{mean:.2f}" if mean is not None else "" for mean in row] for row in means]
    return {
        "type": "heatmap", "x": [str(place) for place in places], "y": names, "z": means,
        "text": shown, "texttemplate": "%{text}", "colorscale": SHADES,
        "customdata": [[len(cell) for cell in row] for row in cells],
        "hovertemplate": "%{y} as %{x}: %{z:.3f} (%{customdata} trials)<extra></extra>",
    }  # fmt: skip


def _costs(study: Study, done: Sequence[Record]) -> Iterator[Figure]:
    """The first objective against each other, or against parameters, with the genomes on hover."""
    goals, varying = study.experiment().goals, study.experiment().space.varying
    front = {record.index for record in study.front()}
    for place, name in enumerate([goal.name for goal in goals[1:]] or ["params"], 1):
        traces: list[dict[str, Any]] = []
        for title, marked in (("others", False), ("front", True)):
            those = [r for r in done if (r.index in front) == marked]
            traces.append({
                "type": "scatter", "mode": "markers", "name": title,
                "x": [r.values[place] if goals[1:] else r.attrs["params"] for r in those],
                "y": [r.values[0] for r in those],
                "text": [f"#{r.index} {r.genome.text(varying)}" for r in those],
                "hovertemplate": "%{text}<br>%{y:.3f} at %{x}<extra></extra>",
                "marker": {"size": 11 if marked else 7},
            })  # fmt: skip
        layout = _layout(f"{goals[0].name} against {name}", name, goals[0].name)
        axis = Axis.of(name, [x for trace in traces for x in trace["x"]])
        ticks = axis.ticks(5)
        layout["xaxis"] |= {"tickvals": ticks, "ticktext": [axis.show(tick) for tick in ticks]}
        layout["xaxis"]["type"] = "log" if axis.log else "linear"
        yield Figure(traces, layout)


def _copies(done: Sequence[Record]) -> list[dict[str, Any]]:
    """Mean score of the trials that use a block so many times, a bar each."""
    names = sorted({gene.block for record in done for gene in record.genome.branches})
    used = [[gene.block for gene in record.genome.branches] for record in done]
    bars = []
    for copies in range(MOST_COPIES + 1):
        means, numbers = [], []
        for name in names:
            scores = [
                record.score
                for record, blocks in zip(done, used, strict=True)
                if min(blocks.count(name), MOST_COPIES) == copies
            ]
            means.append(statistics.mean(scores) if scores else None)
            numbers.append(len(scores))
        title = f"{copies} or more" if copies == MOST_COPIES else str(copies)
        bars.append({
            "type": "bar", "name": title, "x": names, "y": means, "customdata": numbers,
            "hovertemplate": "%{y:.3f} (%{customdata} trials)",
        })  # fmt: skip
    return [bar for bar in bars if any(bar["customdata"])]

"""The report on what was found: headline, front, winner, tasks and finals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from archsearch.catalogue import block_info
from archsearch.dims import word
from archsearch.drawing import draw_svg
from archsearch.report.edits import edits
from archsearch.report.finals import control_lines, verdict
from archsearch.report.html_parts import (
    Html,
    around,
    code,
    details,
    genome,
    html,
    join,
    mark,
    paragraph,
    section,
    table,
    tag,
    track,
    whisker,
    with_interval,
)
from archsearch.report.html_plot import Axis, Dot, scatter, stairs
from archsearch.report.html_sheet import ahead
from archsearch.trial import task_label
from archsearch.words import count, quantity, size, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from archsearch.genome import Gene
    from archsearch.report.html_sheet import Sheet
    from archsearch.search.study import Record

MOST = 12
"""Members of the front in the table."""
FEW_EDITS = 4
"""Edits that are shown without being asked for."""
BETTER = {True: ", higher is better", False: ", lower is better"}
COLUMNS = ("params", "state_bytes", "score")
"""Objectives that have a column of their own in every table."""


def headline(sheet: Sheet) -> Html:
    """What was searched, what won, and by how much."""
    experiment = sheet.experiment
    notes = paragraph(experiment.notes, kind="notes") if experiment.notes else Html()
    tried = sum(not r.attrs.get("outside") for r in sheet.latest)
    ways = experiment.space.size
    among = f" out of {ways:,.0f} combinations" if ways < 1e7 else (
        f" out of {ways:.1e} combinations" if math.isfinite(ways) else ""
    )  # fmt: skip
    tasks = ", ".join(task_label(t, experiment.tasks) for t in experiment.tasks)
    searched = paragraph(
        f"{tried} architectures{among} were trained on {tasks}, to ",
        join([_aim(goal.name, goal.maximize) for goal in sheet.goals], " and "), ".",
        *_beside(sheet),
    )  # fmt: skip
    return tag(
        "header",
        join([
            tag("p", "Architecture search", class_="kicker"), tag("h1", sheet.study.name), notes,
            *_winner(sheet), searched, _figures(sheet),
        ]),
    )  # fmt: skip


def _aim(name: str, up: bool) -> Html:
    return join(["maximize " if up else "minimize ", code(name)])


def _beside(sheet: Sheet) -> Iterator[str]:
    """What came of the best of those that were trained for comparison."""
    for record in sheet.outside[:1]:
        name = sheet.named.get(record.genome.key, f"#{record.index}")
        yield f" Beside the space {name} was trained, with score {record.score:.3f} in the search."


def _winner(sheet: Sheet) -> Iterator[Html]:
    best = sheet.best
    if best is None:
        waiting = sum(r.status == "paused" for r in sheet.latest)
        said = f"{waiting} trials wait at a rung." if waiting else "No trial ended well."
        yield paragraph(said, kind="lede")
        return
    name = genome(sheet.text(best), "b")
    final = sheet.final(best)
    if final is None:
        goal, value = sheet.goals[0].name, best.values[0]
        spread = f" (s.e. {best.error:.3f})" if goal == "score" else ""
        yield paragraph(
            name, f" is ahead, with {goal} {quantity(goal, value)}{spread}.", kind="lede"
        )
        yield paragraph(
            "This is what the search itself saw, the best of many draws, and likely too good: "
            "no finals on fresh seeds were held."
        )
        return
    assert sheet.finals
    yield paragraph(
        name, f" won, with {sheet.goals[0].name} ", tag("b", sheet.first(final)),
        f" on {sheet.finals.seeds} fresh seeds.", kind="lede",
    )  # fmt: skip
    sentences = [verdict(sheet.finals, [g.name for g in sheet.goals])]
    other = next((f for f in sheet.finals.ranked if f is not final), None)
    if other and all(map(math.isfinite, (*final.firsts, *other.firsts))):
        sentences.append(_margin(sheet, other.record, *ahead(final, other)))
    yield paragraph(". ".join(sentences) + ".")


def _margin(sheet: Sheet, record: Record, margin: float, half: float) -> str:
    name = sheet.goals[0].name
    told = quantity(name, abs(margin))
    told = with_interval(told, quantity(name, half)) if half else told
    where = "ahead of the next best" if margin >= 0 else "behind the best mean"
    told = f"Seed by seed it is {told} {where}, #{record.index}"
    return told if abs(margin) > half else f"{told}, which is within the noise"


def _figures(sheet: Sheet) -> Html:
    """The numbers that one looks for first."""
    attrs = sheet.best.attrs if sheet.best else {}
    seconds = sum(float(r.attrs["seconds"]) for r in sheet.all.values())
    figures = [
        ("parameters", count(attrs["params"])) if attrs else None,
        (f"state at {sheet.experiment.context} tokens", size(attrs["state_bytes"]))
        if attrs else None,
        ("FLOPs per token", count(attrs["flops_per_token"])) if attrs else None,
        ("trials", str(len(sheet.latest))),
        ("training in the search", span(seconds)),
    ]  # fmt: skip
    return tag(
        "dl",
        join(
            tag("div", join([tag("dt", name), tag("dd", value)]))
            for name, value in filter(None, figures)
        ),
        class_="figures",
    )


def front(sheet: Sheet) -> Html:
    """The front as plots, and how its members differ from the winner."""
    shown, several = sheet.shown, len(sheet.goals) > 1
    members = list(dict.fromkeys(r.index for r in ([sheet.best] if sheet.best else []) + shown))
    if not members:
        return Html()
    records = [sheet.all[i] for i in members]
    listed = [*records[:MOST], *sheet.outside]
    more = len(records) - MOST
    title = f"The front of {len(shown)}" if several else "The best trials"
    notes = [_legend(sheet, shown)]
    if more > 0:
        notes.append(paragraph(f"and {more} more on the front", kind="note"))
    return section("front", title, *_plots(sheet, shown), _members(sheet, listed), *notes)


def _plots(sheet: Sheet, shown: Sequence[Record]) -> Iterator[Html]:
    """The first objective against every other; against parameters if it is the only one."""
    valued = [(r, v) for r in sheet.latest if (v := sheet.values(r))]
    first, others = sheet.goals[0], sheet.goals[1:]
    up = BETTER[first.maximize]
    numbers = {record.index for record in shown}
    for place, other in enumerate(others, 1):
        dots = [_dot(sheet, r, v[place], v[0], numbers) for r, v in valued]
        path = _stairs(dots, first.maximize, other.maximize) if len(others) == 1 else []
        x = Axis.of(other.name, [dot.x for dot in dots], BETTER[other.maximize])
        y = Axis.of(first.name, [dot.y for dot in dots], up)
        yield scatter(dots, x, y, f"{first.name} against {other.name} of every trial", path)
    if not others:
        dots = [_dot(sheet, r, r.attrs["params"], v[0], numbers) for r, v in valued]
        x = Axis.of("params", [dot.x for dot in dots])
        y = Axis.of(first.name, [dot.y for dot in dots], up)
        yield scatter(dots, x, y, f"{first.name} against parameters of every trial")


def _dot(sheet: Sheet, record: Record, x: float, y: float, front: set[int]) -> Dot:
    kind, label = "other", ""
    if sheet.best and record.index == sheet.best.index:
        kind, label = "winner", f"#{record.index} winner"
    elif record.attrs.get("outside"):
        kind, label = "outside", sheet.named.get(record.genome.key, f"#{record.index}")
    elif record.index in front:
        kind, label = "front", f"#{record.index}"
    elif record.status != "ok":
        kind = "early"
    return Dot(x, y, kind, sheet.told(record), label)


def _stairs(dots: Sequence[Dot], up: bool, right: bool) -> list[tuple[float, float]]:
    """The border of what the front dominates, as a line."""
    done = [dot for dot in dots if dot.kind not in ("early", "outside")]
    done.sort(key=lambda dot: (-dot.x if right else dot.x, -dot.y if up else dot.y))
    return stairs(done, up=up)


def _legend(sheet: Sheet, shown: Sequence[Record]) -> Html:
    words = []
    if any(r.status in ("paused", "pruned") for r in sheet.latest):
        words.append("Hollow dots stopped early and stand where they were then.")
    if sheet.outside:
        words.append("Diamonds are not in the space and were trained for comparison.")
    best = sheet.best
    if best and len(sheet.goals) > 1 and best.index not in {r.index for r in shown}:
        words.append(
            "The front is that of the scores in the search; the winner was named on fresh seeds, "
            "so it need not be on it."
        )
    return paragraph(" ".join(words), kind="note") if words else Html()


def _members(sheet: Sheet, records: Sequence[Record]) -> Html:
    """One trial a row, with what turns the winner into it."""
    extra = [(i, goal.name) for i, goal in enumerate(sheet.goals) if goal.name not in COLUMNS]
    numbers = ["params", "state", "score", *(name for _, name in extra)]
    header = ["trial", "genome", *numbers, "differs from the winner by"]
    rows = []
    for record in records:
        name = sheet.named.get(record.genome.key, "")
        known_as = [genome(sheet.text(record))] + ([" ", tag("small", name)] if name else [])
        rows.append([
            f"#{record.index}", join(known_as), count(record.attrs["params"]),
            size(record.attrs["state_bytes"]), f"{record.score:.3f}",
            *(quantity(goal, record.values[i]) for i, goal in extra), _differs(sheet, record),
        ])  # fmt: skip
    lines = ("genome", "differs from the winner by")
    return table(header, rows, numbers=numbers, lines=lines, strong=0 if sheet.best else None)


def _differs(sheet: Sheet, record: Record) -> Html:
    if sheet.best is None:
        return Html()
    if record.genome == sheet.best.genome:
        return html("the winner")
    told = edits(sheet.best.genome, record.genome, sheet.experiment.space.varying)
    listed = tag("ul", join(tag("li", edit) for edit in told), class_="edits")
    return listed if len(told) <= FEW_EDITS else details(f"{len(told)} edits", listed)


def winner(sheet: Sheet) -> Html:
    """The winner drawn as a graph, its branches, and how it does on each task."""
    best = sheet.best
    if best is None:
        return Html()
    drawing = tag("figure", Html(draw_svg(best.genome)), class_="drawing")
    layers = table(("place", "block", "kind"), list(_layers(best.genome.genes)), kind="small")
    figures = paragraph(
        f"Trial #{best.index}, genome ", code(best.genome.key), f", width {best.genome.d_model}.",
        kind="note",
    )  # fmt: skip
    right = tag("div", join([_tasks(sheet, best), layers, figures]))
    return section("winner", "The winner", tag("div", join([drawing, right]), class_="beside"))


def _layers(genes: Sequence[Gene], within: str = "") -> Iterator[list[str]]:
    """A row for every branch, from 1 as edges count them; what the second holds is 2.1, 2.2."""
    for number, gene in enumerate(genes, 1):
        told = [f"{name} {word(value)}" for name, value in gene.changed.items()]
        if gene.inputs:
            streams = " and ".join("the embedding" if n == 0 else str(n) for n in gene.inputs)
            told.append(f"reads {streams}" + f" ({gene.combine})" * (len(gene.inputs) > 1))
        if gene.share:
            told.append(f"weights {gene.share}, shared")
        block = join([code(gene.block), tag("small", f" {', '.join(told)}") if told else ""])
        yield [f"{within}{number}", block, block_info(gene.block).kind]
        yield from _layers(gene.inner, f"{within}{number}.")


def _tasks(sheet: Sheet, best: Record) -> Html:
    """Accuracy on each task: the winner as a bar, the others of the front as strokes."""
    others = [r for r in sheet.shown if r.index != best.index]
    rows = []
    for task in sheet.experiment.tasks:
        name = task_label(task, sheet.experiment.tasks)
        value = best.attrs.get(f"accuracy/{name}")
        if value is None:
            continue
        marks = [mark("bar", 0.0, value)]
        marks += [
            mark("stroke", theirs, title=f"#{record.index} {theirs:.3f}")
            for record in others
            if (theirs := record.attrs.get(f"accuracy/{name}")) is not None
        ]
        marks.append(mark("chance", task.chance, title=f"guessing {task.chance:.3f}"))
        rows.append(join([tag("span", name), track(join(marks)), tag("b", f"{value:.3f}")]))
    if not rows:
        return Html()
    strokes = " strokes are the others of the front," if others else ""
    note = f"Token accuracy in the search:{strokes} the dotted line is guessing."
    rows_ = join(tag("div", row, class_="row") for row in rows)
    return join([tag("h3", "Task by task"), tag("div", rows_, class_="rows"),
                 paragraph(note, kind="note")])  # fmt: skip


def finals(sheet: Sheet) -> Html:
    """The finalists on fresh seeds with their intervals, and the control if there was one."""
    if sheet.finals is None:
        held = sheet.study.fresh
        said = "The finals are not over; the same `archsearch run` goes on with them."
        return section("finals", "On fresh seeds", paragraph(said) if held else "")
    ranked, group, won = sheet.finals.ranked, sheet.finals.group, sheet.finals.winner
    scores = [finalist.score for finalist in ranked]
    low = max(0.0, min(mean - half for mean, half in scores))
    high = min(1.0, max(mean + half for mean, half in scores))
    rows = []
    for finalist, (mean, half) in zip(ranked, scores, strict=True):
        record = finalist.record
        stand = "winner" if finalist is won else "tied" if finalist in group else "behind"
        harder = finalist.harder
        rows.append([
            f"#{record.index}", join([genome(sheet.text(record)), " ", tag("small", stand)]),
            whisker(mean, around(mean, half), (low, high), stand),
            with_interval(f"{mean:.3f}", f"{half:.3f}"), f"{record.score:.3f}",
            "-" if harder is None else f"{harder:.3f}",
        ])  # fmt: skip
    header = ("trial", "genome", "95 % interval", "fresh score", "in the search", "longer rows")
    numbers, lines = header[3:], header[1:3]
    note = (
        f"Each finalist was trained anew on {sheet.finals.seeds} seeds that the search had not "
        "used, all on the same rows. Tied: not told apart from the first, seed by seed. Longer "
        "rows: the same weights asked rows twice as long as they were trained on."
    )
    failed = [
        paragraph(f"#{f.record.index} failed on a fresh seed: {why}", kind="note")
        for f in ranked
        if (why := next((fresh.why for fresh in f.fresh if fresh.why), ""))
    ]
    control = " ".join(line.plain.strip() for line in control_lines(sheet.study))
    said = verdict(sheet.finals, [goal.name for goal in sheet.goals]) + "."
    return section(
        "finals", "On fresh seeds", paragraph(said),
        table(header, rows, numbers=numbers, lines=lines, strong=ranked.index(won)), *failed,
        paragraph(note, kind="note"), paragraph(control) if control else "",
    )  # fmt: skip

"""The report on why the winner won: its edits, the choices and motifs that paid, its lineage."""

from __future__ import annotations

from itertools import count as naturals
from itertools import pairwise
from typing import TYPE_CHECKING

from archsearch.dims import word
from archsearch.report.edits import edits
from archsearch.report.explain import MOST, best_values, edits_of
from archsearch.report.html_parts import (
    Html,
    around,
    code,
    details,
    genome,
    join,
    mark,
    paragraph,
    section,
    signed,
    table,
    tag,
    track,
    whisker,
)
from archsearch.search import ablation, effects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archsearch.report.html_sheet import Sheet
    from archsearch.search.ablation import Change
    from archsearch.search.study import Record

LEAST = 2
"""Seeds of a training below which it has no interval."""
WIDEST = 3.0
"""Intervals are drawn to at most so many times the largest change."""


def why(sheet: Sheet) -> Html:
    """What each part of the winner is worth, and which choices mattered in the whole run."""
    if sheet.best is None:
        return Html()
    return section(
        "why", "Why did it win?", *_ablations(sheet, sheet.best), *_choices(sheet), *_motifs(sheet)
    )


def _ablations(sheet: Sheet, best: Record) -> Iterator[Html]:
    changes, seeds, left = _changes(sheet, best)
    more = join([code(f"archsearch explain {sheet.run}"), " trains every one-edit neighbour of the "
                 "winner on fresh seeds and says what each part is worth."])  # fmt: skip
    if not changes:
        yield paragraph("Not asked yet: ", more)
        return
    worse = sum(change.verdict == "worse" for change in changes)
    better = sum(change.verdict == "better" for change in changes)
    yield tag("h3", "One edit away")
    yield paragraph(
        f"Of {len(changes)} edits {worse} make it clearly worse and {better} better; the others "
        "cannot be told apart from it."
    )
    reach = WIDEST * max(1e-3, max(abs(change.mean) for change in changes))
    low = max(-reach, min(0.0, min(c.mean - c.spread for c in changes)))
    high = min(reach, max(0.0, max(c.mean + c.spread for c in changes)))
    scale = low, high
    rows = [
        (
            change.edit.what,
            whisker(
                change.mean, around(change.mean, change.spread), scale, change.verdict.split()[0]
            ),
            signed(change.mean), change.verdict, signed(change.params, ",d"),
        )
        for change in changes
    ]  # fmt: skip
    header = ("edit", "95 % interval", "score", "verdict", "parameters")
    yield table(header, rows, numbers=("parameters", "score"), lines=header[:2])
    yield paragraph(
        f"Change of the score over {seeds} paired fresh seeds. An edit that removes a branch also "
        "makes the model smaller.", kind="note",
    )  # fmt: skip
    if left:
        yield paragraph(f"{left} more edits are not trained yet: ", more, kind="note")


def _changes(sheet: Sheet, best: Record) -> tuple[list[Change], int, int]:
    """What the edits do that were trained, on how many seeds, and how many were not."""
    edited = edits_of(sheet.study, best)
    trained = [edit for edit in edited if _seeds(sheet, edit.genome.key) >= LEAST]
    keys = [best.genome.key, *(edit.genome.key for edit in trained)]
    seeds = min(_seeds(sheet, key) for key in keys)
    if not trained or seeds < LEAST:
        return [], 0, len(edited)
    scores = {key: [sheet.known[key][k].score for k in range(seeds)] for key in keys}
    found = ablation.changes(best.genome, trained, scores, sheet.experiment.context)
    return found, seeds, len(edited) - len(trained)


def _seeds(sheet: Sheet, key: str) -> int:
    """On how many seeds a genome was trained, from the first on."""
    known = sheet.known.get(key, {})
    return next(k for k in naturals() if k not in known)


def _choices(sheet: Sheet) -> Iterator[Html]:
    shares = list(effects.choices(sheet.study).items())[:MOST]
    if not shares:
        return
    rows = []
    for path, share in shares:
        values = best_values(sheet.study, path)[:3]
        best = join([join([code(word(value)), f" {mean:.3f}"]) for mean, _, value in values], ", ")
        bar = track(mark("bar", 0.0, share))
        rows.append((code(path), bar, f"{100 * share:.0f} %", best))
    yield tag("h3", "Which choices mattered")
    header = ("choice", "of all", "share", "best values, mean score")
    yield table(header, rows, numbers=("share",), lines=("choice", "of all"))
    yield paragraph(
        "Share of each choice of the space in what sets good trials apart (conditional PED-ANOVA).",
        kind="note",
    )


def _motifs(sheet: Sheet) -> Iterator[Html]:
    found = effects.motifs(list(sheet.all.values()))
    if not found:
        return
    shown = found if len(found) <= 2 * MOST else [*found[:MOST], *found[-MOST:]]
    low = min(0.0, min(effect.mean - effect.spread for effect in shown))
    high = max(0.0, max(effect.mean + effect.spread for effect in shown))
    rows = [
        (
            code(effect.name),
            whisker(effect.mean, around(effect.mean, effect.spread), (low, high)),
            signed(effect.mean), str(effect.trials),
        )
        for effect in shown
    ]  # fmt: skip
    header = ("motif", "95 % interval", "score", "trials")
    yield details(
        "Which motifs paid",
        table(header, rows, numbers=header[2:], lines=header[:2]),
        paragraph(
            "Effect of one more on the score, from a linear model of Weisfeiler-Lehman subtrees; "
            "a > b is b behind a.", kind="note",
        ),
    )  # fmt: skip


def lineage(sheet: Sheet) -> Html:
    """Who the winner came from, with what each step changed and gained."""
    if sheet.best is None:
        return Html()
    first, *later = effects.lineage(sheet.all, sheet.best)
    if not later:
        origin = first.attrs.get("origin", "nobody")
        said = paragraph(f"#{first.index} has no parent; it was proposed by: ", code(origin), ".")
        return section("lineage", "Where it comes from", said)
    steps = [_step(sheet, first, f"proposed by {first.attrs.get('origin', '')}")]
    for before, here in pairwise([first, *later]):
        gain = signed(here.score - before.score)
        varying = sheet.experiment.space.varying
        changed = "; ".join(edits(before.genome, here.genome, varying)) or "the same genome"
        made = here.attrs.get("move") or here.attrs.get("origin", "")
        steps.append(_step(sheet, here, f"{gain} by {changed} ({made})"))
    return section("lineage", "Where it comes from", tag("ol", join(steps), class_="lineage"))


def _step(sheet: Sheet, record: Record, told: str) -> Html:
    parts = [
        tag("b", f"#{record.index}"), " ", genome(sheet.text(record)), f" score {record.score:.3f}",
        tag("small", told),
    ]  # fmt: skip
    return tag("li", join(parts))

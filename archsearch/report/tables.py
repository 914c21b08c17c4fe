"""Trials as tables and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from archsearch.words import count, quantity, size, span

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from archsearch.search.study import Record


def trial_table(
    records: Sequence[Record],
    goals: Sequence[str],
    varying: Collection[tuple[str, str]],
    best: Record | None = None,
    title: str = "genome",
) -> Table:
    """Trials, one a row: genome, parameters, state, score with its spread, other objectives.

    The row of `best` is marked with >. Parameters are counted without embeddings.
    """
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column(title, overflow="fold")
    for name in ("params", "state", "score", "+/- s.e."):
        table.add_column(name, justify="right", no_wrap=True)
    extra = [(i, g) for i, g in enumerate(goals) if g not in ("score", "params", "state_bytes")]
    for _, goal in extra:
        table.add_column(goal, justify="right", no_wrap=True)
    for record in records:
        attrs = record.attrs
        ended = record.status == "ok"
        scored = ended or record.status == "paused"
        won = best is not None and record.index == best.index
        table.add_row(
            f"> {record.index}" if won else str(record.index),
            Text(record.genome.text(varying)),
            count(attrs["params"]),
            size(attrs["state_bytes"]),
            f"{record.score:.3f}" if scored else Text(record.status, style="yellow"),
            f"{record.error:.3f}" if ended else Text(record.status, style="dim") if scored else "",
            *(quantity(goal, record.values[i]) if record.values else "" for i, goal in extra),
            style="bold" if won else "",
        )
    return table


def plain_line(event: dict[str, Any], genome: str, view: Any) -> str:
    """How one trial ended, on one line."""
    left = view.left
    tail = f"; about {span(left)} left" if left else ""
    if event["status"] == "ok":
        outcome = f"score {event['score']:.3f}"
    elif event["status"] in ("paused", "pruned"):
        outcome = f"{event['status']} at {event['score']:.3f}"
    else:
        outcome = f"{event['status']}: {event['why']}"
    return (
        f"[{view.finished}/{view.total}] #{event['index']} {genome}: {outcome} "
        f"({span(event['seconds'])}){tail}"
    )

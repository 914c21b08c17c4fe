"""The live view of a search: overall progress, what is running, the best so far and the front."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from archsearch.report.tables import plain_line, trial_table
from archsearch.words import span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from archsearch.search.rungs import Schedule
    from archsearch.search.study import Record, Study

SHOWN = 5
"""Members of the front that fit into the view."""


@dataclass(slots=True)
class Running:
    """A trial in work, as its events tell."""

    index: int
    genome: str
    began: float
    task: str = ""
    step: int = 0
    loss: float = float("nan")
    accuracy: float = 0.0
    done: float = 0.0


@dataclass(slots=True)
class View:
    """What is known of the search at this moment; turns into a picture on demand."""

    name: str
    schedule: Schedule
    goals: tuple[str, ...]
    varying: frozenset[tuple[str, str]]
    workers: int = 1
    running: dict[int, Running] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    """Index -> seconds of the trials that ended during this command."""
    finished: int = 0
    problems: int = 0
    front: Sequence[Record] = ()
    best: Record | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> int:
        """How many trials there will be; a guess while trials wait at rungs."""
        return self.schedule.total if self.schedule.over else self.schedule.expected

    def event(self, event: dict[str, Any]) -> None:
        """Take in one event of a worker."""
        index = event["index"]
        if event["event"] == "begin":
            self.running[index] = Running(index, event["genome"], time.monotonic())
        elif event["event"] == "step" and index in self.running:
            now = self.running[index]
            now.task, now.step, now.done = event["task"], event["step"], event["done"]
            now.loss, now.accuracy = event["loss"], event["accuracy"]
        elif event["event"] == "end":
            self.running.pop(index, None)
            self.ended[index] = event["seconds"]

    def refresh(self, study: Study) -> None:
        """Read the study again."""
        records = study.records()
        self.schedule.extend(records, study.places())
        self.finished = sum(index < self.total for index in records)
        self.problems = sum(r.status not in ("ok", "paused", "pruned") for r in records.values())
        self.front, self.best = study.front(), study.best()

    @property
    def partly(self) -> float:
        """How much of the running trials is done, in trials."""
        return sum(running.done for running in list(self.running.values()))

    @property
    def left(self) -> float | None:
        """Seconds until the end, judged by the trials so far; None before anything is known."""
        elapsed = time.monotonic() - self.began
        partly = self.partly
        worked = len(self.ended) + partly
        if worked < 0.2 or elapsed < 3:
            return None
        return max(0.0, self.total - self.finished - partly) * elapsed / worked

    def __rich__(self) -> RenderableType:
        return Group(self._head(), Text(), self._running_table(), *self._front_table())

    def _head(self) -> RenderableType:
        elapsed = time.monotonic() - self.began
        partly = self.partly
        left = self.left
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        failed = f", {self.problems} failed" if self.problems else ""
        grid.add_row(
            Text(self.name, style="bold"),
            ProgressBar(
                total=max(1, self.total), completed=min(self.total, self.finished + partly)
            ),
            f"{self.finished}/{self.total} trials{failed}  {span(elapsed)}"
            + (f", about {span(left)} left" if left is not None else ""),
        )
        return grid

    def _running_table(self) -> RenderableType:
        table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
        table.add_column("running", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("task", no_wrap=True, max_width=22, overflow="ellipsis")
        for name in ("step", "loss", "acc"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", width=8)
        for running in sorted(self.running.values(), key=lambda r: r.index):
            seen = running.step > 0
            table.add_row(
                Text(f"#{running.index} {running.genome}"),
                running.task.removeprefix("mad/"),
                str(running.step) if seen else "",
                f"{running.loss:.3f}" if seen else "",
                f"{running.accuracy:.3f}" if seen else "",
                ProgressBar(total=1.0, completed=running.done, width=8),
            )
        for _ in range(self.workers - len(self.running)):
            table.add_row(Text("waiting", style="dim"), "", "", "", "", "")
        return table

    def _front_table(self) -> list[RenderableType]:
        if self.best is None:
            return []
        more = len(self.front) - SHOWN
        rows: list[RenderableType] = [
            Text(),
            trial_table(
                self.front[:SHOWN],
                self.goals,
                self.varying,
                self.best,
                "front, best so far in bold",
            ),
        ]
        return [*rows, Text(f"and {more} more on the front", style="dim")] if more > 0 else rows


class Screen:
    """Shows a `View`: redrawn in place on a terminal, line by line elsewhere."""

    def __init__(self, console: Console, view: View, study: Study) -> None:
        self.console, self.view, self.study = console, view, study
        self._interactive = console.is_terminal
        self._live = Live(view, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Screen:
        self.view.refresh(self.study)
        if self._interactive:
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._interactive:
            self._live.__exit__(None, None, None)

    def event(self, event: dict[str, Any]) -> None:
        """Take in one event of a worker."""
        genome = self.view.running.get(event["index"])
        self.view.event(event)
        if event["event"] != "end":
            return
        self.view.refresh(self.study)
        if not self._interactive or event["status"] not in ("ok", "paused", "pruned"):
            line = plain_line(event, genome.genome if genome else "", self.view)
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

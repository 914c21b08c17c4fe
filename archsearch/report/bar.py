"""How far many trainings are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from archsearch.words import span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


class Bar:
    """How much of some trainings is done: a bar on a terminal, elsewhere a line for each.

    Args:
        title: What they are.
        works: The work of each, in any unit: time left goes by it.
        console: Where.
    """

    def __init__(self, title: str, works: Sequence[float], console: Console) -> None:
        self.title, self.console, self.count, self.ended = title, console, len(works), 0
        self.total, self.done, self.began = sum(works), 0.0, time.monotonic()
        self.trained = False
        columns = (TextColumn("{task.description}"), BarColumn(None), TimeRemainingColumn())
        self.progress = Progress(
            *columns, console=console, transient=True, expand=True,
            disable=not (works and console.is_terminal),
        )  # fmt: skip
        self.task = self.progress.add_task(f"{title} 0/{self.count}", total=self.total)

    def __enter__(self) -> Bar:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.__exit__(None, None, None)

    def end(self, what: str, outcome: str, work: float, seconds: float, *, failed: bool) -> None:
        """One training has ended.

        Time left counts from when the first that took any began: before, processes started.
        """
        if seconds and not self.trained:
            self.trained, self.began = True, max(self.began, time.monotonic() - seconds)
        self.ended, self.done = self.ended + 1, self.done + work
        place = f"{self.title} {self.ended}/{self.count}"
        self.progress.update(self.task, description=place, advance=work)
        if failed or not self.console.is_terminal:
            left = (time.monotonic() - self.began) / self.done * max(0.0, self.total - self.done)
            told = f"; about {span(left)} left" if self.trained else ""
            self.console.print(
                f"[{place}] {what}: {outcome}{told}",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip

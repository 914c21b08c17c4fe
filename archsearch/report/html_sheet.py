"""What the report draws from: a run, read once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from archsearch.errors import RunError
from archsearch.report.html_parts import with_interval
from archsearch.rules import measure
from archsearch.search.finals import interval
from archsearch.search.fresh import recall
from archsearch.search.proposals import seed_candidates
from archsearch.words import quantity

if TYPE_CHECKING:
    from pathlib import Path

    from archsearch.search.finals import Finalist
    from archsearch.search.study import Record, Study

FEW = 6
"""Trials that are shown of a run with one objective, whose front is a single one."""


class Sheet:
    """A run.

    Args:
        study: Its study.
        folder: Its directory.
        run: The directory as commands name it.

    Raises:
        RunError: if no trial has finished.
    """

    def __init__(self, study: Study, folder: Path, run: str) -> None:
        self.study, self.folder, self.run = study, folder, run
        self.experiment = study.experiment()
        self.all = study.records()
        """Every record, by index."""
        if not self.all:
            raise RunError(
                f"{study.name}: no trial has finished yet, so there is nothing to report; "
                "the `archsearch run` that began it goes on"
            )
        self.latest = study.latest()
        self.best, self.finals = study.best(), study.finals()
        self.known = recall(folder, study)
        self.goals = self.experiment.goals
        seeds = zip(
            self.experiment.search.start_from, seed_candidates(self.experiment), strict=True
        )
        self.named = {seed.genome.key: name for name, seed in seeds}
        """What `start_from` calls a genome, by its key."""

    @property
    def shown(self) -> list[Record]:
        """The front, best first; with one objective the best few trials."""
        if len(self.goals) > 1:
            return self.study.front()
        ended = [r for r in self.latest if self.ended(r) and not r.attrs.get("outside")]
        return sorted(ended, key=self._rank)[:FEW]

    @property
    def outside(self) -> list[Record]:
        """What was trained for comparison, without being in the space; best first."""
        beside = [r for r in self.latest if r.attrs.get("outside") and self.ended(r)]
        return sorted(beside, key=self._rank)

    def _rank(self, record: Record) -> tuple[float, int]:
        up = self.goals[0].maximize
        return (-record.values[0] if up else record.values[0]), record.index

    @staticmethod
    def ended(record: Record) -> bool:
        """Whether a trial was trained to its end."""
        return record.status == "ok" and bool(record.values)

    def text(self, record: Record) -> str:
        """The genome of a trial on one line."""
        return record.genome.text(self.experiment.space.varying)

    def title(self, record: Record) -> str:
        """Number and genome of a trial, and what `start_from` calls it."""
        name = self.named.get(record.genome.key)
        return f"#{record.index} {self.text(record)}" + (f" ({name})" if name else "")

    def values(self, record: Record) -> tuple[float, ...]:
        """The objectives of a trial, as far as it came; empty if it has none."""
        if record.values or record.status not in ("paused", "pruned"):
            return record.values if record.status != "diverged" else ()
        known = {"score": record.score, "loss": record.loss}
        context = self.experiment.context
        values = tuple(measure(g.expr, record.genome, context, known) for g in self.goals)
        return values if all(map(math.isfinite, values)) else ()

    def told(self, record: Record) -> str:
        """A trial in one line: genome and objectives."""
        named = zip(self.goals, self.values(record), strict=False)
        values = ", ".join(f"{goal.name} {quantity(goal.name, v)}" for goal, v in named)
        ended = "" if record.status == "ok" else f" ({record.status})"
        return f"{self.title(record)}: {values}{ended}"

    def final(self, record: Record) -> Finalist | None:
        """What the finals say of a trial; None unless it was in them."""
        ranked = self.finals.ranked if self.finals else ()
        return next((f for f in ranked if f.record.genome == record.genome), None)

    def first(self, finalist: Finalist) -> str:
        """The first objective on fresh seeds, with its 95 % interval if it has one."""
        goal = self.goals[0]
        sign = -1 if goal.maximize else 1
        mean, half = interval([sign * value for value in finalist.firsts])
        if not half:
            return quantity(goal.name, mean)
        return with_interval(quantity(goal.name, mean), quantity(goal.name, half)) + " (95 %)"


def ahead(one: Finalist, other: Finalist) -> tuple[float, float]:
    """How far one finalist is ahead of another by the first objective, over paired seeds.

    Returns:
        The mean, and half of its 95 % interval (Student).
    """
    return interval([b - a for a, b in zip(one.firsts, other.firsts, strict=True)])

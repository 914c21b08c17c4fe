"""Rungs: which trial begins anew, which waits, and which goes on.

Asynchronous successive halving (Li et al. 2018, arXiv 1810.05934): a trial waits after some steps,
and the best `keep` of those that came as far go on from their checkpoints. Several objectives are
compared by Pareto rank, then by crowding, then by the first of them.

The sequence of trials is one of places. What place n is for is a function of the trials before
n - lag + 1 alone, so who finished first changes nothing; once every genome has begun, later trials
are looked at one by one, until nothing is left to go on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archsearch.search.evolution import fitness

if TYPE_CHECKING:
    from archsearch.search.study import Record


@dataclass(frozen=True, slots=True)
class Place:
    """What a place in the sequence of trials is for."""

    rung: int = 0
    """How often a trial of this genome has waited before."""
    continues: int | None = None
    """The place of the trial that goes on here; None for a new genome."""


NEW = Place()


@dataclass
class Schedule:
    """The places of a search, as far as results decide them.

    Args:
        trials: New genomes in all.
        lag: How far a decision looks back.
        waits: How often a trial waits before it is trained to its end.
        keep: Share of the trials of a rung that go on.
        values: The objectives of a record, smaller is better.
        always: The first so many genomes go on, whatever they reach.
    """

    trials: int
    lag: int = 1
    waits: int = 0
    keep: float = 1 / 3
    values: Callable[[Record], tuple[float, ...]] = lambda record: record.values
    always: int = 0
    places: list[Place] = field(init=False, default_factory=list)
    over: bool = field(init=False, default=False)
    """Whether no place is left."""
    _promoted: set[int] = field(init=False, default_factory=set)
    _new: list[int] = field(init=False, default_factory=list)
    """The places of new genomes."""

    @property
    def total(self) -> int:
        """Places that are certain; more may follow while trials wait."""
        return len(self.places) + max(0, self.trials - len(self._new))

    @property
    def expected(self) -> int:
        """How many places there will be, about."""
        return max(
            self.total, round(self.trials * sum(self.keep**r for r in range(self.waits + 1)))
        )

    def ordinal(self, index: int) -> int:
        """How many genomes began before a place."""
        return bisect_left(self._new, index) + max(0, index - len(self.places))

    def origin(self, index: int) -> int:
        """The place where a genome began."""
        while (before := self.places[index].continues) is not None:
            index = before
        return index

    def is_new(self, index: int) -> bool:
        """Whether a genome begins at a place; True for a place that is not decided."""
        return index >= len(self.places) or self.places[index].continues is None

    def stuck(self, records: Mapping[int, Record]) -> set[int]:
        """Trials of the first rung that will hardly go on: too many others are better."""
        first = [i for i in self._new if i in records]
        best = self._best(first, records, int(self.trials * self.keep + 1e-9))
        return {*first} - {*best, *self._invited(first)} - self._promoted

    def extend(self, records: Mapping[int, Record], begun: Mapping[int, Place]) -> None:
        """Decide as many places as results allow.

        Args:
            records: The trials that ended, by place.
            begun: What places are for whose trials have begun already; it stays.
        """
        ended = 0
        while ended in records:
            ended += 1
        while not self.over:
            index = len(self.places)
            place = begun.get(index)
            if place is None:
                place = self._decided(index, ended, records)
            elif place.continues is None and len(self._new) >= self.trials:
                place = None
            if place is None:
                self.over = ended >= index and len(self._new) >= self.trials
                return
            self.places.append(place)
            if place.continues is None:
                self._new.append(index)
            else:
                self._promoted.add(place.continues)

    def _decided(self, index: int, ended: int, records: Mapping[int, Record]) -> Place | None:
        first = max(0, index - self.lag + 1)
        if ended < first:
            return None
        place = self._promotion(first, records)
        if place is None and len(self._new) < self.trials:
            return NEW
        views = range(first + 1, min(ended, index) + 1)
        later = (self._promotion(view, records) for view in views)
        return place or next(filter(None, later), None)

    def _promotion(self, view: int, records: Mapping[int, Record]) -> Place | None:
        """The trial to go on, by what the first `view` places know; the highest rung first."""
        for rung in reversed(range(self.waits)):
            among = [i for i in range(view) if self.places[i].rung == rung]
            most = int(len(among) * self.keep + 1e-9)
            for index in (*self._invited(among), *self._best(among, records, most)):
                if records[index].status == "paused" and index not in self._promoted:
                    return Place(rung + 1, index)
        return None

    def _invited(self, among: list[int]) -> list[int]:
        first = self._new[: self.always]
        return [i for i in among if self.origin(i) in first] if first else []

    def _best(self, among: list[int], records: Mapping[int, Record], most: int) -> list[int]:
        """The best so many of some trials, best first."""
        valued = {i: v for i in among if (v := self.values(records[i]))} if most else {}
        if not valued:
            return []
        ranks = dict(zip(valued, fitness(list(valued.values()), most), strict=True))
        return sorted(valued, key=lambda i: (ranks[i], valued[i], i))[:most]

"""Who wins: the finalists of a search on fresh seeds, and which of them can be told apart.

A score of the search is the best of many, and so partly luck. The finalists are trained anew on
seeds that the search has not used; all meet the same rows, so their differences are paired.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from archsearch.rules import measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from archsearch.search.study import Record
    from archsearch.space_yaml import Goal


class Fresh(NamedTuple):
    """One training of a genome on a seed that the search has not used."""

    score: float
    """Token accuracy on held-out rows, the mean over tasks; 0 for a training that failed."""
    loss: float
    """Training loss of the last stretch, the mean over tasks."""
    harder: float | None
    """Token accuracy on the harder version of the tasks that have one; None if not measured."""
    why: str = ""
    """What went wrong in a training that failed."""
    accuracies: tuple[float, ...] = ()
    """Of each task, in their order; empty where only the mean was kept."""


Known = dict[str, dict[int, Fresh]]
"""Fresh trainings by the key of the genome and the number of the seed."""


def to_plain(known: Known) -> dict[str, Any]:
    """Fresh trainings as JSON takes them."""
    return {
        key: {str(k): [*f[:-1], list(f.accuracies)] for k, f in sorted(of.items())}
        for key, of in known.items()
    }


def from_plain(data: Mapping[str, Any]) -> Known:
    """What `to_plain` made."""
    return {
        key: {int(k): Fresh(*f[:4], *map(tuple, f[4:])) for k, f in of.items()}
        for key, of in data.items()
    }


def merged(*several: Known) -> Known:
    """All trainings of several memories; equal seeds give equal trainings."""
    known: Known = {}
    for one in several:
        for key, trainings in one.items():
            known.setdefault(key, {}).update(trainings)
    return known


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of at least two values, and half of its 95 % interval (Student)."""
    from scipy.special import stdtrit

    n = len(values)
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / n**0.5
    return statistics.mean(values), half


@dataclass(frozen=True, slots=True)
class Finalist:
    """A trial of the search, and what its genome does on fresh seeds."""

    record: Record
    fresh: tuple[Fresh, ...]
    """One training per seed."""
    values: tuple[float, ...]
    """The objectives with the fresh means for score and loss, turned so that smaller is better."""
    firsts: tuple[float, ...]
    """The first objective on each seed, turned likewise."""

    @property
    def score(self) -> tuple[float, float]:
        """Mean of the fresh scores, and half of its 95 % interval."""
        return interval([fresh.score for fresh in self.fresh])

    @property
    def harder(self) -> float | None:
        """Mean score on the harder tasks; None unless it was measured on every seed."""
        scores = [fresh.harder for fresh in self.fresh if fresh.harder is not None]
        return statistics.mean(scores) if len(scores) == len(self.fresh) else None

    def behind(self, other: Finalist) -> bool:
        """Whether the first objective is clearly worse than that of `other`, seed by seed."""
        if not all(map(math.isfinite, (*self.firsts, *other.firsts))):
            return self.values[0] > other.values[0]
        pairs = zip(self.firsts, other.firsts, strict=True)
        mean, half = interval([mine - theirs for mine, theirs in pairs])
        return mean - half > 0


@dataclass(frozen=True, slots=True)
class Finals:
    """The outcome: ranked finalists, those that cannot be told apart from the first, the winner."""

    ranked: tuple[Finalist, ...]
    """Best first by the first objective."""
    group: tuple[Finalist, ...]
    winner: Finalist
    """Of the group, the cheapest by the other objectives among those near the first."""
    seeds: int


def judge(
    records: Sequence[Record], known: Known, seeds: int, goals: Sequence[Goal], context: int
) -> Finals | None:
    """The outcome of the finals of some trials; None while a training is missing.

    The winner is no further behind the first than two standard errors of the first's own mean, as
    in the rule of Breiman et al. (1984) for pruning. Its own spread is no help to a candidate: one
    of which little is known is tied with everything.

    Args:
        records: The finalists.
        known: Their fresh trainings.
        seeds: How many of each count, from seed 0 on.
        goals: The objectives.
        context: Context length at which costs are given.
    """
    places = range(seeds)
    if not records or any(k not in known.get(r.genome.key, {}) for r in records for k in places):
        return None

    def valued(record: Record, score: float, loss: float) -> tuple[float, ...]:
        trained = {"score": score, "loss": loss}
        values = [measure(goal.expr, record.genome, context, trained) for goal in goals]
        signed = [-v if goal.maximize else v for goal, v in zip(goals, values, strict=True)]
        return tuple(v if math.isfinite(v) else math.inf for v in signed)

    finalists = []
    for record in records:
        fresh = tuple(known[record.genome.key][k] for k in places)
        score, loss = (statistics.mean(values) for values in list(zip(*fresh, strict=True))[:2])
        firsts = tuple(valued(record, f.score, f.loss)[0] for f in fresh)
        finalists.append(Finalist(record, fresh, valued(record, score, loss), firsts))
    ranked = sorted(finalists, key=lambda f: (f.values, f.record.index))
    group = [f for f in ranked if f is ranked[0] or not f.behind(ranked[0])]
    first, spread = ranked[0], 0.0
    if all(map(math.isfinite, first.firsts)):
        spread = 2 * statistics.stdev(first.firsts) / seeds**0.5
    near = [f for f in group if f is first or f.values[0] - first.values[0] <= spread]
    winner = min(near, key=lambda f: (f.values[1:], f.values[0], f.record.index))
    return Finals(tuple(ranked), tuple(group), winner, seeds)

"""Which strategy finds better members of a space in as many trials?

Every strategy searches with the same seeds, by the code that a real search runs, in a table instead
of by training. A trial observes one replicate of a member; what is judged is the true value, over
all replicates, of the member that was observed best so far. Of two objectives it is the hypervolume
of the front that was observed, as a share of that of the whole table.

Shapes: S seeds, T trials, B budgets.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from archsearch.errors import RunError, SpaceError, nearest
from archsearch.rules import members
from archsearch.search.evolution import dominates
from archsearch.search.paired import FEWEST, Test, against, median_reached
from archsearch.search.proposals import NAMES, Proposals
from archsearch.search.study import Record
from archsearch.seeds import seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from archsearch.genome import Genome
    from archsearch.search.table import Row, Table
    from archsearch.space_yaml import Experiment

REFERENCE = "random"
TOP = 0.01
"""Share of the members that a search is asked to get among."""
ENOUGH = 0.95
"""Share of the hypervolume that a search for two objectives is asked for."""

SHARES = (0.25, 0.5, 1.0)
"""Budgets that are tested, as shares of the trials."""

Point = tuple[float, ...]
"""Values of the objectives, turned so that smaller is better; empty for a member that failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """One search: the members it tried, in order."""

    keys: tuple[str, ...]
    observed: tuple[Point, ...]
    milliseconds: float
    """CPU time of a proposal, the mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What the searches of one strategy came to."""

    name: str
    curves: NDArray[np.float64]
    """By seed and trial: the true value of what was found until then."""
    reached: tuple[int | None, ...]
    """Trials to the target, by seed; None if it never got there."""
    milliseconds: float
    """CPU time of a proposal, the mean."""
    tests: tuple[Test, ...]
    """Against the reference: its value at each budget, then its trials to the target. None for the
    reference itself."""

    @property
    def median(self) -> float:
        """Median of the trials to the target; infinite if half of the searches never got there."""
        return median_reached(self.reached)


def check(experiment: Experiment, strategies: Sequence[str], seeds: int, trials: int) -> list[str]:
    """The strategies to compare, the reference among them.

    Raises:
        SpaceError: if one does not exist, or the objectives are more than two.
        RunError: if so few seeds tell nothing, or every search would try the whole space.
    """
    for name in strategies:
        if name not in NAMES:
            raise SpaceError(f"unknown strategy '{name}'; {nearest(name, NAMES)}")
    if seeds < FEWEST:
        raise RunError(
            f"--seeds {seeds}: fewer than {FEWEST} paired seeds tell nothing; 15 are usual"
        )
    if len(experiment.goals) > 2:
        raise SpaceError(
            f"{experiment.space.name} has {len(experiment.goals)} objectives; strategies are "
            "compared on one or two. Take some with e.g. "
            "--set 'objectives=[{maximize: score}, {minimize: state_bytes}]'"
        )
    listed = members(experiment.space, experiment.context)
    if listed is not None and trials >= len(listed):
        raise RunError(
            f"--trials {trials} covers all {len(listed)} members of {experiment.space.name}, so "
            f"every strategy would find the best; at most {len(listed) - 1}, better a fifth"
        )
    return list(dict.fromkeys([*strategies, REFERENCE]))


def search(
    experiment: Experiment,
    table: Table,
    strategy: str,
    number: int,
    trials: int,
    on_trial: Callable[[], None] = lambda: None,
) -> Walk:
    """One search by a strategy, alone on one worker.

    Args:
        experiment: What is searched.
        table: What its members score.
        strategy: Who proposes.
        number: The seed: of the random start, of the strategy, and of which replicate each member
            shows. Equal for all strategies, so searches with one number are paired.
        trials: How many.
        on_trial: Called after each.
    """
    chosen = {"strategy": strategy, "seed": number, "trials": trials, "rungs": []}
    experiment = dataclasses.replace(experiment, search=experiment.search.model_copy(update=chosen))
    proposals = Proposals(experiment, lag=1)
    records: dict[int, Record] = {}
    begun: dict[int, Genome] = {}
    spent = 0.0
    for index in range(trials):
        began = time.process_time()
        candidate = proposals.propose(index, records, begun)
        spent += time.process_time() - began
        row = table.get(candidate.genome)
        replicate = seed("replicate", number, candidate.genome.key) % experiment.recipe.seeds
        seen = row.observed(experiment, replicate)
        attrs: dict[str, Any] = {"score": seen.score, "loss": seen.loss}
        attrs["origin"] = candidate.origin
        if candidate.parent is not None:
            attrs |= {"move": candidate.move, "parent": candidate.parent}
        records[index] = Record(
            index=index, number=index, genome=candidate.genome, params=dict(candidate.decisions),
            status=row.status, why=row.why, values=seen.values, scores=seen.scores, attrs=attrs,
        )  # fmt: skip
        begun[index] = candidate.genome
        on_trial()
    return Walk(
        keys=tuple(begun[i].key for i in range(trials)),
        observed=tuple(signed(experiment, records[i].values) for i in range(trials)),
        milliseconds=1e3 * spent / trials,
    )


def signed(experiment: Experiment, values: Iterable[float]) -> Point:
    """Values turned so that smaller is better; turned twice they are themselves."""
    pairs = zip(values, experiment.goals, strict=False)
    return tuple(-value if goal.maximize else value for value, goal in pairs)


class Judge:
    """What the members of a table are truly worth.

    Args:
        table: With every member that any search has tried.
        experiment: Its objectives.
    """

    def __init__(self, table: Table, experiment: Experiment) -> None:
        self.experiment = experiment
        rows = table.rows.values()
        self.true = {r.genome.key: signed(experiment, r.true(experiment)) for r in rows}
        self.points = sorted(point for point in self.true.values() if point)
        if not self.points:
            raise RunError(
                f"no member of {experiment.space.name} ended well, so none can be judged"
            )
        self.complete = table.complete
        self.noise = _noise(list(rows), experiment)

    @property
    def single(self) -> bool:
        """Whether there is one objective."""
        return len(self.experiment.goals) == 1

    @property
    def up(self) -> bool:
        """Whether a larger value is better."""
        return not self.single or self.experiment.goals[0].maximize

    @cached_property
    def target(self) -> tuple[float, str]:
        """The value that a search is asked for, and what it stands for."""
        if not self.single:
            return ENOUGH, f"{ENOUGH:.0%} of the hypervolume"
        worths = [point[0] for point in self.points]
        if self.complete:
            top = max(1, math.floor(TOP * len(worths)))
            what = f"the top 1 %, {top} of {len(worths)} members"
            return self._plain(worths[top - 1]), what
        return self._plain(worths[0] + self.noise), "the best known, within the sd of a seed"

    def curve(self, walk: Walk) -> NDArray[np.float64]:
        """The true value after each trial of what was found until then."""
        found = self._incumbents(walk) if self.single else self._fronts(walk)
        return np.array(found)

    def reached(self, curve_T: NDArray[np.float64]) -> int | None:
        """After how many trials a search is where it is asked to get; None if it never is."""
        target = self.target[0]
        hits_T = curve_T >= target if self.up else curve_T <= target
        return int(hits_T.argmax()) + 1 if hits_T.any() else None

    def _incumbents(self, walk: Walk) -> list[float]:
        best: float | None = None
        worth, found = self.points[-1][0], list[float]()
        for key, point in zip(walk.keys, walk.observed, strict=True):
            if point and (best is None or point[0] < best):
                best, worth = point[0], self.true[key][0]
            found.append(self._plain(worth))
        return found

    def _fronts(self, walk: Walk) -> list[float]:
        front: list[tuple[Point, str]] = []
        share, found = 0.0, list[float]()
        for key, point in zip(walk.keys, walk.observed, strict=True):
            if point and not any(dominates(other, point) for other, _ in front):
                front = [(o, k) for o, k in front if not dominates(point, o)] + [(point, key)]
                share = self._share([self.true[k] for _, k in front])
            found.append(share)
        return found

    def _share(self, points: Sequence[Point]) -> float:
        whole = hypervolume(self.points, self._reference)
        return hypervolume(points, self._reference) / whole if whole else 1.0

    @cached_property
    def _reference(self) -> Point:
        """The worst value of each objective."""
        return tuple(map(max, zip(*self.points, strict=True)))

    def _plain(self, worth: float) -> float:
        return -worth if self.up else worth


def _noise(rows: list[Row], experiment: Experiment) -> float:
    """Standard deviation of the first objective over the replicates of a member, pooled."""
    variances = []
    for row in rows:
        seen = [row.observed(experiment, k).values for k in range(experiment.recipe.seeds)]
        first = [values[0] for values in seen if values]
        if len(first) > 1:
            variances.append(float(np.var(first, ddof=1)))
    return math.sqrt(sum(variances) / len(variances)) if variances else 0.0


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """The area that points of two objectives dominate, up to a reference; smaller is better."""
    area, height = 0.0, reference[1]
    for x, y in sorted(points):
        if y < height:
            area += max(0.0, reference[0] - x) * (height - y)
            height = y
    return area


def budgets(trials: int) -> list[int]:
    """The numbers of trials after which strategies are tested."""
    return sorted({max(1, round(trials * share)) for share in SHARES})


def found(judge: Judge, walks: Mapping[str, Sequence[Walk]], trials: int) -> list[Finding]:
    """What the searches of each strategy came to, the best at the end first."""
    sign, at = 1.0 if judge.up else -1.0, [n - 1 for n in budgets(trials)]
    curves = {name: np.stack([judge.curve(w) for w in some]) for name, some in walks.items()}
    reached = {
        name: tuple(judge.reached(curve_T) for curve_T in curves_ST)
        for name, curves_ST in curves.items()
    }

    def tested(name: str) -> NDArray[np.float64]:
        """Larger is better; searches that never got there come last, all alike."""
        times_S = np.array([-float(n or trials + 1) for n in reached[name]])
        return np.column_stack([sign * curves[name][:, at], times_S])

    findings = [
        Finding(
            name=name, curves=curves[name], reached=reached[name],
            milliseconds=sum(w.milliseconds for w in some) / len(some),
            tests=() if name == REFERENCE else tuple(against(tested(name), tested(REFERENCE))),
        )
        for name, some in walks.items()
    ]  # fmt: skip
    return sorted(findings, key=lambda f: -sign * float(f.curves[:, -1].mean()))

"""What sweeps over widths and depths say: does the best learning rate of the base still hold?

Learning rates are powers of two, losses in nats.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from archsearch.errors import RunError
from archsearch.scale.estimate import Estimate, student
from archsearch.scale.sweep import Sweep, drift, optimum, zero_shot_gap
from archsearch.scale.transfer import SCHEMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from archsearch.mup import Scheme
    from archsearch.scale.sweep import Optimum
    from archsearch.scale.transfer import Axis, Row, Swept

MOST_SHIFT = 1.0
"""Powers of two that the best learning rate may move from the base to the largest size."""
MOST_SLOPE = 0.2
"""The same per doubling, of which the interval of the slope must hold a part."""
MOST_GAP = 0.03
"""Nats that the base's best learning rate may cost at the largest size."""
SLACK = 0.01
"""Nats that a larger model may be worse, for the noise of two seeds."""
MOST_RATIO = 1.3
"""Learning-rate sensitivity of the largest size over that of the base."""
MOST_LEFT = 0.15
"""By what share of it that which decay leaves of the start may differ between two widths."""
CONTROL_SHIFT = -2 / 3
"""Powers of two per doubling of the width that SP must move, or the sweep could not tell."""
CONTROL_GAP = 0.1
"""Nats that the base's best learning rate must cost at the largest width in SP."""
CONTROL_DEEPER = 0.05
"""Nats that the deepest model must be worse than the base with a = 0."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One scheme over one axis."""

    axis: Axis
    scheme: Scheme
    sizes: tuple[int, ...]
    """Widths, or depths in branches; rising, the base first."""
    sweeps: tuple[Sweep, ...]

    @property
    def control(self) -> bool:
        """Whether this scheme is there to fail."""
        return self.scheme == SCHEMES[self.axis][0]

    @cached_property
    def optima(self) -> tuple[Optimum, ...]:
        """The best learning rate of each size."""
        return tuple(map(optimum, self.sweeps))

    @property
    def doublings(self) -> float:
        """From the base to the largest size."""
        return math.log2(self.sizes[-1] / self.sizes[0])

    @cached_property
    def at(self) -> float:
        """The swept rate next to the best one of the base."""
        best = self.optima[0].log2_lr
        return min(self.sweeps[0].log2_lrs, key=lambda log2_lr: abs(log2_lr - best))

    @cached_property
    def at_base(self) -> tuple[float, ...]:
        """Mean loss of each size at the base's best learning rate.

        Raises:
            RunError: if a size was not trained at that rate.
        """
        return tuple(float(s.means[self._index(s)]) for s in self.sweeps)

    def _index(self, sweep: Sweep) -> int:
        if self.at not in sweep.log2_lrs:
            raise RunError(f"a size was not trained at the base's best learning rate, 2^{self.at:g}")
        return sweep.log2_lrs.index(self.at)

    def shift(self, size: int = -1) -> Estimate:
        """By how much the best learning rate of a size, by its place, is above that of the base.

        Losses of both sweeps share their noise. Without bounds where an optimum is not known; the
        value then stops at the end of the sweep.
        """
        base, other = self.optima[0], self.optima[size]
        moved, df = other.log2_lr - base.log2_lr, base.df + other.df
        if base.why or other.why or not df:
            return student(moved, math.inf, 0)
        squares = sum(o.df * o.noise**2 for o in (base, other) if o.df)
        error = math.sqrt(squares / df) * math.hypot(base.spread, other.spread)
        return student(moved, error, df)

    @property
    def slope(self) -> Estimate | None:
        """Powers of two per doubling of the size; None if fewer than two optima are known."""
        try:
            return drift([math.log2(size) for size in self.sizes], self.optima).slope
        except RunError:
            return None

    def gap(self, size: int = -1) -> float:
        """What the base's best learning rate costs a size, by its place; nats."""
        return zero_shot_gap(self.sweeps[0], self.sweeps[size])

    @property
    def sensitivities(self) -> tuple[float, ...]:
        """How far above its best each sweep is on average, over the rates that all have."""
        rates = set.intersection(*(set(sweep.log2_lrs) for sweep in self.sweeps))
        return tuple(_of_rates(sweep, rates).sensitivity for sweep in self.sweeps)

    @property
    def ratio(self) -> float:
        """Sensitivity of the largest size over that of the base."""
        first, *_, last = self.sensitivities
        return last / first


def _of_rates(sweep: Sweep, rates: set[float]) -> Sweep:
    kept = [
        (log2_lr, of)
        for log2_lr, of in zip(sweep.log2_lrs, sweep.losses, strict=True)
        if log2_lr in rates
    ]
    log2_lrs, losses = zip(*kept, strict=True)
    return Sweep(log2_lrs=log2_lrs, losses=losses, cap=sweep.cap)


def transfers(swept: Swept) -> list[Transfer]:
    """Every scheme over every axis that was swept, controls first.

    Raises:
        RunError: if a training is missing.
    """
    base = swept.genome.d_model, len(swept.genome.genes)
    rows = [row for row in swept.rows if not row.decay]
    found = []
    for place, axis in enumerate(SCHEMES):
        for scheme in SCHEMES[axis]:
            along: dict[int, list[Row]] = {}
            for row in rows:
                size, other = (row.width, row.depth)[:: -1 if place else 1]
                at_base = (row.width, row.depth) == base
                if at_base or (row.scheme == scheme and other == base[1 - place]):
                    along.setdefault(size, []).append(row)
            if len(along) > 1:
                sizes = tuple(sorted(along))
                sweeps = tuple(_sweep(along[size], swept.guessing) for size in sizes)
                found.append(Transfer(axis=axis, scheme=scheme, sizes=sizes, sweeps=sweeps))
    return found


def _sweep(rows: Iterable[Row], guessing: float) -> Sweep:
    by_lr: dict[float, dict[int, float]] = {}
    for row in rows:
        by_lr.setdefault(round(math.log2(row.lr), 6), {})[row.seed] = row.loss
    log2_lrs = sorted(by_lr)
    losses = [[of for _, of in sorted(by_lr[log2_lr].items())] for log2_lr in log2_lrs]
    return Sweep(log2_lrs=tuple(log2_lrs), losses=tuple(map(tuple, losses)), cap=guessing)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a parametrisation must do, or that its control must fail to do."""

    axis: Axis
    name: str
    scheme: Scheme
    control: bool
    """Whether this is the scheme that must fail."""
    held: bool
    """Whether it came out as it must: of a control, that it failed."""
    said: str
    """What was measured, and the limit."""


def judge(swept: Swept) -> list[Check]:
    """Every check that the rows allow.

    Raises:
        RunError: if a training is missing.
    """
    found = transfers(swept)
    checks = [check for transfer in found for check in _checks(transfer)]
    return [*checks, *_decay(swept)]


def _checks(of: Transfer) -> Iterator[Check]:
    def check(name: str, held: bool, said: str) -> Check:
        return Check(of.axis, name, of.scheme, of.control, held, said)

    gap, last = of.gap(), of.at_base[-1]
    shift, ratio = of.shift().value, of.ratio
    known = not (of.optima[0].why or of.optima[-1].why)
    if of.axis == "depth":
        worse = last - of.at_base[0]
        if of.control:
            said = f"{worse:+.3f} nats from depth {of.sizes[0]} to {of.sizes[-1]}"
            yield check("deeper", worse >= CONTROL_DEEPER, f"{said}, at least {CONTROL_DEEPER:+g}")
        else:
            said = f"{worse:+.3f} nats from depth {of.sizes[0]} to {of.sizes[-1]}"
            yield check("deeper", worse <= SLACK, f"{said}, at most {SLACK:+g}")
            yield check("gap", gap <= MOST_GAP, f"{gap:.3f} nats, at most {MOST_GAP:g}")
        return
    rises = max(after - before for before, after in pairwise(of.at_base))
    if of.control:
        least = CONTROL_SHIFT * of.doublings
        yield check("shift", shift <= least, f"{shift:+.2f} powers of two, at most {least:+.2f}")
        yield check("gap", gap >= CONTROL_GAP, f"{gap:.3f} nats, at least {CONTROL_GAP:g}")
        yield check("wider", last > min(of.at_base), f"up to {rises:+.3f} nats from one to the next")
    else:
        slope = of.slope
        near = slope is not None and slope.low <= MOST_SLOPE and slope.high >= -MOST_SLOPE
        within = known and near and abs(shift) <= MOST_SHIFT
        said = f"{shift:+.2f} powers of two, at most {MOST_SHIFT:g}"
        yield check("shift", within, f"{said}; {slope:.2f} per doubling" if slope else said)
        yield check("gap", gap <= MOST_GAP, f"{gap:.3f} nats, at most {MOST_GAP:g}")
        said = f"{rises:+.3f} nats from one to the next at most, limit {SLACK:+g}"
        yield check("wider", rises <= SLACK, said)
    held = ratio > MOST_RATIO if of.control else ratio <= MOST_RATIO
    yield check("sensitivity", held, f"{ratio:.2f} times that of the base, limit {MOST_RATIO:g}")


def _decay(swept: Swept) -> Iterator[Check]:
    """Whether decay leaves as much of the start at two widths."""
    narrow = swept.genome.d_model
    left: dict[tuple[int, float], list[float]] = {}
    for row in swept.rows:
        if row.left is not None:
            left.setdefault((row.width, row.decay), []).append(row.left)
    means = {key: statistics.fmean(of) for key, of in left.items()}
    for (width, decay), base in means.items():
        if width != narrow:
            continue
        for (wide, of), mean in means.items():
            if wide == narrow:
                continue
            control, off = of != decay, mean / base - 1
            held = (abs(off) > MOST_LEFT) == control
            what = "unscaled" if control else "scaled"
            said = f"{mean:.2f} of the start left at width {wide}, {base:.2f} at {narrow}"
            said += f" ({off:+.0%}, limit {MOST_LEFT:.0%}; {what})"
            yield Check("width", "decay", "mup", control, held, said)

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
from archsearch.scale.sweep import Sweep, drift, optimum
from archsearch.scale.transfer import SCHEMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
AROUND = 2.0
"""Powers of two from the base's best learning rate within which sensitivity is measured."""
FULL = 3.0
"""Doublings of the width that the limits of controls are for."""
CONTROL_SHIFT = -2.0
"""Powers of two that SP must move over them, and in proportion over fewer."""
CONTROL_GAP = 0.1
"""Nats that the base's best learning rate must cost there in SP; as losses are parabolas near their
least, it grows as the square of the shift."""
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
            raise RunError(
                f"some {self.axis} was not trained at the base's best rate, 2^{self.at:g}"
            )
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
    def reach(self) -> tuple[float, float]:
        """Between which the shift of the largest size lies, as far as ends of sweeps allow.

        An optimum at the end of a sweep may be beyond it, but not on the other side.
        """
        base, other = self.optima[0], self.optima[-1]
        moved = other.log2_lr - base.log2_lr
        ends = (other.end, -base.end)
        nowhere = any(of.why and not of.end for of in (base, other))
        low = -math.inf if nowhere or -1 in ends else moved
        return low, math.inf if nowhere or 1 in ends else moved

    @property
    def slope(self) -> Estimate | None:
        """Powers of two per doubling of the size; None if fewer than two optima are known."""
        try:
            return drift([math.log2(size) for size in self.sizes], self.optima).slope
        except RunError:
            return None

    def gap(self, size: int = -1) -> float:
        """What the base's best learning rate costs a size, by its place; nats, never negative.

        Raises:
            RunError: if a size was not trained at that rate.
        """
        return self.at_base[size] - self.sweeps[size].best

    @property
    def sensitivities(self) -> tuple[float, ...]:
        """How far above its best each sweep is on average, over rates near the base's best one."""
        shared = set.intersection(*(set(sweep.log2_lrs) for sweep in self.sweeps))
        near = sorted(shared, key=lambda rate: abs(rate - self.at))
        rates = {rate for i, rate in enumerate(near) if i < 3 or abs(rate - self.at) <= AROUND}
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
    """Whether this is what must fail."""
    held: bool | None
    """None where it cannot be told, as a best learning rate is not within its sweep."""
    measured: str
    limit: str

    @property
    def passed(self) -> bool:
        """Whether it came out as it must."""
        return self.held is (not self.control)


def judge(swept: Swept) -> list[Check]:
    """Every check that the rows allow.

    A control fails a check by more than chance: its limits are further off.

    Raises:
        RunError: if a training is missing.
    """
    over = {"width": _over_width, "depth": _over_depth}
    checks = [check for of in transfers(swept) for check in over[of.axis](of)]
    return [*checks, *_decay(swept)]


def _over_width(of: Transfer) -> Iterator[Check]:
    shift, ratio = of.shift(), of.ratio
    rise = max(after - before for before, after in pairwise(of.at_base))

    def check(name: str, held: bool | None, measured: str, limit: float) -> Check:
        return Check("width", name, of.scheme, of.control, held, measured, f"{limit:.3g}")

    moved = f"{shift.value:+.2f} powers of two"
    if of.control:
        share = min(1.0, of.doublings / FULL)
        least, most = CONTROL_SHIFT * share, CONTROL_GAP * share**2
        low, high = of.reach
        shifted = True if low > least else False if high <= least else None
        yield check("shift", shifted, moved, least)
        yield check("gap", *_gap(of, most), most)
        if of.doublings >= FULL:  # over fewer, what width gains may outweigh the wrong rate
            worse = of.at_base[-1] - min(of.at_base)
            yield check("wider", _at_best(of, worse <= 0), f"{worse:+.3f} nats", 0)
    else:
        near = of.slope is not None and of.slope.low <= MOST_SLOPE and of.slope.high >= -MOST_SLOPE
        low, high = of.reach
        limit, held = MOST_SHIFT, False if min(high, -low) < -MOST_SHIFT else None
        if low == high:
            held = near and abs(shift.value) <= MOST_SHIFT
            if of.slope and not near:
                moved, limit = f"{of.slope:.2f} a doubling", MOST_SLOPE
        yield check("shift", held, moved, limit)
        yield check("gap", *_gap(of, MOST_GAP), MOST_GAP)
        yield check("wider", _at_best(of, rise <= SLACK), f"{rise:+.3f} nats", SLACK)
    held = _at_best(of, ratio <= MOST_RATIO)
    yield check("sensitivity", held, f"{ratio:.2f} x the base's", MOST_RATIO)


def _at_best(of: Transfer, held: bool) -> bool | None:
    """What is looked at at the base's best learning rate, if that is known."""
    return None if of.optima[0].why else held


def _gap(of: Transfer, most: float) -> tuple[bool | None, str]:
    """Whether the largest size loses at most so much at the base's best learning rate, and what.

    At the end of its sweep it loses at least what was measured.
    """
    gap = of.gap()
    held = None if of.optima[-1].why and gap <= most else _at_best(of, gap <= most)
    return held, f"{gap:+.3f} nats"


def _over_depth(of: Transfer) -> Iterator[Check]:
    worse = of.at_base[-1] - of.at_base[0]
    limit = CONTROL_DEEPER if of.control else SLACK
    held = worse < limit if of.control else worse <= limit
    told = of.scheme, of.control
    yield Check("depth", "deeper", *told, _at_best(of, held), f"{worse:+.3f} nats", f"{limit:g}")
    if not of.control:
        yield Check("depth", "gap", *told, *_gap(of, MOST_GAP), f"{MOST_GAP:g}")


def _decay(swept: Swept) -> Iterator[Check]:
    """Whether decay leaves as much of the start at a larger width."""
    left: dict[tuple[int, float], list[float]] = {}
    for row in swept.rows:
        if row.left is not None:
            left.setdefault((row.width, row.decay), []).append(row.left)
    means = {key: statistics.fmean(of) for key, of in left.items()}
    base = swept.genome.d_model
    for (narrow, scaled), less in means.items():
        for (wide, decay), more in means.items():
            if narrow == base < wide:
                held, control = abs(more / less - 1) <= MOST_LEFT, decay != scaled
                said = f"{more:.2f}, base {less:.2f}"
                yield Check("width", "decay", "mup", control, held, said, f"{MOST_LEFT:.0%}")

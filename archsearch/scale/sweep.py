"""The best learning rate of a sweep, how it moves with width, and what it costs to miss it.

Learning rates are powers of two here: 1 is a factor of two. Losses are in nats.

Shapes: L learning rates, P points of a fit, S seeds, W widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from archsearch.errors import RunError
from archsearch.scale.estimate import Estimate, student

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archsearch.scale.estimate import Array

MOST_RATES = 100
"""Learning rates that a user may ask for."""
POINTS = 5
"""Learning rates around the best one that a parabola is laid through."""


def powers(said: str) -> tuple[float, ...]:
    """Learning rates as powers of two: `-9:-3` is 2^-9, 2^-8 .. 2^-3, `-9:-3:0.5` twice as many.

    Raises:
        RunError: if that is no such text.
    """
    try:
        low, high, step = ([*map(float, said.split(":")), 1.0])[:3]
        count = int((high - low) / step + 1e-6) + 1
        if not (step > 0 and 0 < count <= MOST_RATES and said.count(":") in (1, 2)):
            raise ValueError
    except (ValueError, ArithmeticError):
        raise RunError(
            f"'{said}' names no learning rates; FROM:TO or FROM:TO:STEP as powers of two, at most "
            f"{MOST_RATES} of them, e.g. -9:-3 for 2^-9 to 2^-3"
        ) from None
    return tuple(low + i * step for i in range(count))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One model trained at several learning rates.

    Raises:
        RunError: if there are fewer than three rates, they do not rise, or seeds are missing.
    """

    log2_lrs: tuple[float, ...]
    """Rising."""
    losses: tuple[tuple[float, ...], ...]
    """By learning rate, then by seed; not finite where training diverged."""
    cap: float
    """The loss of guessing, ln V; a run that does worse counts as this."""

    def __post_init__(self) -> None:
        if len(self.log2_lrs) < 3 or sorted(set(self.log2_lrs)) != list(self.log2_lrs):
            raise RunError(
                f"a sweep has three rising learning rates or more; log2 here: {self.log2_lrs}"
            )
        seeds = {len(of) for of in self.losses}
        if len(self.losses) != len(self.log2_lrs) or len(seeds) != 1 or 0 in seeds:
            raise RunError(
                f"a sweep has as many seeds at each of its {len(self.log2_lrs)} learning rates; "
                f"here: {[len(of) for of in self.losses]}"
            )

    @cached_property
    def capped(self) -> Array:
        """Losses by learning rate and seed, none above the cap."""
        losses_LS = np.array(self.losses, np.float64)
        return np.minimum(np.where(np.isfinite(losses_LS), losses_LS, self.cap), self.cap)

    @cached_property
    def means(self) -> Array:
        """Mean over seeds, by learning rate."""
        return self.capped.mean(1)

    @property
    def best(self) -> float:
        """Least mean loss that was measured."""
        return float(self.means.min())

    @property
    def sensitivity(self) -> float:
        """How far above the best the sweep is on average (Wortsman et al. 2023, 2309.14322).

        Comparable between sweeps of the same learning rates alone.
        """
        return float(self.means.mean()) - self.best


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """Where the loss of a sweep is least."""

    log2_lr: float
    loss: float
    """Of the parabola there; the least measured one where there is no parabola."""
    spread: float
    """Standard error of `log2_lr` for losses with a noise of 1 nat."""
    noise: float
    """Standard deviation of the losses about the parabola, nats."""
    df: int
    """Degrees of freedom of the noise."""
    why: str = ""
    """Why the optimum is not known: it is at an end of the sweep, or nowhere. Else empty."""
    end: Literal[-1, 0, 1] = 0
    """Whether it is at the lowest or the highest rate of the sweep, or beyond."""

    @property
    def error(self) -> float:
        """Standard error of `log2_lr`, from the residuals; infinite where there are none."""
        return self.spread * self.noise if self.df and not self.why else math.inf

    @property
    def estimate(self) -> Estimate:
        """`log2_lr` with its interval (Student)."""
        return student(self.log2_lr, self.error, 0 if self.why else self.df)


def optimum(sweep: Sweep) -> Optimum:
    """The minimum of a parabola through the points around the least loss.

    Seeds share their data over all learning rates, so each seed has a level of its own, and what is
    left is the noise. The standard error is that of the delta method.
    """
    lrs_L, lowest = np.array(sweep.log2_lrs), int(sweep.means.argmin())
    first = min(max(0, lowest - POINTS // 2), max(0, len(lrs_L) - POINTS))
    x_P, losses_PS = lrs_L[first : first + POINTS], sweep.capped[first : first + POINTS]
    points, seeds = losses_PS.shape
    middle = float(x_P.mean())
    design_PC = np.stack([np.ones(points), x_P - middle, (x_P - middle) ** 2], axis=1)
    coefficients_C = np.linalg.lstsq(design_PC, losses_PS.mean(1))[0]
    level, slope, bend = map(float, coefficients_C)
    about_PS = losses_PS - (design_PC @ coefficients_C)[:, None]
    df = points * seeds - seeds - 2
    squares = float(((about_PS - about_PS.mean(0)) ** 2).sum())
    noise = math.sqrt(squares / df) if df else math.nan
    at = -slope / (2 * bend) if bend else math.nan
    why = _unknown(sweep, lowest, bend, middle + at)
    if why:
        return Optimum(
            log2_lr=float(lrs_L[lowest]), loss=sweep.best, spread=math.inf, noise=noise, df=df,
            why=why, end=-1 if lowest == 0 else 1 if lowest == len(lrs_L) - 1 else 0,
        )  # fmt: skip
    gradient_C = np.array([0.0, -1.0, -2 * at]) / (2 * bend)
    variance = gradient_C @ np.linalg.inv(design_PC.T @ design_PC) @ gradient_C / seeds
    loss = level - slope**2 / (4 * bend)
    return Optimum(log2_lr=middle + at, loss=loss, spread=math.sqrt(variance), noise=noise, df=df)


def _unknown(sweep: Sweep, lowest: int, bend: float, at: float) -> str:
    """Why a sweep has no optimum; empty if it has one."""
    low, high = sweep.log2_lrs[0], sweep.log2_lrs[-1]
    if lowest == 0:
        return f"the best learning rate is the lowest of the sweep, 2^{low:g}: try lower ones"
    if lowest == len(sweep.log2_lrs) - 1:
        return f"the best learning rate is the highest of the sweep, 2^{high:g}: try higher ones"
    if bend <= 0 or not low <= at <= high:
        return "the losses do not rise on both sides of a minimum: more seeds or a wider sweep"
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How the best learning rate moves with width."""

    slope: Estimate
    """Powers of two per doubling of the width: 0 transfers, -1 is the theory of SP."""
    intercept: float
    """log2 of the best learning rate at width 1."""
    used: tuple[bool, ...]
    """Whether each optimum took part; one that is not known does not."""


def drift(log2_widths: Sequence[float], optima: Sequence[Optimum]) -> Drift:
    """Weighted regression of the best learning rate on width.

    The noise of losses is pooled over all sweeps, as each alone leaves few degrees of freedom. The
    error grows by the scatter about the line where that is more than the noise says (Birge ratio).

    Raises:
        RunError: if fewer than two widths have an optimum.
    """
    used = tuple(not o.why for o in optima)
    kept = [(x, o) for x, o, use in zip(log2_widths, optima, used, strict=True) if use]
    if len({x for x, _ in kept}) < 2:
        whys = "; ".join(dict.fromkeys(o.why for o in optima if o.why))
        raise RunError(f"a slope needs an optimum at two widths: {whys or 'only one was swept'}")
    x_W = np.array([x for x, _ in kept])
    y_W = np.array([o.log2_lr for _, o in kept])
    weights_W = np.array([1 / o.spread**2 for _, o in kept])
    df = sum(o.df for _, o in kept)
    noise = math.sqrt(sum(o.df * o.noise**2 for _, o in kept if o.df) / df) if df else math.nan
    x_mean, y_mean = np.average(x_W, weights=weights_W), np.average(y_W, weights=weights_W)
    squares = float((weights_W * (x_W - x_mean) ** 2).sum())
    slope = float((weights_W * (x_W - x_mean) * (y_W - y_mean)).sum()) / squares
    off = float((weights_W * (y_W - y_mean - slope * (x_W - x_mean)) ** 2).sum())
    scatter = math.sqrt(off / (len(kept) - 2)) if len(kept) > 2 else 0.0
    error = max(noise, scatter) / math.sqrt(squares) if df else math.inf
    return Drift(
        slope=student(slope, error, df), intercept=float(y_mean - slope * x_mean), used=used
    )

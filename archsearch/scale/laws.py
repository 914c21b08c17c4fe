"""How losses and the best hyper-parameters follow size and compute.

Shapes: A exponents, K sizes, R resamples, S seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np

from archsearch.errors import RunError
from archsearch.scale.estimate import Estimate, percentile, seed_noise, student
from archsearch.seeds import seed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from archsearch.scale.estimate import Array

RESAMPLES = 1000
EXPONENTS = np.geomspace(0.005, 4.0, 1500)
"""Exponents that a power law is looked for among, in steps of 0.45 %."""
NEAR = 0.0025
"""A run within this share of the least loss is near-optimal (DeepSeek LLM, 2401.02954)."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """One genome trained at several sizes.

    Raises:
        RunError: if there are fewer than two sizes, they do not rise, seeds are missing, or a loss
            is not finite.
    """

    name: str
    sizes: tuple[float, ...]
    """Parameters, or FLOPs; rising."""
    losses: tuple[tuple[float, ...], ...]
    """By size, then by seed; nats."""

    def __post_init__(self) -> None:
        rising = all(0 < small < large for small, large in pairwise(self.sizes))
        if len(self.sizes) < 2 or not rising:
            raise RunError(f"{self.name}: a law needs two rising sizes or more, not {self.sizes}")
        seeds = {len(of) for of in self.losses}
        if len(self.losses) != len(self.sizes) or len(seeds) != 1 or 0 in seeds:
            raise RunError(
                f"{self.name}: as many seeds are needed at each of the {len(self.sizes)} sizes; "
                f"here: {[len(of) for of in self.losses]}"
            )
        if not all(math.isfinite(loss) for of in self.losses for loss in of):
            raise RunError(f"{self.name}: a run that diverged follows no law; leave its size out")

    @property
    def array(self) -> Array:
        """Losses by size and seed."""
        return np.array(self.losses, np.float64)


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Loss = floor + scale * size^-exponent."""

    floor: Estimate
    """E: what no size gets below; 0 where two sizes leave it open."""
    scale: Estimate
    """A."""
    exponent: Estimate
    """alpha."""
    measured: tuple[float, float]
    """Smallest and largest size."""
    draws: Array = field(repr=False, compare=False)
    """Floor, scale and exponent of every resample; NaN with one seed."""

    def loss(self, size: float) -> Estimate:
        """What the law says of a size."""
        e, a, alpha = self.floor.value, self.scale.value, self.exponent.value
        e_R, a_R, alpha_R = self.draws
        return _percentile(e + a * size**-alpha, e_R + a_R * size**-alpha_R)


def _percentile(value: float, draws_R: Array) -> Estimate:
    """The interval of some draws; without bounds where there are none."""
    if np.isnan(draws_R).all():
        return Estimate(value, -math.inf, math.inf)
    return percentile(value, draws_R)


def power_law(growth: Growth) -> PowerLaw:
    """Fit a power law with a floor to three sizes or more, without one to two.

    Least squares with neither floor nor scale below 0. Intervals are a parametric bootstrap: losses
    are drawn anew about the fit, with the noise that the seeds show, pooled over sizes. Three sizes
    leave no residuals to take it from, seeds drawn with replacement know three means of two seeds,
    and the delta method has no notion of a floor at 0.
    """
    losses_KS = growth.array
    noise, df = seed_noise(losses_KS)
    middle = math.exp(float(np.mean(np.log(growth.sizes))))
    x_K = np.array(growth.sizes) / middle
    fit = _two if len(x_K) == 2 else _three
    floor, scale, exponent = fit(x_K, losses_KS.mean(1)[None])[:, 0]
    rng = np.random.default_rng(seed("power law", growth.name))
    fitted_K = floor + scale * x_K**-exponent
    # Student's errors with one common variance, as the noise is itself an estimate.
    chance_RK = rng.normal(size=(RESAMPLES, len(x_K)))
    if df:
        chance_RK *= np.sqrt(df / rng.chisquare(df, size=(RESAMPLES, 1)))
    drawn_RK = fitted_K + noise / math.sqrt(losses_KS.shape[1]) * chance_RK
    draws = fit(x_K, drawn_RK) if df else np.full((3, 1), math.nan)
    draws[1] *= middle ** draws[2]
    values = (floor, scale * middle**exponent, exponent)
    parts = [_percentile(float(v), draws_R) for v, draws_R in zip(values, draws, strict=True)]
    return PowerLaw(
        floor=parts[0], scale=parts[1], exponent=parts[2],
        measured=(growth.sizes[0], growth.sizes[-1]), draws=draws,
    )  # fmt: skip


def _two(x_K: Array, losses_RK: Array) -> Array:
    """The slope between two points in logarithms: floor 0, scale, exponent, by row."""
    logs_RK = np.log(np.maximum(losses_RK, 1e-12))
    exponent_R = (logs_RK[:, 0] - logs_RK[:, 1]) / math.log(x_K[1] / x_K[0])
    scale_R = np.exp(logs_RK[:, 0]) * x_K[0] ** exponent_R
    return np.stack([np.zeros_like(scale_R), scale_R, exponent_R])


def _three(x_K: Array, losses_RK: Array) -> Array:
    """Least squares by a walk over the exponents: floor, scale, exponent, by row."""
    z_AK = x_K ** -EXPONENTS[:, None]
    z_AK /= z_AK.mean(1, keepdims=True)
    level_R1 = losses_RK.mean(1, keepdims=True)
    centred_AK = z_AK - 1.0
    scale_RA = (losses_RK - level_R1) @ centred_AK.T / (centred_AK**2).sum(1)
    through_RA = losses_RK @ z_AK.T / (z_AK**2).sum(1)
    scale_RA = np.where(scale_RA > level_R1, through_RA, scale_RA)  # the floor would be below 0
    scale_RA = np.maximum(scale_RA, 0.0)
    floor_RA = np.where(scale_RA == through_RA, 0.0, level_R1 - scale_RA)
    off_RA = sum(
        (floor_RA + scale_RA * z_AK[:, k] - losses_RK[:, k, None]) ** 2 for k in range(len(x_K))
    )
    best_R = np.asarray(off_RA).argmin(1)
    rows_R = np.arange(len(losses_RK))
    exponent_R = EXPONENTS[best_R]
    weights_R = (x_K ** -exponent_R[:, None]).mean(1)
    scale_R = scale_RA[rows_R, best_R] / weights_R
    return np.stack([floor_RA[rows_R, best_R], scale_R, exponent_R])


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """How fast a genome gets better from its smallest size to its largest."""

    name: str
    slope: Estimate
    """Nats gained per doubling."""
    small: float
    """log2 of the smallest size."""
    large: float
    loss: float
    """At the largest size, mean over seeds."""
    error: float
    """Standard error of the loss at either size."""

    def at(self, log2_size: float) -> tuple[float, float]:
        """Loss on the line, and its standard error."""
        ahead = (log2_size - self.large) / (self.large - self.small)
        loss = self.loss - self.slope.value * (log2_size - self.large)
        return loss, self.error * math.hypot(1 + ahead, ahead)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """Two genomes that change places."""

    ahead: str
    """Better at the smaller sizes."""
    behind: str
    """Better at the larger ones."""
    size: float
    """Where the lines cross."""
    measured: bool
    """Whether that is up to the largest size that was measured, not beyond."""
    clear: bool
    """Whether both orders are beyond the noise of seeds (95 % each); False with one seed."""


def trends(growths: Sequence[Growth]) -> list[Trend]:
    """The slope of each genome between its smallest and its largest size (2207.10551).

    The noise of seeds is pooled over all of them. With one seed the intervals have no bounds.
    """
    ends = [growth.array[[0, -1]] for growth in growths]
    known = [seed_noise(losses_KS) for losses_KS in ends]
    df = sum(of for _, of in known)
    noise = math.sqrt(sum(n * n * of for n, of in known if of) / df) if df else math.inf
    made = []
    for growth, losses_KS in zip(growths, ends, strict=True):
        error = noise / math.sqrt(losses_KS.shape[1])
        small, large = math.log2(growth.sizes[0]), math.log2(growth.sizes[-1])
        first, last = map(float, losses_KS.mean(1))
        doublings = large - small
        slope = student((first - last) / doublings, math.sqrt(2) * error / doublings, df)
        made.append(
            Trend(name=growth.name, slope=slope, small=small, large=large, loss=last, error=error)
        )
    return made


def crossings(lines: Iterable[Trend], reach: float) -> list[Crossing]:
    """The pairs whose lines cross between the smallest size and `reach` times the largest.

    Args:
        lines: The trends of genomes. Of a pair, the larger of the two smallest and the larger of
            the two largest sizes count.
        reach: How far losses are extrapolated, e.g. 10.
    """
    found = []
    for one, other in combinations(lines, 2):
        small, large = max(one.small, other.small), max(one.large, other.large)
        for start, end in ((small, large), (large, large + math.log2(reach))):
            (near, near_error), (far, far_error) = (_apart(one, other, x) for x in (start, end))
            if near * far < 0:
                ahead, behind = (one, other) if near < 0 else (other, one)
                at = start + (end - start) * near / (near - far)
                clear = abs(near) > 1.96 * near_error and abs(far) > 1.96 * far_error
                found.append(
                    Crossing(
                        ahead=ahead.name, behind=behind.name, size=2.0**at,
                        measured=end == large, clear=clear,
                    )
                )  # fmt: skip
    return found


def _apart(one: Trend, other: Trend, log2_size: float) -> tuple[float, float]:
    """By how much the first is above the second, and the standard error of that."""
    (mine, my_error), (theirs, their_error) = one.at(log2_size), other.at(log2_size)
    return mine - theirs, math.hypot(my_error, their_error)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """One run of a sweep of hyper-parameters."""

    compute: float
    """FLOPs; runs of one budget have equal values."""
    lr: float
    batch: float
    """Tokens."""
    loss: float
    """Nats, the mean over seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperLaw:
    """Best value = coefficient * compute^exponent."""

    coefficient: Estimate
    exponent: Estimate

    def at(self, compute: float) -> float:
        """What the law says of a budget."""
        return self.coefficient.value * compute**self.exponent.value


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperLaws:
    """What learning rate and batch should be at a budget (DeepSeek LLM, 2401.02954, section 3)."""

    lr: HyperLaw | None
    """None where every run has the same."""
    batch: HyperLaw | None
    near: tuple[Tuned, ...]
    """The near-optimal runs that the laws rest on."""
    at_edge: tuple[str, ...]
    """Where a sweep was too narrow, in words."""


def hyper_laws(runs: Sequence[Tuned]) -> HyperLaws:
    """Fit learning rate and batch to compute, through the near-optimal runs of each budget.

    Each budget counts as one point, the geometric mean of its near-optimal runs, since those are
    not independent of each other; intervals are Student's from the residuals of the regression.

    Raises:
        RunError: if there are fewer than three budgets.
    """
    finite = [run for run in runs if math.isfinite(run.loss)]
    budgets = sorted({run.compute for run in finite})
    if len(budgets) < 3:
        raise RunError(
            f"a law of hyper-parameters needs runs at three budgets of compute or more, "
            f"not {len(budgets)}"
        )
    swept = {c: [run for run in finite if run.compute == c] for c in budgets}
    near = {c: _near(of) for c, of in swept.items()}
    laws: dict[str, HyperLaw | None] = {}
    edges = []
    for name in ("lr", "batch"):
        values = {c: [float(getattr(run, name)) for run in of] for c, of in swept.items()}
        if len({v for of in values.values() for v in of}) == 1:
            laws[name] = None
            continue
        chosen = [[float(getattr(run, name)) for run in near[c]] for c in budgets]
        laws[name] = _hyper_law(budgets, [float(np.log(of).mean()) for of in chosen])
        for c, of in zip(budgets, chosen, strict=True):
            for word, end in (("lowest", min), ("highest", max)):
                if end(of) == end(values[c]):
                    edges.append(
                        f"at {c:.3g} FLOPs the {word} {name}, {end(of):.3g}, is near-optimal"
                    )
    return HyperLaws(
        lr=laws["lr"], batch=laws["batch"], at_edge=tuple(edges),
        near=tuple(run for c in budgets for run in near[c]),
    )  # fmt: skip


def _near(runs: Sequence[Tuned]) -> list[Tuned]:
    best = min(run.loss for run in runs)
    return [run for run in runs if run.loss <= (1 + NEAR) * best]


def _hyper_law(budgets: Sequence[float], logs: Sequence[float]) -> HyperLaw:
    """Regression in logarithms, each budget of equal weight."""
    x_K, y_K = np.log(budgets), np.array(logs)
    off_K = x_K - x_K.mean()
    squares = float((off_K**2).sum())
    slope = float((off_K * y_K).sum()) / squares
    level = float(y_K.mean()) - slope * float(x_K.mean())
    df = len(x_K) - 2
    noise = math.sqrt(float(((y_K - level - slope * x_K) ** 2).sum()) / df)
    error = noise * math.sqrt(1 / len(x_K) + float(x_K.mean()) ** 2 / squares)
    log = student(level, error, df)
    return HyperLaw(
        coefficient=Estimate(*(math.exp(min(v, 700.0)) for v in (log.value, log.low, log.high))),
        exponent=student(slope, noise / math.sqrt(squares), df),
    )

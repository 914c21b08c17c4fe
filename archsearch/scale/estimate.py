"""A value and what is known of it.

Shapes: R draws, G groups of runs that differ in their seeds alone, S seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; infinite ends where nothing is known of its spread."""

    value: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __format__(self, spec: str) -> str:
        """`0.76 [0.39, 1.00]`, each number as `spec` says."""
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def student(value: float, error: float, df: int) -> Estimate:
    """A value with a standard error that rests on so many degrees of freedom."""
    from scipy.special import stdtrit

    half = float(stdtrit(df, 0.975)) * error if df > 0 else math.inf
    return Estimate(value, value - half, value + half)


def percentile(value: float, draws_R: Array) -> Estimate:
    """A value with the middle 95 % of its draws; draws that are undefined (NaN) are left out."""
    low, high = np.nanpercentile(draws_R, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def seed_noise(losses_GS: Array) -> tuple[float, int]:
    """Standard deviation over seeds, pooled over the groups, and its degrees of freedom.

    NaN and 0 where there is one seed.
    """
    groups, seeds = losses_GS.shape
    if seeds < 2:
        return math.nan, 0
    return math.sqrt(float(losses_GS.var(1, ddof=1).mean())), groups * (seeds - 1)

"""What paired runs can tell: intervals, tests and medians of times that may never come.

Shapes: S seeds, B budgets or other measures, R bootstrap resamples.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from archsearch.seeds import seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

FEWEST = 5
"""Fewest seeds that are compared: of fewer, no test tells anything."""
RESAMPLES = 2000
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Test:
    """One strategy against another in one measure."""

    p: float
    """Two-sided Wilcoxon signed-rank test, corrected (Holm) for the number of measures."""
    better: bool
    """Which side the ranks lean to."""

    @property
    def verdict(self) -> str:
        """What can be said."""
        if self.p >= LEVEL:
            return "not distinguishable"
        return "better" if self.better else "worse"


def band(values_SB: Array) -> tuple[Array, Array]:
    """The 95 % interval of the mean over seeds, of each measure (percentile bootstrap)."""
    rng = np.random.default_rng(seed("bootstrap"))
    drawn_RS = rng.integers(len(values_SB), size=(RESAMPLES, len(values_SB)))
    means_RB = np.stack([values_SB[drawn_S].mean(0) for drawn_S in drawn_RS])
    low_B, high_B = np.percentile(means_RB, (2.5, 97.5), axis=0)
    return low_B, high_B


def against(ours_SB: Array, theirs_SB: Array) -> list[Test]:
    """Test paired runs in each measure; larger values are better.

    Wilcoxon 1945, doi 10.2307/3001968, pairs without a difference left out; Holm 1979 for the
    number of measures.
    """
    differences_BS = (ours_SB - theirs_SB).T
    raw = [_wilcoxon(differences_S) for differences_S in differences_BS]
    order = sorted(range(len(raw)), key=lambda i: raw[i][0])
    tests: dict[int, Test] = {}
    least = 0.0
    for rank, i in enumerate(order):
        p, better = raw[i]
        least = max(least, min(1.0, p * (len(raw) - rank)))
        tests[i] = Test(least, better)
    return [tests[i] for i in range(len(raw))]


def _wilcoxon(differences_S: Array) -> tuple[float, bool]:
    from scipy.stats import wilcoxon

    kept = differences_S[differences_S != 0]
    if not len(kept):
        return 1.0, False
    p, greater = (float(wilcoxon(kept, alternative=a).pvalue) for a in ("two-sided", "greater"))
    return p, greater < 0.5


def enough(measures: int) -> int:
    """Fewest seeds with which one strategy can be told from another in one of so many measures.

    With S seeds no p is below 2 / 2^S, before it is corrected.
    """
    return math.floor(math.log2(2 * measures / LEVEL)) + 1


def median_reached(reached: Sequence[int | None]) -> float:
    """Median of times of which some never come (None): the middle one, infinite if it never does.

    Of an even number the later of the two in the middle.
    """
    return statistics.median_high([math.inf if n is None else n for n in reached])

"""Statistics of ranks, for many samples at once.

Every statistic is made from the signs of all differences, so that samples that share one side
compute its signs once.

Shapes: R samples (rows), N genomes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Signs = NDArray[np.float32]


def signs(values_RN: Array) -> Signs:
    """Sign of each difference, by row, genome and other genome; 0 where they tie."""
    ahead_RNN = values_RN[..., :, None] > values_RN[..., None, :]
    return ahead_RNN.astype(np.float32) - ahead_RNN.swapaxes(-1, -2)


def tau_b(one_RNN: Signs, other_RNN: Signs, pairs_RNN: Signs | None = None) -> Array:
    """Kendall's tau-b of each row (Kendall 1945, doi 10.1093/biomet/33.3.239).

    Args:
        one_RNN: Signs of one side.
        other_RNN: Signs of the other.
        pairs_RNN: 1 for the pairs that count, 0 for the others; all of them if not given.

    Returns:
        tau_R: 0 where a side is constant, as it ranks nothing (scipy says NaN). NaN where no pair
        that counts differs at all.
    """
    agree_R = _summed(one_RNN * other_RNN, pairs_RNN)
    ones_R, others_R = _summed(one_RNN**2, pairs_RNN), _summed(other_RNN**2, pairs_RNN)
    tau_R = _ratio(agree_R, np.sqrt(ones_R * others_R))
    if pairs_RNN is None:
        return tau_R
    return np.where(_summed(one_RNN**2 + other_RNN**2, pairs_RNN) > 0, tau_R, np.nan)


def _summed(of_RNN: Signs, pairs_RNN: Signs | None) -> Array:
    if pairs_RNN is not None:
        of_RNN = of_RNN * pairs_RNN
    return of_RNN.sum((-1, -2)).astype(np.float64)


def _ratio(above_R: Array, below_R: Array) -> Array:
    """A ratio that is 0 where it is not defined."""
    defined_R = below_R > 1e-9
    return np.where(defined_R, above_R / np.where(defined_R, below_R, 1.0), 0.0)


def spearman(one_RNN: Signs, other_RNN: Signs) -> Array:
    """Spearman's rho of each row, tied ranks shared; 0 where a side is constant."""
    # Twice a mean rank is, up to a constant, the number of others below less that above.
    one_RN, other_RN = (s_RNN.sum(-1).astype(np.float64) for s_RNN in (one_RNN, other_RNN))
    lengths_R = np.sqrt((one_RN**2).sum(-1) * (other_RN**2).sum(-1))
    return _ratio((one_RN * other_RN).sum(-1), lengths_R)


def partial(one_R: Array, other_R: Array, both_R: Array) -> Array:
    """Correlation of two sides once a third is controlled for.

    Args:
        one_R: Correlation of the first with the third.
        other_R: Correlation of the second with the third.
        both_R: Correlation of the first with the second.

    Returns:
        0 where the third tells one of them whole, so that nothing is left to correlate.
    """
    left_R = np.sqrt(np.clip((1 - one_R**2) * (1 - other_R**2), 0.0, None))
    return _ratio(both_R - one_R * other_R, left_R)


def expected_regret(ranks_N: Array, losses_N: Array, picks: int) -> float:
    """Least loss among the first picks less the least of all; ties are broken by chance.

    Args:
        ranks_N: Whom to pick first: smaller is better. Constant for a random pick.
        losses_N: What each pick costs.
        picks: How many are picked, at most N.

    Returns:
        The mean over all ways to break the ties, exact.
    """
    last = np.sort(ranks_N)[picks - 1]
    sure = float(losses_N[ranks_N < last].min(initial=math.inf))
    tied_M = np.sort(losses_N[ranks_N == last])
    m, drawn = len(tied_M), picks - int((ranks_N < last).sum())
    # The best that is drawn is number j if the rest of the draw comes from behind it.
    ways = [math.comb(m - 1 - j, drawn - 1) / math.comb(m, drawn) for j in range(m)]
    best = sum(w * min(sure, float(t)) for w, t in zip(ways, tied_M, strict=True))
    return best - float(losses_N.min())


def wilson(hits: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    z2, share = 1.959964**2, hits / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)

"""How much of a search is left to chance and to hints, where a space has hints.

After PriorBand (Mallik et al. 2023, arXiv 2306.12370): a share of the proposals is uniform, less
with every tripling of what is known; the rest is divided between the hints (`prior`, `start_from`)
and the strategy by how many of the best third each has made. So good hints are used at once, and
bad ones cost little and less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

Arm = Literal["random", "prior", "strategy"]
SHRINK = 3
"""The best 1/3 are looked at, and by this factor the uniform share falls."""
HINTED = ("start_from", "prior")
"""Origins of what the hints gave."""


def pick(origins: Sequence[str], first: int, rng: random.Random) -> Arm:
    """Who makes the next proposal.

    Args:
        origins: Of the trials that have a result, the best first.
        first: Trials before the strategy has what it needs.
        rng: Draws.
    """
    known, tripled = len(origins), 0
    while known >= first * SHRINK**tripled:
        tripled += 1
    if rng.random() < 1 / (1 + SHRINK**tripled):
        return "random"
    if not tripled:
        return "prior"
    best = origins[: max(1, known // SHRINK)]
    hinted = 1 + sum(origin in HINTED for origin in best)
    learned = 1 + sum(origin not in (*HINTED, "random") for origin in best)
    return "prior" if rng.random() * (hinted + learned) < hinted else "strategy"

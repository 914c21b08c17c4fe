"""Whether a proxy may be trusted, in words. A proxy that fails is a result, not an error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from archsearch.scale.estimate import Estimate

FEWEST = 12
"""Genomes below which nothing is said: of 12, chance reaches a tau of 0.43 once in 20."""
LEAST_CEILING = 0.5
"""Tau between two halves of the target's seeds below which the target does not rank."""

Kind = Literal["trusted", "poor pick", "useless", "misleading", "unresolvable", "too few"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said of a proxy."""

    kind: Kind
    text: str
    """One sentence for the user."""

    @property
    def passed(self) -> bool:
        """Whether the proxy may be trusted."""
        return self.kind == "trusted"


def least_tau(genomes: int) -> float:
    """Smallest tau that so many genomes tell from 0 (two-sided, 5 %; Kendall's normal limit)."""
    n = genomes
    return 1.96 * math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))


def judge(
    *,
    genomes: int,
    ceiling: float,
    tau: Estimate,
    regret: float,
    random_regret: float,
    rival: tuple[str, float] | None,
) -> Verdict:
    """Trusted if the interval of tau is above 0 and the first pick costs half of a random one.

    Args:
        genomes: How many were compared.
        ceiling: Tau between two halves of the target's seeds.
        tau: Of the proxy with the target.
        regret: Nats lost by its first pick.
        random_regret: Nats that a random pick loses on average.
        rival: Name and tau of the best baseline that the proxy is not shown to beat.
    """
    needed = f"{genomes} genomes tell a tau of {least_tau(genomes):.2f} or more from 0"
    costs = f"its first pick costs {regret:.3f} nats, a random one {random_regret:.3f}"
    ranks = f"tau {tau:.2f} is above 0"
    if genomes < FEWEST:
        return Verdict(
            "too few",
            f"too few genomes to judge: {genomes}, {FEWEST} or more are needed (tau {tau:.2f})",
        )
    if ceiling <= LEAST_CEILING:
        return Verdict(
            "unresolvable",
            f"target not resolvable at this budget: two halves of its own seeds agree only to "
            f"tau {ceiling:.2f}; train the target longer or on more seeds",
        )
    if tau.high < 0:
        return Verdict("misleading", f"misleading: it ranks the wrong way round (tau {tau:.2f})")
    if tau.low <= 0:
        return Verdict("useless", f"useless here: tau {tau:.2f} is not told from 0; {needed}")
    if not regret < random_regret / 2:
        return Verdict("poor pick", f"ranks, but does not find the best: {ranks}, but {costs}")
    text = f"may be trusted here: {ranks}; {costs}"
    if rival:
        text += f"; but it is not shown to beat {rival[0]} (tau {rival[1]:.2f})"
    return Verdict("trusted", text)

"""Which members of a space may be trained: solved widths, `require`, and what blocks refuse."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

from archsearch.canonical import nested
from archsearch.cost import Cost
from archsearch.errors import BlockError, SpaceError
from archsearch.model import cost
from archsearch.stack import configured

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping

    from archsearch.dims import Value
    from archsearch.expr import Expr
    from archsearch.genome import Gene, Genome
    from archsearch.space import Decisions, SearchSpace

TRIES = 2000
"""Draws without a feasible member after which a space counts as unsatisfiable."""
MOST_LISTED = 4096
"""Largest space that is listed member by member."""


class Infeasible(SpaceError):
    """A member of the space that may not be trained.

    Attributes:
        rule: What it broke.
        reach: Smallest and largest size that its widths allow, where `match` is what it broke.
    """

    def __init__(self, rule: str, why: str, reach: tuple[float, ...] = ()) -> None:
        super().__init__(why)
        self.rule, self.reach = rule, reach


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member that may be trained, and the decisions that lead to it."""

    decisions: tuple[tuple[str, Value], ...]
    genome: Genome
    move: str = "random"
    """The edits that made it, joined by "+"."""
    parent: int | None = None
    """Index of the trial that was edited."""
    origin: str = "random"
    """Who proposed it: start_from, prior, random or the strategy."""
    outside: bool = False
    """Whether it is no member, trained for comparison alone."""


cached_cost = lru_cache(maxsize=2**14)(cost)


def measure(
    expr: Expr, genome: Genome, context: int, trained: Mapping[str, float] = MappingProxyType({})
) -> float:
    """The value of an expression for a genome.

    Costs are given at `context` tokens unless the expression names another number; `trained` are
    the quantities that only training tells.
    """

    def quantity(name: str, args: tuple[str | float, ...]) -> float:
        if name in trained:
            return trained[name]
        if name == "d_model":
            return genome.d_model
        if name == "layers":
            return len(genome.branches)
        if name == "count":
            return sum(gene.block == args[0] for gene in nested(genome.genes))
        if name == "adjacent":
            blocks = [gene.block for gene in genome.branches]
            return {args, args[::-1]} & set(pairwise(blocks)) != set()
        known = cached_cost(genome, int(args[0]) if args else context)
        return float(getattr(known, name))

    return expr(quantity)


def settle(space: SearchSpace, genome: Genome, context: int) -> Genome:
    """The genome as it is trained: its width solved where the space says so, every rule met.

    Raises:
        Infeasible: naming the rule that it breaks.
    """
    if space.match:
        genome = _solve(space, genome, context)
    try:
        cached_cost(genome, context)
    except BlockError as error:
        refused = [g.block for g in _alone(genome) if _refusal(g, genome.d_model) == str(error)]
        who = refused[0] if refused else "a block"
        raise Infeasible(f"{who} refuses its width or parameters", str(error)) from None
    for rule in space.require:
        if not measure(rule, genome, context):
            raise Infeasible(rule.text, f"{genome.text()} breaks the rule {rule.text}")
    return genome


def _solve(space: SearchSpace, genome: Genome, context: int) -> Genome:
    """The legal width whose size is nearest to the target; size grows with the width."""
    match = space.match
    genes = _alone(genome)
    assert match is not None
    widths = [w for w in space.widths if not any(_refusal(gene, w) for gene in genes)]
    if not widths:
        raise _no_width(space, genes)

    def size(index: int) -> float:
        return measure(match.quantity, dataclasses.replace(genome, d_model=widths[index]), context)

    smallest, largest = 0, len(widths) - 1
    low, high = smallest, largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= match.target else (low, middle)
    best = min(low, high, key=lambda index: abs(size(index) - match.target))
    error = abs(size(best) / match.target - 1)
    if error > match.tolerance:
        text, reach = match.quantity.text, (size(smallest), size(largest))
        raise Infeasible(
            f"match {text}",
            f"{genome.text()} reaches {text} {reach[0]:.4g} to {reach[1]:.4g}; the nearest to "
            f"{match.target:.4g} is {size(best):.4g}, off by {error:.1%} "
            f"(tolerance {match.tolerance:.1%})",
            reach,
        )
    return dataclasses.replace(genome, d_model=widths[best])


def _alone(genome: Genome) -> tuple[Gene, ...]:
    """Every block of a genome once, as far as it matters to whether one can be built."""
    genes = (dataclasses.replace(g, share=None, inner=()) for g in nested(genome.genes))
    return tuple(dict.fromkeys(genes))


def _no_width(space: SearchSpace, genes: tuple[Gene, ...]) -> Infeasible:
    """Say which block refuses every width; if each alone has one, which blocks do not go together.

    The rule names blocks alone, so that what they reject can be counted.
    """
    everywhere = [gene for gene in genes if all(_refusal(gene, w) for w in space.widths)]
    picky = everywhere[:1] or [g for g in genes if any(_refusal(g, w) for w in space.widths)]
    names = sorted({gene.block for gene in picky})
    rule = (
        f"{names[0]} refuses every width" if everywhere else f"no width suits {' and '.join(names)}"
    )
    width = space.widths[-1]
    why = next(filter(None, (_refusal(gene, width) for gene in picky)))
    return Infeasible(rule, f"no legal width fits, e.g.: {why}")


@lru_cache(maxsize=2**14)
def _refusal(gene: Gene, width: int) -> str:
    """Why a block cannot be built at a width; empty if it can."""
    kind, config = configured(gene)
    try:
        kind.check(width, config)
    except BlockError as error:
        return str(error)
    return ""


def members(space: SearchSpace, context: int) -> list[Candidate] | None:
    """Every distinct member that may be trained, or None if the space is too large to list."""
    if space.size > MOST_LISTED:
        return None
    return list(_distinct(space.every(), space, context))


def _distinct(source: Iterator[Decisions], space: SearchSpace, context: int) -> Iterator[Candidate]:
    seen: set[Genome] = set()
    for decisions in source:
        try:
            genome = settle(space, space.replay(decisions), context)
        except SpaceError:
            continue
        if genome not in seen:
            seen.add(genome)
            yield Candidate(tuple(decisions.items()), genome)


def draw(
    space: SearchSpace,
    rng: random.Random,
    context: int,
    wanted: Callable[[Genome], bool],
    *,
    uniform: bool = False,
) -> Candidate:
    """A random member that may be trained and is `wanted`; by the prior unless `uniform`.

    Raises:
        SpaceError: if none is found in 2,000 draws, with the rules that rejected them and the
            sizes that were within reach.
    """
    rejected: dict[str, tuple[int, str]] = {}
    reach: list[float] = []
    for _ in range(TRIES):
        decisions = space.sample(rng, uniform=uniform)
        try:
            genome = settle(space, space.replay(decisions), context)
        except SpaceError as error:
            rule = error.rule if isinstance(error, Infeasible) else "every slot is none"
            rejected[rule] = (rejected.get(rule, (0, ""))[0] + 1, str(error))
            reach += error.reach if isinstance(error, Infeasible) else ()
            continue
        if wanted(genome):
            return Candidate(tuple(decisions.items()), genome)
        rejected["trained before"] = (rejected.get("trained before", (0, ""))[0] + 1, "")
    shares = sorted(rejected.items(), key=lambda item: -item[1][0])
    lines = [
        f"  {count / TRIES:6.1%}  {rule}" + (f"\n          e.g. {why}" if why else "")
        for rule, (count, why) in shares
    ]
    if reach and space.match:
        what = f"{space.match.quantity.text} {min(reach):.4g} to {max(reach):.4g}"
        lines.append(f"  within reach: {what}; match wants {space.match.target:.4g}")
    raise SpaceError(
        f"{space.name}: no new member that may be trained in {TRIES} draws; rejected by\n"
        + "\n".join(lines)
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """What a sample of the space looks like."""

    draws: int
    rejected: dict[str, int]
    """Rule -> how many draws it rejected; "" are the feasible ones."""
    costs: tuple[tuple[Genome, Cost], ...]
    """Feasible members drawn, without repeats."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Rule -> why it rejected the first of its draws."""

    @property
    def feasible(self) -> tuple[float, float, float]:
        """Share of draws that may be trained, with its 95 % Wilson interval."""
        n, k, z = self.draws, self.rejected.get("", 0), 1.96
        share, spread = k / n, z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
        middle = (k + z * z / 2) / (n + z * z)
        return share, max(0.0, middle - spread), min(1.0, middle + spread)


def survey(space: SearchSpace, rng: random.Random, context: int, draws: int = 1000) -> Survey:
    """Draw from the space and count what each rule rejects."""
    rejected: dict[str, int] = {}
    costs: dict[Genome, Cost] = {}
    reasons: dict[str, str] = {}
    for _ in range(draws):
        try:
            genome = settle(space, space.replay(space.sample(rng)), context)
        except SpaceError as error:
            rule = error.rule if isinstance(error, Infeasible) else "every slot is none"
            reasons.setdefault(rule, str(error))
        else:
            rule = ""
            costs[genome] = cached_cost(genome, context)
        rejected[rule] = rejected.get(rule, 0) + 1
    return Survey(draws, rejected, tuple(costs.items()), reasons)

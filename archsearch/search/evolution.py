"""Evolution of genomes, `strategy: evolution`.

One objective: ageing evolution (Real et al. 2018, arXiv 1802.01548). Parents are among the last P
trials, so that a lucky one dies. Several: elitist steady state; parents are the best P of all by
non-dominated rank and crowding (Deb et al. 2002, doi 10.1109/4235.996017). The child of a
tournament is edited, and sometimes crossed before. Edits that paid are made more often.

All that is known is the history, so any process can go on at any time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from archsearch.search.moves import MOVES, Decisions, Tree, cross, mutate

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping, Sequence

CROSSOVER, SECOND = 0.25, 0.3
"""How often a parent is crossed, and how often a child is edited twice."""
LEAST = 0.03
"""Smallest share of an edit, however little it paid."""
DOUBT = 10
"""Children of an edit that weigh as much as what is assumed of it at first."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial that has come to an end."""

    decisions: Decisions
    values: tuple[float, ...]
    """One per objective, smaller is better; empty if there is none."""
    move: str = ""
    """The edits that made it, joined by "+"."""
    parent: int | None = None
    """Place of its parent in the history."""


@dataclass(frozen=True, slots=True)
class Child:
    """What may be tried next, and where it comes from."""

    decisions: Decisions
    move: str = "random"
    parent: int | None = None


def population(budget: int) -> int:
    """Size of the population for a number of trials."""
    return min(50, max(16, budget // 6))


def children(
    tree: Tree, history: Sequence[Tried], rng: random.Random, budget: int
) -> Iterator[Child]:
    """Children of the present population; random members while there are too few for one."""
    size = population(budget)
    alive = [index for index, tried in enumerate(history) if tried.values]
    if len(alive) < size:
        while True:
            yield Child(tree.sample(rng))
    if len(history[alive[0]].values) == 1:
        alive = alive[-size:]
    ranks = dict(zip(alive, fitness([history[i].values for i in alive], size), strict=True))
    parents = sorted(alive, key=ranks.__getitem__)[:size]
    weights = shares(history)

    def winner() -> int:
        return min(rng.sample(parents, max(2, size // 3)), key=ranks.__getitem__)

    while True:
        parent = winner()
        decisions, moves = history[parent].decisions, list[str]()
        if rng.random() < CROSSOVER and (other := winner()) != parent:
            decisions, moves = cross(tree, decisions, history[other].decisions, rng), ["cross"]
        for _ in range(1 + (rng.random() < SECOND)):
            decisions, name = mutate(tree, decisions, rng, weights)
            moves.append(name)
        yield Child(decisions, "+".join(moves), parent)


def shares(history: Sequence[Tried]) -> Mapping[str, float]:
    """How often each edit is made: by how often its children beat their parents."""
    made, paid = dict.fromkeys(MOVES, 0), dict.fromkeys(MOVES, 0)
    for tried in history:
        if tried.parent is None or not tried.values:
            continue
        better = dominates(tried.values, history[tried.parent].values)
        for name in {*tried.move.split("+")} & {*MOVES}:
            made[name] += 1
            paid[name] += better
    usual = sum(paid.values()) / max(1, sum(made.values()))
    if not usual:
        return {name: share for name, (share, _) in MOVES.items()}
    gains = {
        name: share * (paid[name] + DOUBT * usual) / (made[name] + DOUBT)
        for name, (share, _) in MOVES.items()
    }
    return {name: max(LEAST, gain / sum(gains.values())) for name, gain in gains.items()}


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is nowhere larger and somewhere smaller."""
    return tuple(one) != tuple(other) and all(a <= b for a, b in zip(one, other, strict=True))


def fitness(
    values: Sequence[tuple[float, ...]], enough: int | None = None
) -> list[tuple[float, float]]:
    """Non-dominated rank, then negative crowding distance; of one objective its value.

    All behind the fronts that hold the best `enough` share one rank.
    """
    if len(values[0]) == 1:
        return [(value, 0.0) for (value,) in values]
    ranks = fronts(values, enough)
    crowding = [0.0] * len(values)
    for rank in range(max(ranks) + 1):
        members = [i for i, r in enumerate(ranks) if r == rank]
        for axis in range(len(values[0])):
            line = sorted((values[i][axis], i) for i in members)
            span = line[-1][0] - line[0][0] or 1.0
            crowding[line[0][1]] = crowding[line[-1][1]] = math.inf
            for before, here, after in zip(line, line[1:], line[2:], strict=False):
                crowding[here[1]] += (after[0] - before[0]) / span
    return [(rank, -distance) for rank, distance in zip(ranks, crowding, strict=True)]


def fronts(values: Sequence[tuple[float, ...]], enough: int | None = None) -> list[int]:
    """The non-dominated rank of each, 0 for the front; the same for all behind `enough`."""
    v_NK = np.array(values, dtype=float)
    no_larger_NN = np.logical_and.reduce([v_N[:, None] <= v_N for v_N in v_NK.T])
    beats_NN = no_larger_NN & ~no_larger_NN.T
    ranks_N, beaten_N = np.full(len(values), -1), beats_NN.sum(0)
    rank, wanted = 0, len(values) if enough is None else enough
    while (ranks_N >= 0).sum() < min(wanted, len(values)):
        front = (beaten_N == 0) & (ranks_N < 0)
        ranks_N[front] = rank
        beaten_N = beaten_N - beats_NN[front].sum(0)
        rank += 1
    return [int(r) for r in np.where(ranks_N < 0, rank, ranks_N)]

"""A Gaussian process over genome graphs, `strategy: graphgp`, for at most some 150 trials.

Two genomes are alike by the Weisfeiler-Lehman subtrees of their unrolled graphs (Ru et al. 2020,
arXiv 2006.07556), by the choices that lead to them and by their numbers, and the square of that
likeness is the kernel: features count alone and in pairs. Targets are ranks made normal, so that a
diverged trial is one bad rank. What comes next is the candidate of the largest expected improvement
among neighbours of the best, edits of other good trials and random members; trials in work count as
if they had turned out as predicted.

Shapes: T trials, C candidates, F features.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from archsearch.search.evolution import Child, Tried, fitness
from archsearch.search.moves import (
    MOVES,
    Decisions,
    Tree,
    complete,
    kind_of,
    mutate,
    neighbours,
    questions,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from archsearch.genome import Gene, Genome

START = 10
"""Random members before the model is asked."""
RANDOM, NEAR, EDITED = 20, 60, 60
"""Candidates: random members, neighbours of the best at most, edits of the `TOP` best."""
TOP, TWICE = 10, 0.3
"""How many of the best are edited; the share that is edited twice."""
DEPTH = 2
"""Rounds of Weisfeiler-Lehman."""
PAIRS = 2.0
"""Weight of pairs of features beside single ones."""
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Variances of the noise over that of the signal, of which the likeliest is taken."""
BEST, OTHERS = 250, 250
"""Of more trials than both, the best and a draw of the others are looked at."""

Graph = tuple["Sequence[str]", "Sequence[tuple[int, int]]"]
"""Labels of the nodes, and edges (from, to)."""
Features = dict[str, float]
"""A member as a sparse vector of length 1."""


def child(
    tree: Tree,
    graph: Callable[[Any], Graph],
    history: Sequence[Tried],
    working: Sequence[Decisions],
    rng: random.Random,
    wanted: Callable[[Decisions], bool],
) -> Child | None:
    """The candidate of the largest expected improvement; None if none is wanted.

    Args:
        tree: What is searched.
        graph: Of a member.
        history: Trials that ended.
        working: Trials that have begun and not ended.
        rng: Draws the candidates.
        wanted: Whether a candidate may be tried.
    """
    done = [index for index, tried in enumerate(history) if tried.values]
    if len(done) < START:
        return Child(tree.sample(rng))
    ranks = dict(zip(done, fitness([history[i].values for i in done]), strict=True))
    ranked = sorted(done, key=ranks.__getitem__)
    made = {tuple(c.decisions.items()): c for c in _candidates(tree, history, ranked[:TOP], rng)}
    pool = [c for c in made.values() if wanted(c.decisions)]
    if not pool:
        return None
    kept = ranked
    if len(kept) > BEST + OTHERS:
        kept = ranked[:BEST] + rng.sample(ranked[BEST:], OTHERS)
    normal = NormalDist()
    places = {index: (place + 0.5) / len(ranked) for place, index in enumerate(ranked)}
    y_T = np.array([normal.inv_cdf(places[index]) for index in kept])
    seen = [features(tree, graph, history[index].decisions) for index in kept]
    candidates = [features(tree, graph, c.decisions) for c in pool]
    model = Model.fitted(kernel(seen, seen), y_T)
    if working:
        pending = [features(tree, graph, decisions) for decisions in working]
        y_T = np.append(y_T, model.predict(kernel(pending, seen))[0])
        seen += pending
        model = Model(kernel(seen, seen), y_T, model.noise)
    mean_C, deviation_C = model.predict(kernel(candidates, seen))
    target = model.predict(kernel(seen, seen))[0].min()
    z_C = (target - mean_C) / deviation_C
    gain_C = [
        d * (z * normal.cdf(z) + normal.pdf(z)) for d, z in zip(deviation_C, z_C, strict=True)
    ]
    return pool[int(np.argmax(np.round(gain_C, 9)))]  # rounding goes with the size of the pool


def _candidates(
    tree: Tree, history: Sequence[Tried], best: Sequence[int], rng: random.Random
) -> list[Child]:
    weights = {name: share for name, (share, _) in MOVES.items()}
    pool = [Child(tree.sample(rng)) for _ in range(RANDOM)]
    beside = neighbours(tree, history[best[0]].decisions)
    near = rng.sample(beside, min(NEAR, len(beside)))
    pool += [Child(complete(tree, decisions, rng), "step", best[0]) for decisions in near]
    for _ in range(EDITED):
        parent = rng.choice(best)
        decisions, move = mutate(tree, history[parent].decisions, rng, weights)
        if rng.random() < TWICE:
            decisions, second = mutate(tree, decisions, rng, weights)
            move = f"{move} and {second}"
        pool.append(Child(decisions, move, parent))
    return pool


def genome_graph(genome: Genome) -> Graph:
    """The unrolled genome: the embedding and its top branches, with what each reads."""
    labels = ["embedding", *(_label(gene) for gene in genome.genes)]
    edges = [
        (source, index + 1)
        for index, gene in enumerate(genome.genes)
        for source in gene.inputs or (index,)
    ]
    return labels, edges


def _label(gene: Gene) -> str:
    """The kind of a branch, what it holds, and whether its weights are shared."""
    held = f"[{' '.join(_label(inner) for inner in gene.inner)}]" if gene.inner else ""
    return f"{gene.block}{held}{'*' if gene.share else ''}"


def subtrees(graph: Graph) -> list[Counter[str]]:
    """How often each subtree of predecessors stands in a graph, of depth 0 to `DEPTH`."""
    labels, before = list(graph[0]), [list[int]() for _ in graph[0]]
    for source, target in graph[1]:
        before[target].append(source)
    counts = [Counter(labels)]
    for _ in range(DEPTH):
        labels = [
            f"{label}({','.join(sorted(labels[i] for i in into))})"
            for label, into in zip(labels, before, strict=True)
        ]
        counts.append(Counter(labels))
    return counts


def features(tree: Tree, graph: Callable[[Any], Graph], decisions: Decisions) -> Features:
    """What the kernel compares: subtrees, choices and numbers, which weigh the same.

    A number becomes a turn of up to a quarter: two at one place are alike by the cosine of their
    distance.
    """
    counted = subtrees(graph(tree.resolve(lambda path, _: decisions[path])))
    parts = [
        {f"{depth} {word}": float(n) for word, n in counts.items()}
        for depth, counts in enumerate(counted)
    ]
    choices, numbers = dict[str, float](), dict[str, float]()
    for path, dim in questions(tree, decisions).items():
        if kind_of(path, dim) != "choice" and dim.values:
            turn = math.pi / 2 * dim.values.index(decisions[path]) / (len(dim.values) - 1)
            numbers |= {f"{path} cos": math.cos(turn), f"{path} sin": math.sin(turn)}
        else:
            choices[f"{path}={decisions[path]}"] = 1.0
    weighed = [(part, 1 / len(parts)) for part in parts]
    weighed += [(part, 1.0) for part in (choices, numbers) if part]
    total = sum(weight for _, weight in weighed)
    return {
        name: value * math.sqrt(weight / total) / math.hypot(*part.values())
        for part, weight in weighed
        for name, value in part.items()
    }


def likeness(one: Sequence[Features], other: Sequence[Features]) -> NDArray[np.float64]:
    """The inner product of each with each, 1 for equal members."""
    names = {name: place for place, name in enumerate(dict.fromkeys(chain(*one, *other)))}

    def array(all_: Sequence[Features]) -> NDArray[np.float64]:
        values_F = np.zeros((len(all_), len(names)))
        for row, found in enumerate(all_):
            values_F[row, [names[name] for name in found]] = list(found.values())
        return values_F

    alike: NDArray[np.float64] = array(one) @ array(other).T
    return alike


def kernel(one: Sequence[Features], other: Sequence[Features]) -> NDArray[np.float64]:
    """How alike each is to each, 1 for equal members; positive semidefinite."""
    return ((1.0 + PAIRS * likeness(one, other)) / (1.0 + PAIRS)) ** 2


class Model:
    """A Gaussian process with a given noise; the scale of the signal is the likeliest.

    Args:
        K_TT: How alike the members are that targets are known of.
        y_T: The targets.
        noise: Variance of the noise over that of the signal.
    """

    def __init__(self, K_TT: NDArray[np.float64], y_T: NDArray[np.float64], noise: float) -> None:
        self.noise = noise
        self.root_TT = np.linalg.cholesky(K_TT + noise * np.eye(len(y_T)))
        half_T = np.linalg.solve(self.root_TT, y_T)
        self.weight_T = np.linalg.solve(self.root_TT.T, half_T)
        self.scale = max(float(half_T @ half_T) / len(y_T), 1e-9)

    @classmethod
    def fitted(cls, K_TT: NDArray[np.float64], y_T: NDArray[np.float64]) -> Model:
        """With the likeliest noise."""
        return max((cls(K_TT, y_T, noise) for noise in NOISES), key=lambda m: m.likelihood)

    @property
    def likelihood(self) -> float:
        """Log likelihood of the targets but for a constant."""
        logs = np.log(np.diag(self.root_TT)).sum()
        return -0.5 * len(self.root_TT) * math.log(self.scale) - float(logs)

    def predict(self, K_CT: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each, from how alike it is to the known."""
        part_TC = np.linalg.solve(self.root_TT, K_CT.T)
        variance_C = np.maximum(1.0 - (part_TC**2).sum(0), 1e-9)
        return K_CT @ self.weight_T, np.sqrt(self.scale * variance_C)

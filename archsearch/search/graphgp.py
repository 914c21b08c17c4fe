"""A Gaussian process over genome graphs, `strategy: graphgp`, for at most some 150 trials.

The kernel counts Weisfeiler-Lehman subtrees of the unrolled genome (Ru et al. 2020, arXiv
2006.07556) and the choices that lead to it, times the likeness of the numbers that both have at the
same places. Targets are ranks made normal, so that a diverged trial is one bad rank. What comes
next is the candidate of the largest expected improvement among edits of the best and random
members; trials in work count as if they had turned out as predicted.

Shapes: T trials, C candidates, W words, P places of numbers.
"""

from __future__ import annotations

import cmath
import math
from collections import Counter
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from archsearch.search.evolution import Child, Tried, fitness
from archsearch.search.moves import MOVES, Decisions, Tree, kind_of, mutate, questions

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from archsearch.genome import Gene, Genome

START = 10
"""Random members before the model is asked."""
EDITED, RANDOM, TOP = 100, 100, 10
"""Candidates of both kinds; how many of the best are edited."""
DEPTH = 2
"""Rounds of Weisfeiler-Lehman."""
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Variances of the noise over that of the signal, of which the likeliest is taken."""
BEST, OTHERS = 250, 250
"""Of more trials than both, the best and a draw of the others are looked at."""

Graph = tuple["Sequence[str]", "Sequence[tuple[int, int]]"]
"""Labels of the nodes, and edges (from, to)."""


class Features(NamedTuple):
    """A member as the kernel sees it."""

    words: dict[str, float]
    """Subtrees, choices and "", of length 1 together."""
    numbers: dict[str, float]
    """Answers with an order, scaled to 0 to 1, by path; one that all have is at ""."""


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
    model = Model.fitted(seen, y_T)
    if working:
        pending = [features(tree, graph, decisions) for decisions in working]
        model = Model([*seen, *pending], np.append(y_T, model.predict(pending)[0]), model.noise)
    mean_C, deviation_C = model.predict(candidates)
    target = model.predict(seen)[0].min()
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
    for _ in range(EDITED):
        parent = rng.choice(best)
        decisions, move = mutate(tree, history[parent].decisions, rng, weights)
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


def subtrees(graph: Graph) -> Counter[str]:
    """How often each subtree of predecessors down to `DEPTH` stands in a graph."""
    labels, before = list(graph[0]), [list[int]() for _ in graph[0]]
    for source, target in graph[1]:
        before[target].append(source)
    counts = Counter(labels)
    for _ in range(DEPTH):
        labels = [
            f"{label}({','.join(sorted(labels[i] for i in into))})"
            for label, into in zip(labels, before, strict=True)
        ]
        counts.update(labels)
    return counts


def features(tree: Tree, graph: Callable[[Any], Graph], decisions: Decisions) -> Features:
    """What the kernel compares."""
    counts = subtrees(graph(tree.resolve(lambda path, _: decisions[path])))
    length = math.sqrt(2 * sum(n * n for n in counts.values()))
    words = {word: n / length for word, n in counts.items()}
    numbers, choices = {"": 0.0}, [""]
    for path, dim in questions(tree, decisions).items():
        if kind_of(path, dim) != "choice" and dim.values:
            numbers[path] = dim.values.index(decisions[path]) / (len(dim.values) - 1)
        else:
            choices.append(f"{path}={decisions[path]}")
    return Features(words | {c: (2 * len(choices)) ** -0.5 for c in choices}, numbers)


def kernel(one: Sequence[Features], other: Sequence[Features]) -> NDArray[np.float64]:
    """The likeness of each to each, 1 for equal members; positive semidefinite.

    Numbers n and m at the same place are alike by cos(pi (n - m) / 2), a place that one of them
    does not have by 0.
    """
    everyone = (*one, *other)
    words = _numbered(word for f in everyone for word in f.words)
    places = _numbered(path for f in everyone for path in f.numbers)

    def arrays(all_: Sequence[Features]) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
        words_W = np.zeros((len(all_), len(words)))
        turned_P = np.zeros((len(all_), len(places)), dtype=complex)
        for row, f in enumerate(all_):
            for word, weight in f.words.items():
                words_W[row, words[word]] = weight
            for path, number in f.numbers.items():
                turned_P[row, places[path]] = cmath.exp(0.5j * math.pi * number)
            turned_P[row] /= len(f.numbers) ** 0.5
        return words_W, turned_P

    (words_1, turned_1), (words_2, turned_2) = arrays(one), arrays(other)
    alike = (turned_1 @ turned_2.conj().T).real
    likeness: NDArray[np.float64] = (words_1 @ words_2.T) * (1.0 + alike) / 2.0
    return likeness


def _numbered(names: Iterable[str]) -> dict[str, int]:
    """Each name with its place among the first mentions; the same in every process."""
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


class Model:
    """A Gaussian process with a given noise; the scale of the signal is the likeliest.

    Args:
        seen: The members that targets are known of.
        y_T: The targets.
        noise: Variance of the noise over that of the signal.
        K_TT: `kernel` of the members, where it is known.
    """

    def __init__(
        self,
        seen: Sequence[Features],
        y_T: NDArray[np.float64],
        noise: float,
        K_TT: NDArray[np.float64] | None = None,
    ) -> None:
        self.seen, self.noise = seen, noise
        K_TT = kernel(seen, seen) if K_TT is None else K_TT
        self.root_TT = np.linalg.cholesky(K_TT + noise * np.eye(len(seen)))
        half_T = np.linalg.solve(self.root_TT, y_T)
        self.weight_T = np.linalg.solve(self.root_TT.T, half_T)
        self.scale = max(float(half_T @ half_T) / len(y_T), 1e-9)

    @classmethod
    def fitted(cls, seen: Sequence[Features], y_T: NDArray[np.float64]) -> Model:
        """With the likeliest noise."""
        K_TT = kernel(seen, seen)
        return max((cls(seen, y_T, noise, K_TT) for noise in NOISES), key=lambda m: m.likelihood)

    @property
    def likelihood(self) -> float:
        """Log likelihood of the targets but for a constant."""
        logs = np.log(np.diag(self.root_TT)).sum()
        return -0.5 * len(self.seen) * math.log(self.scale) - float(logs)

    def predict(
        self, wanted: Sequence[Features]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each."""
        K_CT = kernel(wanted, self.seen)
        part_TC = np.linalg.solve(self.root_TT, K_CT.T)
        variance_C = np.maximum(1.0 - (part_TC**2).sum(0), 1e-9)
        return K_CT @ self.weight_T, np.sqrt(self.scale * variance_C)

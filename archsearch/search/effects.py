"""What the trials of a run say: which choices mattered, which motifs paid, who came from whom."""

from __future__ import annotations

import math
import statistics
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator

from archsearch.search.graphgp import Model, genome_graph, likeness, subtrees

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archsearch.search.study import Record, Study

FEWEST = 10
"""Trials below which nothing is said of choices and motifs."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What something does to the score."""

    name: str
    mean: float
    spread: float
    """Half of the 95 % interval."""
    trials: int
    """How many trials have it."""


def choices(study: Study) -> dict[str, float]:
    """Share of each decision in what sets good trials apart, largest first.

    Conditional PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255) of the first objective; empty
    where there are too few trials.
    """
    done = [r for r in study.records().values() if r.values]
    if len(done) < FEWEST or len({r.values[0] for r in done}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that low targets are good: so they are here
        return optuna.importance.get_param_importances(
            study.optuna,
            evaluator=PedAnovaImportanceEvaluator(),
            target=lambda trial: trial.values[0] * (-1 if study.maximize[0] else 1),
        )


def motifs(records: Sequence[Record]) -> list[Effect]:
    """What one more of a branch, or of a branch after another, does to the score.

    Posterior of the weights of the Weisfeiler-Lehman kernel (Ru et al. 2020, arXiv 2006.07556,
    section 3.3), of subtrees down to depth 1. Best first; empty where there are too few trials.
    """
    done = [r for r in records if r.values]
    if len(done) < FEWEST:
        return []
    shallow = [sum(subtrees(genome_graph(r.genome))[:2], Counter()) for r in done]
    lengths = [math.hypot(*words.values()) for words in shallow]
    score_T = np.array([record.score for record in done])
    seen = [
        {word: n / length for word, n in words.items()}
        for words, length in zip(shallow, lengths, strict=True)
    ]
    model = Model.fitted(likeness(seen, seen), score_T - score_T.mean())
    trials = {word: sum(word in words for words in shallow) for words in shallow for word in words}
    asked = [w for w, n in trials.items() if 1 < n < len(done) and w != "embedding"]
    if not asked:
        return []
    mean_W, deviation_W = model.predict(likeness([{word: 1.0} for word in asked], seen))
    one = 1 / statistics.mean(lengths)
    effects = [
        Effect(_spelt(word), float(mean) * one, 1.96 * float(deviation) * one, trials[word])
        for word, mean, deviation in zip(asked, mean_W, deviation_W, strict=True)
    ]
    return sorted(effects, key=lambda effect: -effect.mean)


def _spelt(word: str) -> str:
    """`swiglu(mamba2)` as `mamba2 > swiglu`."""
    last, _, before = word.removesuffix(")").partition("(")
    return f"{before} > {last}" if before else last


def lineage(records: dict[int, Record], record: Record) -> list[Record]:
    """A trial and whom it came from, each as far as it was trained, the oldest first."""
    later = {r.attrs["continues"]: r for r in records.values() if "continues" in r.attrs}
    line = [record]
    while (parent := line[-1].attrs.get("parent")) is not None:
        ancestor = records[parent]
        while ancestor.index in later:
            ancestor = later[ancestor.index]
        line.append(ancestor)
    return line[::-1]

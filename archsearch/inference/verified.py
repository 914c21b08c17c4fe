"""Several answers to one question, and a verifier that knows the right one: the tasks of a search.

A question is a run of scored positions of a row, and its answer is right when all of them are. Each
position is asked by itself, from the row as it stands before it, so one forward pass gives all.

Shapes: B rows, T time, V vocabulary, N answers, S scored positions of one row, Q those of one
question.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from archsearch.inference.decoding import probabilities
from archsearch.train import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Generator

    from archsearch.model import Model

IGNORE = -100
BATCH_TOKENS = 1 << 14
"""Tokens that are read at once."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of questions, with its standard error over rows."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class BestOf:
    """How many questions are answered, by what is done with N answers to each."""

    rows: int
    questions: int
    """In all rows."""
    positions: float
    """Of a question, on average."""
    greedy: Share
    """The likeliest token everywhere."""
    passed: dict[int, Share]
    """At least one of k answers is right, for k = 1, 2, 4 .. N: what a verifier makes of them."""
    majority: Share
    """The most frequent of N answers is right, the first drawn of equals."""


@torch.no_grad()
def best_of(
    model: Model,
    task: Any,
    count: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    rows: int = 256,
    seed: int = 0,
) -> BestOf:
    """Ask a model rows of its task, `count` times each.

    Args:
        model: In eval mode, trained on the task.
        task: What it is asked.
        count: N.
        temperature: Above 0.
        top_p: See `decoding.probabilities`.
        rows: Rows that are asked.
        seed: Of rows and answers.
    """
    inputs_BT, targets_BT = task.sample(rows, generator("best-of", seed, "rows"))
    draws = generator("best-of", seed, "answers")
    size = max(1, BATCH_TOKENS // inputs_BT.shape[1])
    device = model.device
    asked: list[list[_Question]] = []
    for part_BT, wanted_BT in zip(inputs_BT.split(size), targets_BT.split(size), strict=True):
        logits_BTV = model(part_BT.to(device)).cpu()
        for logits_TV, wanted_T in zip(logits_BTV, wanted_BT, strict=True):
            scored_T = wanted_T != IGNORE
            logits_SV, wanted_S = logits_TV[scored_T], wanted_T[scored_T]
            answers_NS = _answers(probabilities(logits_SV, temperature, top_p), count, draws)
            parts = (answers_NS, logits_SV.argmax(-1)[None], wanted_S[None])
            runs = (part.split(_runs(scored_T), 1) for part in parts)
            asked.append([_judged(*question) for question in zip(*runs, strict=True)])
    sizes = [1 << i for i in range(count.bit_length()) if 1 << i < count] + [count]
    questions = sum(map(len, asked))

    def passed(k: int) -> Share:
        return _share(asked, lambda q: passing(count, q.right, k))

    return BestOf(
        rows, questions, sum(q.positions for row in asked for q in row) / questions,
        _share(asked, lambda q: q.greedy),
        {k: passed(k) for k in sizes},
        _share(asked, lambda q: q.majority),
    )  # fmt: skip


class _Question(NamedTuple):
    positions: int
    right: int
    """Answers out of N."""
    greedy: bool
    majority: bool


def _judged(answers_NQ: Tensor, greedy_1Q: Tensor, wanted_1Q: Tensor) -> _Question:
    common = Counter(map(tuple, answers_NQ.tolist())).most_common(1)[0][0]
    wanted = wanted_1Q[0].tolist()
    return _Question(
        len(wanted), int((answers_NQ == wanted_1Q).all(1).sum()),
        greedy_1Q[0].tolist() == wanted, list(common) == wanted,
    )  # fmt: skip


def _runs(scored_T: Tensor) -> list[int]:
    """The lengths of the runs of scored positions."""
    return [len(list(run)) for scored, run in groupby(scored_T.tolist()) if scored]


def _answers(chances_SV: Tensor, count: int, draws: Generator) -> Tensor:
    return torch.multinomial(chances_SV, count, replacement=True, generator=draws).T


def passing(count: int, right: int, k: int) -> float:
    """The chance that k of `count` answers, of which some are right, hold a right one.

    Source: Chen et al. 2021, arXiv 2107.03374, eq. 1.
    """
    return 1 - math.comb(count - right, k) / math.comb(count, k)


def _share(asked: Sequence[Sequence[_Question]], value: Callable[[_Question], float]) -> Share:
    """The mean over all questions; those of a row are not taken to be independent."""
    questions = sum(map(len, asked))
    mean = sum(value(q) for row in asked for q in row) / questions
    residuals = (sum(value(q) - mean for q in row) for row in asked)
    return Share(mean, math.sqrt(sum(r * r for r in residuals)) / questions)

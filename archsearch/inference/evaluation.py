"""Scores of a trained model: bits per byte on text, accuracy along the difficulties of its task.

Shapes: B windows, T time.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from archsearch.errors import CorpusError, ModelError
from archsearch.inference.verified import BATCH_TOKENS
from archsearch.train import evaluate, generator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from archsearch.model import Model
    from archsearch.scale.corpus import Corpus

LENGTHS = (1, 2, 4, 8)
"""Of rows, over the length that was trained on."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """Loss on held-out text in windows of one length."""

    context: int
    windows: int
    bits: float
    """Per byte."""
    error: float | None
    """Standard error over windows; None for one."""


@torch.no_grad()
def text_score(
    model: Model, corpus: Corpus, context: int, windows: int, longest: int = 0
) -> TextScore:
    """Bits per byte on the validation part of a text, each window read from an empty state.

    Args:
        model: In eval mode.
        corpus: In the tokens that the model reads.
        context: Tokens of a window.
        windows: Most stretches of text; evenly spaced over it.
        longest: Tokens of a stretch, which is cut into windows; by default it is one window. With
            the same one, contexts that divide it are scored on the same tokens.

    Raises:
        CorpusError: if the text is shorter than a stretch.
    """
    stretches_BT = corpus.held_out(windows, longest or context)
    rows_BT = stretches_BT.unfold(1, context + 1, context).flatten(0, 1)
    device, losses = model.device, []
    for part_BT in rows_BT.split(max(1, BATCH_TOKENS // context)):
        part_BT = part_BT.to(device)
        logits_BTV = model(part_BT[:, :-1]).float()
        loss_BT = F.cross_entropy(logits_BTV.mT, part_BT[:, 1:], reduction="none")
        losses.append(loss_BT.double().mean(1).cpu())
    loss_B = torch.cat(losses)
    mean, count = float(loss_B.mean()), len(loss_B)
    if not math.isfinite(mean):
        raise ModelError(f"the logits at a context of {context} are not finite")
    error = corpus.bits_per_byte(float(loss_B.std()) / math.sqrt(count)) if count > 1 else None
    return TextScore(context, count, corpus.bits_per_byte(mean), error)


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Accuracy on rows of a task at one difficulty."""

    axis: str
    """The parameter that differs from training; empty at the difficulty of training."""
    value: Any
    """Of the parameter."""
    trained: bool
    """Whether this is the difficulty of training."""
    length: int
    """Tokens of a row."""
    chance: float
    """Accuracy of guessing."""
    accuracy: float
    """Of scored tokens."""
    error: float
    """Standard error over rows."""


def task_scores(model: Model, task: Any, rows: int, seed: int = 0) -> Iterator[TaskScore]:
    """The accuracy at the difficulty of training, then along each axis of the task.

    An axis is a parameter that the task names in `axes`. Rows get up to 8 times as long; along
    other axes are the values that the task names. Left out is what needs other ids than the model
    has. Every difficulty has random rows of its own.

    Args:
        model: Trained on the task.
        task: As it was trained.
        rows: Rows of each difficulty.
        seed: Of the rows.

    Raises:
        ModelError: if the task has other ids than the model.
    """
    if task.vocab != model.vocab:
        raise ModelError(f"{task.name} has {task.vocab} ids, the model {model.vocab}")
    as_trained = _score(model, task, rows, seed, "", None)
    yield as_trained
    for axis in getattr(task, "axes", {}):
        varied = [(value, other) for value, other in _along(task, axis) if fits(model, other)]
        for value, other in varied if len(varied) > 1 else ():
            if other == task:
                yield dataclasses.replace(as_trained, axis=axis, value=value)
            else:
                with suppress(CorpusError):  # too little text for rows as long as this
                    yield _score(model, other, rows, seed, axis, value)


def fits(model: Model, task: Any) -> bool:
    """Whether a task has the ids and the readout that a model was made for."""
    return (task.vocab, task.readout) == (model.vocab, model.readout_kind)


def _along(task: Any, axis: str) -> Iterator[tuple[Any, Any]]:
    """A task with other values of one parameter, its own among them, in order."""
    own = getattr(task, axis)
    if axis == "seq_len":
        values: Sequence[Any] = [own * factor for factor in LENGTHS]
    else:
        values = sorted({own, *task.axes[axis]})
    for value in values:
        try:
            yield value, dataclasses.replace(task, **{axis: value})
        except ValueError:  # the other parameters leave no room for it
            continue


def _score(model: Model, task: Any, rows: int, seed: int, axis: str, value: Any) -> TaskScore:
    held_out = task.sample(rows, generator("eval", seed, repr(task)))
    device = model.device
    held_out = tuple(part.to(device) for part in held_out)
    batch = max(1, BATCH_TOKENS // task.length)
    accuracy, error = evaluate(model, held_out, batch)
    model.eval()
    return TaskScore(axis, value, not axis, task.length, task.chance, accuracy, error)

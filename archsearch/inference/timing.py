"""Speed and memory at use, by context: reading a prompt, giving a token, the state between tokens.

Models and contexts are timed in turns, so that what else a machine does meets all of them.

A token is timed at a state that has room for the context and stands at its end. What the numbers in
it are makes no difference to any time, so the context itself is not read before.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from archsearch.errors import ModelError
from archsearch.inference.decoding import Reader
from archsearch.memory import machine_bytes
from archsearch.model import cost
from archsearch.scale.plan import ScalePlan, rival
from archsearch.sections import Recipe
from archsearch.train import generator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from archsearch.genome import Genome
    from archsearch.inference.loading import Loaded
    from archsearch.model import Model

ROUNDS = 7
"""Turns in which every token time is measured."""
TOKENS = 8
"""Tokens of a turn, after one that is not timed."""
READ = 3
"""How often a prompt is read; the quickest counts."""
LEFT_FREE = 0.5
"""Share of the memory that no state takes."""


@dataclass(slots=True)
class Figure:
    """One model at one context; a time is None where it would take too long or too much memory."""

    context: int
    state_bytes: int
    prefill: float | None = None
    """Seconds to read a prompt as long as the context."""
    decode: list[float] = field(default_factory=list)
    """Seconds per token, of each turn."""

    @property
    def prefill_rate(self) -> float | None:
        """Tokens per second."""
        return None if self.prefill is None else self.context / self.prefill

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second, the median."""
        return 1 / statistics.median(self.decode) if self.decode else None


def opponent(loaded: Loaded, other: Genome) -> Genome:
    """Another genome with about as many parameters as a model, embeddings included."""
    model = loaded.model
    plan = ScalePlan(
        genome=model.genome, base=loaded.base, recipe=Recipe(), context=loaded.context or 256,
        vocab=model.vocab,
    )  # fmt: skip
    return rival(plan, other).genome


def measure(
    models: Mapping[str, Model], contexts: Sequence[int], seconds: float = 10.0
) -> dict[str, list[Figure]]:
    """Time models side by side.

    Args:
        models: By name, in eval mode.
        contexts: In tokens, rising.
        seconds: Most that one model at one context may take to read a prompt, judged by shorter
            ones, and most for its tokens.

    Returns:
        For each model a figure for each context.

    Raises:
        ModelError: if a model cannot decode.
    """
    figures = {
        name: [Figure(t, round(cost(model.genome, t).state_bytes)) for t in contexts]
        for name, model in models.items()
    }
    for place in range(len(contexts)):
        for name, model in models.items():
            _read(model, figures[name], place, seconds)
    readers = {
        (name, place): reader
        for name, model in models.items()
        for place, reader in _readers(model, figures[name], len(models))
    }
    counts = {
        key: _affordable(reader, contexts[key[1]], seconds) for key, reader in readers.items()
    }
    for _ in range(ROUNDS):
        for (name, place), reader in readers.items():
            if count := counts[name, place]:
                took = token_seconds(reader, contexts[place], count)
                figures[name][place].decode.append(took)
    return figures


def _affordable(reader: Reader, context: int, seconds: float) -> int:
    """How many tokens a turn may time, so that all turns take at most so long; 0 if not even one.

    The first token, which touches the memory for the first time, is not judged by.
    """
    took = [token_seconds(reader, context, 1) for _ in range(2)][-1]
    return min(TOKENS, int(seconds / (2 * ROUNDS * took)))


@torch.no_grad()
def _read(model: Model, figures: list[Figure], place: int, seconds: float) -> None:
    """Time a prompt as long as one context, unless the one before says that it takes too long."""
    figure = figures[place]
    if place:
        last = figures[place - 1]
        if last.prefill is None:
            return
        if last.prefill * (figure.context / last.context) ** 2 > seconds:
            return
    logits = 4 * figure.context * model.vocab
    if logits > LEFT_FREE * machine_bytes():
        return
    device = model.device
    rows = torch.randint(model.vocab, (1, figure.context), generator=generator("bench", "prompt"))
    rows_1T, times = rows.to(device), []
    for _ in range(READ):
        began = time.perf_counter()
        float(model(rows_1T)[0, -1, 0])  # waits for the device
        times.append(time.perf_counter() - began)
        if times[-1] > seconds / READ:
            break
    figure.prefill = min(times)


def _readers(model: Model, figures: list[Figure], models: int) -> list[tuple[int, Reader]]:
    """A reader at the end of each context whose state all fit into memory together."""
    there, made = machine_bytes() * (1 - LEFT_FREE) / models, list[tuple[int, Reader]]()
    for place, figure in enumerate(figures):
        there -= figure.state_bytes
        if there < 0:
            break
        made.append((place, Reader(model, figure.context + TOKENS + 1)))
    if not made:
        raise ModelError("not even the state of the shortest context fits into memory")
    return made


def token_seconds(reader: Reader, context: int, count: int) -> float:
    """Seconds per token at a context, over `count` tokens after one that is not timed."""
    place_at(reader, context)
    reader.read([0])
    began = time.perf_counter()
    for _ in range(count):
        float(reader.read([0])[0, 0])  # waits for the device
    return (time.perf_counter() - began) / count


def place_at(reader: Reader, context: int) -> None:
    """Let a reader stand where it would after so many tokens.

    Mixture-of-Depths counts the tokens that went through it; all of them did, the dearest case.
    """
    decoding = reader.decoding
    decoding.position = context
    for name, tensor in decoding.state.items():
        if name.endswith(".count"):
            tensor.fill_(context * (1 + reader.model.genome.pause_tokens))

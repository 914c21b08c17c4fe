"""Greedy decoding with guesses: exactly the tokens that the model gives without them.

Leviathan et al. 2022, arXiv 2211.17192, for one greedy sequence. A cheap draft guesses the next K
tokens; the model reads them all in one go, and what agrees with its own choices stays. A recurrent
state cannot be rolled back token by token. So it is copied before the guesses are read, and where
one was wrong the copy is put back and reads the right ones again.

A draft is either the model itself, read out after its first E branches by the same norm and the
same readout (LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710, section 4.3), or what followed the
last tokens where they stood before (prompt lookup).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import torch

from archsearch.errors import ModelError
from archsearch.inference.decoding import Reader, greedy, room
from archsearch.model import Decoding

if TYPE_CHECKING:
    from torch import nn

    from archsearch.model import Model

LONGEST = 8
"""Most tokens that are looked up."""


class Draft(Protocol):
    """What guesses."""

    def guess(self, seen: Sequence[int], decoding: Decoding, count: int) -> list[int]:
        """At most `count` tokens that may follow.

        Args:
            seen: All tokens so far.
            decoding: The model after all of them but the last one; not to be changed.
            count: How many to guess.
        """
        ...


class EarlyExit:
    """The model itself, after the first `exits` branches that join the stream.

    Raises:
        ModelError: if it has no more than that.
    """

    def __init__(self, model: Model, exits: int) -> None:
        self.model, self.branches = shortened(model, exits)

    def guess(self, seen: Sequence[int], decoding: Decoding, count: int) -> list[int]:
        """See `Draft`."""
        own = {
            name: tensor.clone()
            for name, tensor in decoding.state.items()
            if int(name.partition(".")[0]) < self.branches
        }
        moved = Decoding(own, decoding.context, decoding.position)
        token, guessed = seen[-1], list[int]()
        device = self.model.device
        with torch.no_grad():
            while len(guessed) < count:
                logits_1V = self.model.step(torch.tensor([token], device=device), moved)
                token = greedy(logits_1V[0])
                guessed.append(token)
        return guessed


class Lookup:
    """What followed the longest end of the text where it stood before, the last time it did."""

    def guess(self, seen: Sequence[int], decoding: Decoding, count: int) -> list[int]:
        """See `Draft`."""
        seen = list(seen)
        for length in range(min(LONGEST, len(seen) - 1), 0, -1):
            tail = seen[-length:]
            for start in range(len(seen) - length - 1, -1, -1):
                if seen[start : start + length] == tail:
                    return seen[start + length :][:count]
        return []


class Speculation:
    """Greedy decoding with the guesses of a draft, and how well they went.

    Args:
        model: In eval mode.
        draft: What guesses.
        count: Most guesses at a time.
    """

    def __init__(self, model: Model, draft: Draft, count: int) -> None:
        self.model, self.draft, self.count = model, draft, count
        self.verifications = 0
        """How often the model read something, the prompt aside."""
        self.guessed = 0
        self.accepted = 0
        self.given = 0

    def generate(
        self, prompt: Sequence[int], count: int, end: int | None = None, context: int | None = None
    ) -> Iterator[int]:
        """What `decoding.generate` gives with `greedy`, argument by argument."""
        reader, seen = Reader(self.model, room(prompt, count, context)), [*prompt]
        if len(prompt) > 1:
            reader.read(prompt[:-1])
        while self.given < count:
            most = min(self.count, count - self.given - 1)
            guesses = self.draft.guess(seen, reader.decoding, most) if most else []
            for token in self._verified(reader, seen[-1], guesses):
                if token == end:
                    return
                seen.append(token)
                self.given += 1
                yield token

    def _verified(self, reader: Reader, last: int, guesses: list[int]) -> list[int]:
        """The guesses that are right, and the token after them; the reader has read all but that.

        Args:
            reader: After all tokens but the last.
            last: The last token.
            guesses: What may follow it.
        """
        before = snapshot(reader.decoding) if guesses else None
        own = [greedy(logits_V) for logits_V in reader.read([last, *guesses])]
        right = 0
        while right < len(guesses) and guesses[right] == own[right]:
            right += 1
        if before is not None and right < len(guesses):
            reader.decoding = before
            reader.read([last, *guesses[:right]])
        self.verifications += 1
        self.guessed += len(guesses)
        self.accepted += right
        return own[: right + 1]


def snapshot(decoding: Decoding) -> Decoding:
    """A copy that stays as it is while the other goes on."""
    state = {name: tensor.clone() for name, tensor in decoding.state.items()}
    return Decoding(state, decoding.context, decoding.position)


def shortened(model: Model, exits: int) -> tuple[Model, int]:
    """A model of the first branches of another, with its very weights and state names.

    Args:
        model: The whole one.
        exits: How many branches that join the stream are left.

    Returns:
        The model, and how many branches it has, others included.

    Raises:
        ModelError: if the whole one has no more than that.
    """
    joined = list(accumulate(int(node.joins) for node in model.stack.nodes))
    if not 0 < exits < joined[-1]:
        legal = f"legal: 1 to {joined[-1] - 1}" if joined[-1] > 1 else "it has only one"
        raise ModelError(f"an exit after branch {exits} of {joined[-1]} is none; {legal}")
    branches = joined.index(exits) + 1
    short = _shallow(model)
    short.stack = _shallow(model.stack)
    short.stack.nodes = model.stack.nodes[:branches]
    return short, branches


def _shallow(module: Any) -> Any:
    """The same module in another object: replacing a part of one leaves the other alone."""
    twin: nn.Module = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin

"""What a block of an exported model is, and how its parameters are drawn.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from archsearch.export.runtime.stack import Stack

State = dict[str, Tensor]
"""What decoding carries from token to token: one tensor per name, batch first."""
Init = Callable[[Tensor, Generator | None], object]
"""Fills a parameter in place from a random stream; None is torch's own."""


def normal(std: float) -> Init:
    """Draw from N(0, std^2)."""
    return lambda w, g: w.normal_(0.0, std, generator=g)


def fan_in(w: Tensor, g: Generator | None) -> Tensor:
    """Draw from N(0, 1 / fan_in), fan_in being the product of all axes but the first."""
    return w.normal_(0.0, math.prod(w.shape[1:]) ** -0.5, generator=g)


def zeros(w: Tensor, g: Generator | None) -> Tensor:
    """Fill with 0."""
    return w.zero_()


def ones(w: Tensor, g: Generator | None) -> Tensor:
    """Fill with 1."""
    return w.fill_(1.0)


@dataclass(frozen=True, slots=True)
class Ctx:
    """What a block may need beyond its input."""

    embedding: Tensor
    """The token embeddings, same shape as the input."""
    position: int | Tensor = 0
    """Index of the first token of the input in its sequence; or of each token, position_BT, where
    the input leaves some of the sequence out."""
    seen: int = 0
    """Tokens that the decode state has met (`step` and `prefill` alone)."""
    use: int = 0
    """How often the weights were used before in this forward pass (shared blocks)."""
    losses: list[Tensor] = field(default_factory=list)
    """Collects what training adds to the loss of the task, weighted already."""
    noise: Generator | None = None
    """The random stream of training; None where nothing may be random."""


class Block(nn.Module):
    """One part of a model: what a residual branch computes."""

    Config: ClassVar[type[Any]]
    prenorm: ClassVar[bool] = True
    """Whether its input is normalised; False where the block does so itself."""
    per_use: ClassVar[bool] = False
    """Whether each use of shared weights has some of its own: `__init__` then takes `uses`."""
    starts: ClassVar[Mapping[str, Init]] = {}
    """For each parameter name, or pattern of names with `*`, how it is drawn."""

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """The branch for a whole sequence; the residual is added outside."""
        raise NotImplementedError

    def init_state(self, batch: int, context: int) -> State:
        """The decode state before the first token of sequences of at most `context` tokens."""
        raise NotImplementedError

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """The branch for one token, after `ctx.seen` others; `state` may be changed in place."""
        raise NotImplementedError

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """`step` for several tokens at once; a block that can do better than one by one says how.

        `ctx` has the embeddings of all of them and the position of the first, or of each.
        """
        if not state:
            return self.forward(x_BTD, ctx), state
        outputs = []
        for i, x_BD in enumerate(x_BTD.unbind(1)):
            at = ctx.position
            at = at + i if isinstance(at, int) else at[:, i : i + 1]
            embedding_BD, seen = ctx.embedding[:, i], ctx.seen + i
            own = dataclasses.replace(ctx, embedding=embedding_BD, position=at, seen=seen)
            y_BD, state = self.step(x_BD, state, own)
            outputs.append(y_BD)
        return torch.stack(outputs, 1), state


class Wrapper(Block):
    """A block that holds others, as `self.inner`."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Nothing to set."""

    prenorm = False

    def __init__(self, width: int, config: Any, inner: Stack) -> None:
        super().__init__()
        self.inner = inner

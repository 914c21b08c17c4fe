"""Blocks that hold others: Mixture-of-Depths, loops, branches side by side.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from archsearch.block import Block, Ctx, State
from archsearch.cost import NOTHING, Cost, Held


class Inner(nn.Module):
    """What a wrapper holds: residual branches with their norms. Made by the model."""

    @property
    def count(self) -> int:
        """Number of branches."""
        raise NotImplementedError

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """The stream after the last branch, x itself included."""
        raise NotImplementedError

    def each(self, x_BTD: Tensor, ctx: Ctx) -> list[Tensor]:
        """The output of every branch for the same input."""
        raise NotImplementedError

    def init_state(self, batch: int, context: int) -> State:
        """The decode states of all branches."""
        raise NotImplementedError

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """`forward` for one token."""
        raise NotImplementedError

    def step_each(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[list[Tensor], State]:
        """`each` for one token."""
        raise NotImplementedError

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """`step` for several tokens at once."""
        raise NotImplementedError

    def prefill_each(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[list[Tensor], State]:
        """`step_each` for several tokens at once."""
        raise NotImplementedError

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """What `forward` must equal."""
        raise NotImplementedError

    def oracle_each(self, x_BTD: Tensor, ctx: Ctx) -> list[Tensor]:
        """What `each` must equal."""
        raise NotImplementedError


class Wrapper(Block, name="wrapper", kind="wrapper", paper="", register=False):
    """A block that holds others, as `self.inner`.

    `__init__` takes what it holds after the config, `cost` takes a `Held` after the context.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

    roles = {}
    prenorm = False

    def __init__(self, width: int, config: Any, inner: Inner) -> None:
        super().__init__()
        self.inner = inner

    @staticmethod
    def cost(width: int, config: Any, seq_len: int, held: Held | None = None) -> Cost:
        """Cost of one use at a context of `seq_len` tokens, with what it holds."""
        raise NotImplementedError

    @classmethod
    def own_cost(cls, width: int, config: Any, seq_len: int) -> Cost:
        """What it adds itself; side by side it holds two."""
        count = 2 if cls.info.wraps == "set" else 1
        return cls.cost(width, config, seq_len, Held(count, lambda time: NOTHING))

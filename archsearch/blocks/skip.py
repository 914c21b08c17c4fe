"""A long skip connection: what the slot reads joins the stream again.

Ronneberger et al. 2015 (U-Net), arXiv 1505.04597, section 2. A slot reads the stream itself unless
it names `inputs`; with `inputs: [stage:stem]` this block adds what stage `stem` left.

    add: y = x;   gate: y = sigmoid(g) * x, g learned per channel

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archsearch.block import Block, Ctx, Role, State, zeros
from archsearch.cost import Cost
from archsearch.dims import choice


class Skip(Block, name="skip", kind="ffn", paper="1505.04597"):
    """What its slot reads, added to the stream: a long skip connection."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        combine: str = choice("add", "gate", default="add")
        """add: as it is. gate: each channel with a learned weight from 0 to 1."""

    roles = {"gate": Role.vector("model", init=zeros)}
    prenorm = False

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(width)) if config.combine == "gate" else None

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        return x_BTD if self.gate is None else self.gate.sigmoid() * x_BTD

    def init_state(self, batch: int, context: int) -> State:
        return {}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        return self.forward(x_BD, ctx), state

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        weight = 1.0 if self.gate is None else 1 / (1 + torch.exp(-self.gate))
        return x_BTD * weight

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        params = width if config.combine == "gate" else 0
        return Cost(params=params, active_params=params, flops=0.0, state_bytes=0)

"""Gated feed-forward: SwiGLU, GeGLU and ReLU^2. Shazeer 2020, arXiv 2002.05202, eq. 5 and 6.

y = W_down (act(W_gate x) * W_up x). With `act: relu2` there is no gate: y = W_down relu(W_up x)^2
(So et al. 2021, arXiv 2109.08668, section 3).

Shapes: B batch, T time, D model width, F hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State
from archsearch.cost import Cost
from archsearch.dims import choice, whole


class SwiGLU(Block, name="swiglu", kind="ffn", paper="2002.05202"):
    """Gated feed-forward with SiLU, GELU or squared ReLU."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        mult: int = whole(1, 16, default=2)
        """Hidden width over model width."""
        act: str = choice("silu", "gelu", "relu2", default="silu")
        """Nonlinearity: silu (SwiGLU), gelu (GeGLU), relu2 (squared ReLU, no gate)."""

    roles = {
        "gate.weight": Role.hidden("hidden", "model"),
        "up.weight": Role.hidden("hidden", "model"),
        "down.weight": Role.hidden("model", "hidden"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        hidden = config.mult * width
        self.act = config.act
        if config.act != "relu2":
            self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        up_BTF = self.up(x_BTD)
        if self.act == "relu2":
            return self.down(F.relu(up_BTF).square())
        act = F.silu if self.act == "silu" else F.gelu
        return self.down(act(self.gate(x_BTD)) * up_BTF)

    def init_state(self, batch: int, context: int) -> State:
        return {}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        return self.forward(x_BD, ctx), state

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        up_BTF = x_BTD @ self.up.weight.T
        if self.act == "relu2":
            hidden_BTF = torch.where(up_BTF > 0, up_BTF * up_BTF, 0.0)
        else:
            g_BTF = x_BTD @ self.gate.weight.T
            silu_BTF = g_BTF / (1 + (-g_BTF).exp())
            gelu_BTF = g_BTF * (1 + torch.erf(g_BTF / 2**0.5)) / 2
            hidden_BTF = (silu_BTF if self.act == "silu" else gelu_BTF) * up_BTF
        return hidden_BTF @ self.down.weight.T

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        matrices = 2 if config.act == "relu2" else 3
        params = matrices * config.mult * width**2
        return Cost(params=params, active_params=params, flops=2 * params, state_bytes=0)

"""Gated feed-forward: SwiGLU, GeGLU and ReLU^2. Shazeer 2020, arXiv 2002.05202, eq. 5 and 6.

y = W_down (act(W_gate x) * W_up x). With `act: relu2` there is no gate: y = W_down relu(W_up x)^2
(So et al. 2021, arXiv 2109.08668, section 3). With `act: spline` or `act: rational` act is learned,
from SiLU on; see `archsearch.layers.activations`.

Shapes: B batch, T time, D model width, F hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, divisors, require, require_whole
from archsearch.cost import Cost
from archsearch.dims import choice, whole
from archsearch.kernels.gated_ffn import ACT, gated_ffn
from archsearch.layers.activations import activation, activation_params, learnable_roles


class SwiGLU(Block, name="swiglu", kind="ffn", paper="2002.05202"):
    """Gated feed-forward with SiLU, GELU, squared ReLU or a learnable nonlinearity."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        mult: float = whole(1, 16, default=2, fractions=True)
        """Hidden width over model width."""
        act: str = choice("silu", "gelu", "relu2", "spline", "rational", default="silu")
        """Nonlinearity: silu (SwiGLU), gelu (GeGLU), relu2 (squared ReLU, no gate), or learnable:
        spline (cubic B-spline per channel), rational (GR-KAN)."""
        grid: int = whole(2, 64, default=12, when=("act", "spline"))
        """Cells of the spline's grid over [-6, 6]."""
        groups: int = whole(1, 64, default=8, when=("act", "rational"))
        """Groups of channels that share a denominator."""

    roles = {
        "gate.weight": Role.hidden("hidden", "model"),
        "up.weight": Role.hidden("hidden", "model"),
        "down.weight": Role.hidden("model", "hidden"),
        **learnable_roles("act"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        hidden = round(config.mult * width)
        self.named = config.act
        if config.act != "relu2":
            self.gate = nn.Linear(width, hidden, bias=False)
        if config.act in ("spline", "rational"):
            sizes = {"grid": config.grid, "groups": config.groups}
            self.act = activation(config.act, hidden, **sizes)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        if self.named in ACT:
            gate_FD, up_FD, down_DF = self.gate.weight, self.up.weight, self.down.weight
            return gated_ffn(x_BTD, gate_FD, up_FD, down_DF, self.named)
        up_BTF = self.up(x_BTD)
        if self.named == "relu2":
            return self.down(F.relu(up_BTF).square())
        return self.down(self.act(self.gate(x_BTD)) * up_BTF)

    def init_state(self, batch: int, context: int) -> State:
        return {}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        return self.forward(x_BD, ctx), state

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        up_BTF = x_BTD @ self.up.weight.T
        if self.named == "relu2":
            hidden_BTF = torch.where(up_BTF > 0, up_BTF * up_BTF, 0.0)
        else:
            g_BTF = x_BTD @ self.gate.weight.T
            if self.named == "silu":
                act_BTF = g_BTF / (1 + (-g_BTF).exp())
            elif self.named == "gelu":
                act_BTF = g_BTF * (1 + torch.erf(g_BTF / 2**0.5)) / 2
            else:
                act_BTF = self.act.oracle(g_BTF)
            hidden_BTF = act_BTF * up_BTF
        return hidden_BTF @ self.down.weight.T

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        matrices, hidden = 2 if config.act == "relu2" else 3, round(config.mult * width)
        weights = matrices * hidden * width
        sizes = {"grid": config.grid, "groups": config.groups}
        params = weights + activation_params(config.act, hidden, **sizes)
        return Cost(params=params, active_params=params, flops=2 * weights, state_bytes=0)

    @staticmethod
    def check(width: int, config: Config) -> None:
        require_whole(SwiGLU.info, "mult", config.mult, width)
        if config.act == "rational":
            hidden = round(config.mult * width)
            because = f"does not divide the hidden width {hidden}"
            require(SwiGLU.info, "groups", config.groups, divisors(hidden), because)

"""Kolmogorov-Arnold network: learnable functions on the edges. Liu et al. 2024, arXiv 2404.19756.

    y_o = sum_i w_b[o, i] silu(x_i) + sum_i sum_c w_s[o, c, i] B_c(x_i)      (eq. 2.10 to 2.12)

Two such layers, D -> F -> D, stand for the feed-forward. B_c are the B-splines of order k on a
uniform grid over [-reach, reach] that does not move: the update of the grid in section 2.4 changes
the function under the optimizer. Beyond the grid the splines fall to 0 over k cells and SiLU alone
is left. Inputs are normalised by the model, so that a reach of 3 holds 99.7 % of them.

Shapes: B batch, T time, D model width, F hidden width, I inputs, O outputs, C basis functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State
from archsearch.blocks.splines import basis
from archsearch.cost import Cost
from archsearch.dims import real, whole


class KANLayer(nn.Module):
    """A function of its own on each edge from I inputs to O outputs."""

    def __init__(self, inputs: int, outputs: int, grid: int, order: int, reach: float) -> None:
        super().__init__()
        self.grid, self.order, self.reach = grid, order, reach
        self.base = nn.Parameter(torch.empty(outputs, inputs))
        self.spline = nn.Parameter(torch.empty(outputs, grid + order, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """x_I to y_O, any leading axes."""
        b_CI = basis(x, self.grid, self.order, self.reach)
        return F.linear(F.silu(x), self.base) + F.linear(b_CI.flatten(-2), self.spline.flatten(1))

    def oracle(self, x: Tensor) -> Tensor:
        """The same by the recursion of Cox and de Boor."""
        k, h = self.order, 2 * self.reach / self.grid
        knots = [h * (j - k) - self.reach for j in range(self.grid + 2 * k + 1)]

        def b(c: int, order: int) -> Tensor:
            if order == 0:
                return ((x >= knots[c]) & (x < knots[c + 1])).to(x.dtype)
            rising = (x - knots[c]) / (knots[c + order] - knots[c])
            falling = (knots[c + order + 1] - x) / (knots[c + order + 1] - knots[c + 1])
            return rising * b(c, order - 1) + falling * b(c + 1, order - 1)

        y = torch.einsum("oi,...i->...o", self.base, x / (1 + (-x).exp()))
        for c in range(self.grid + k):
            y = y + torch.einsum("oi,...i->...o", self.spline[:, c], b(c, k))
        return y


class KAN(Block, name="kan", kind="ffn", paper="2404.19756"):
    """Kolmogorov-Arnold network: two layers of B-splines on every edge."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        mult: int = whole(1, 16, default=1)
        """Hidden width over model width."""
        grid: int = whole(1, 64, default=5)
        """Cells of the spline grid; an edge has 1 + grid + order parameters."""
        order: int = whole(1, 5, default=3)
        """Degree of the splines; 3 is cubic."""
        reach: float = real(0.5, 20.0, default=3.0)
        """Half width of the grid, in standard deviations of the input."""

    roles = {
        "up.base": Role.hidden("hidden", "model"),
        "up.spline": Role.hidden("hidden", None, "model"),
        "down.base": Role.hidden("model", "hidden"),
        "down.spline": Role.hidden("model", None, "hidden"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        hidden, edge = config.mult * width, (config.grid, config.order, config.reach)
        self.up = KANLayer(width, hidden, *edge)
        self.down = KANLayer(hidden, width, *edge)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        return self.down(self.up(x_BTD))

    def init_state(self, batch: int, context: int) -> State:
        return {}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        return self.forward(x_BD, ctx), state

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        return self.down.oracle(self.up.oracle(x_BTD))

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        params = 2 * config.mult * width**2 * (1 + config.grid + config.order)
        return Cost(params=params, active_params=params, flops=2 * params, state_bytes=0)

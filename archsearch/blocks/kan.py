"""Kolmogorov-Arnold network: learnable functions on the edges. Liu et al. 2024, arXiv 2404.19756.

    y_o = sum_i w_b[o, i] silu(x_i) + sum_i sum_c w_s[o, c, i] B_c(x_i)      (eq. 2.10 to 2.12)

Two such layers, D -> F -> D, stand for the feed-forward. The B_c are the grid + k B-splines of
order k on a uniform grid over [-reach, reach]. It does not move: the update of the grid in section
2.4 changes the function under the optimizer. Beyond the grid the splines fall to 0 over k cells and
the SiLU alone is left. Inputs are normalised by the model; a reach of 3 holds 99.7 % of them.

Shapes: B batch, T time, D model width, F hidden width, N tokens, I inputs, O outputs, C functions
of one input (SiLU, then the B-splines).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State
from archsearch.cost import Cost
from archsearch.dims import real, whole
from archsearch.kernels.spline_features import features, features_ref


def draw_edges(w: Tensor, g: Generator) -> Tensor:
    """Draw w_b from N(0, 1/I), and w_s so that a spline is small noise: from N(0, 1 / (C I))."""
    functions, inputs = w.shape[1:]
    w.normal_(0.0, inputs**-0.5, generator=g)
    w[:, 1:].mul_(functions**-0.5)
    return w


class KANLayer(nn.Module):
    """A function of its own on each edge from I inputs to O outputs.

    `weight[o, 0, i]` is that of the base branch, w_b; `weight[o, 1 + c, i]` that of B_c, w_s.
    """

    def __init__(self, inputs: int, outputs: int, grid: int, order: int, reach: float) -> None:
        super().__init__()
        self.grid, self.order, self.reach = grid, order, reach
        self.weight = nn.Parameter(torch.empty(outputs, 1 + grid + order, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """x_I to y_O, any leading axes."""
        f_CI = features(x, self.grid, self.order, self.reach)
        return F.linear(f_CI.flatten(-2), self.weight.flatten(1))

    def oracle(self, x: Tensor) -> Tensor:
        """The same by the recursion of Cox and de Boor."""
        f_CI = features_ref(x, self.grid, self.order, self.reach)
        return torch.einsum("oci,...ci->...o", self.weight, f_CI)


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
        "up.weight": Role.hidden("hidden", None, "model", init=draw_edges),
        "down.weight": Role.hidden("model", None, "hidden", init=draw_edges),
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

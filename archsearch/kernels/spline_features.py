"""SiLU and every B-spline of a uniform grid at x, the functions that a KAN layer learns from.

The B-splines are in closed form. With s the distance from the centre of one in cells,

    B(x) = sum_j (-1)^j binom(k+1, j) relu((k+1)/2 - |s| - j)^k / k!

|s| leaves half of the terms, and each is 0 outside its own support: float32 is exact to 3e-7
everywhere, where truncated powers of x itself are off by 2e-3 away from the grid.

Shapes: N tokens, I inputs, C functions of one input (SiLU, then the B-splines).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.kernels.dispatch import op
from archsearch.kernels.spline import cox_de_boor

TILE = 1 << 16
"""Numbers worked on at once: the temporaries of a tile stay in the cache of a core."""


@op("kan_features")
def features(x: Tensor, grid: int, order: int, reach: float) -> Tensor:
    """silu(x) and every B-spline at x: x_I becomes f_CI, with C = 1 + grid + order.

    Computed in float32 or better, returned in the type of x. For order 1 the derivative at a knot
    is the mean of both slopes.

    Args:
        x: x_I, any leading axes.
        grid: Cells between -reach and reach.
        order: Degree k of the pieces.
        reach: Half width of the grid.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    apply: Any = _Features.apply
    f_NCI: Tensor = apply(wide.reshape(-1, x.shape[-1]), grid, order, reach)
    return f_NCI.view(*x.shape[:-1], 1 + grid + order, x.shape[-1]).to(x.dtype)


def features_ref(x: Tensor, grid: int, order: int, reach: float) -> Tensor:
    """The same by the recursion of Cox and de Boor."""
    return torch.stack([x / (1 + (-x).exp()), *cox_de_boor(x, grid, order, reach)], -2)


class _Features(Function):
    """x_NI -> f_NCI; the derivatives come from the same powers and wait for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, grid: int, order: int, reach: float) -> Tensor:
        (N, inputs), C = x_NI.shape, 1 + grid + order
        gamma = math.factorial(order) ** (-1 / order)  # powers of gamma s need no division by k!
        cells = gamma * grid / (2 * reach)
        ctx.scale = -order * cells
        centre_C1 = torch.arange(C - 1, device=x_NI.device, dtype=x_NI.dtype)[:, None]
        centre_C1 = (centre_C1 - (order - 1) / 2) * gamma
        f_NCI = x_NI.new_empty(N, C, inputs)
        d_NCI = torch.empty_like(f_NCI) if ctx.needs_input_grad[0] else None
        t_NI = (x_NI + reach).mul_(cells)
        for n in _tiles(f_NCI):
            d = None if d_NCI is None else d_NCI[n][:, 1:]
            _cardinal(t_NI[n, None] - centre_C1, order, gamma, f_NCI[n][:, 1:], d)
        sigmoid_NI = x_NI.sigmoid()
        silu_NI = torch.mul(x_NI, sigmoid_NI, out=f_NCI[:, 0])
        if d_NCI is not None:
            slope_NI = torch.addcmul(sigmoid_NI, silu_NI, 1 - sigmoid_NI)
            torch.div(slope_NI, ctx.scale, out=d_NCI[:, 0])
        ctx.save_for_backward(d_NCI)
        return f_NCI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NCI: Tensor) -> tuple[Tensor, None, None, None]:
        (d_NCI,) = ctx.saved_tensors
        g_NI = g_NCI.new_empty(g_NCI.shape[0], g_NCI.shape[2])
        for n in _tiles(g_NCI):
            torch.sum(g_NCI[n] * d_NCI[n], 1, out=g_NI[n])
        return g_NI.mul_(ctx.scale), None, None, None


def _tiles(f_NCI: Tensor) -> list[slice]:
    """Slices of the first axis of about TILE numbers each."""
    rows = max(1, TILE // f_NCI.shape[1:].numel())
    return [slice(n, n + rows) for n in range(0, len(f_NCI), rows)]


def _cardinal(s: Tensor, order: int, gamma: float, out: Tensor, slope: Tensor | None) -> None:
    """B(s / gamma) into `out`; into `slope` its derivative by s, over -order."""
    p = gamma * (order + 1) / 2 - s.abs()
    if order == 1:
        if slope is not None:
            torch.mul(p.sign().add_(1), s.sign_(), out=slope).mul_(0.5)
        torch.clamp(p, min=0, out=out)
        return
    p.relu_()
    for j in range((order + 2) // 2):
        sign = (-1.0) ** j * math.comb(order + 1, j)
        if j == 0:
            below = _power(p, order - 1, slope)
            torch.mul(below, p, out=out)
        else:
            p = F.softshrink(p, gamma)  # relu(p - gamma), for p is not negative
            below = _power(p, order - 1)
            out.addcmul_(below, p, value=sign)
            if slope is not None:
                slope.add_(below, alpha=sign)
    if slope is not None:
        slope.copysign_(s)


def _power(p: Tensor, exponent: int, out: Tensor | None = None) -> Tensor:
    """The power of p to a whole exponent from 1 on, in `out` where that is given."""
    power = p
    for _ in range(exponent - 2):
        power = power * p
    if exponent > 1:
        return torch.mul(power, p, out=out)
    return p if out is None else out.copy_(p)

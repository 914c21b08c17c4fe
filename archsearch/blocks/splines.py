"""B-splines on a uniform grid in closed form.

With t = (x + reach) / h in units of the cell h = 2 reach / grid, basis c of order k is the cardinal
B-spline around its centre (de Boor 2001, chapter IX):

    B_c(x) = sum_j (-1)^j binom(k+1, j) relu((k+1)/2 - |s_c| - j)^k / k!,  s_c = t - c + (k-1)/2

|s| leaves half of the terms, and every term is 0 outside its own support, so that float32 is exact
to 3e-7 everywhere; sums of truncated powers of t itself are off by 2e-3 away from the grid. There
are grid + k functions. They sum to 1 on [-reach, reach], fall to 0 over the next k cells, and are 0
beyond. For k = 1 the derivative at a knot is the mean of both slopes.

Shapes: N tokens, C basis functions, I channels, `_` any leading axes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

TILE = 1 << 16
"""Numbers worked on at once: all temporaries of a tile stay in the cache of a core."""


def basis(x: Tensor, grid: int, order: int, reach: float) -> Tensor:
    """Every basis function at every x_I: B_CI behind the leading axes of x.

    Computed in float32 or better, returned in the type of x.

    Args:
        x: x_I, any leading axes.
        grid: Cells between -reach and reach.
        order: Degree k of the pieces.
        reach: Half width of the grid.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    b_NCI = _Basis.apply(wide.reshape(-1, x.shape[-1]), grid, order, reach)
    return b_NCI.view(*x.shape[:-1], grid + order, x.shape[-1]).to(x.dtype)


class _Basis(Function):
    """x_NI -> B_NCI; the derivatives come from the same powers and wait for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, grid: int, order: int, reach: float) -> Tensor:
        (N, I), C = x_NI.shape, grid + order
        # powers of gamma s need no division by k!
        gamma = math.factorial(order) ** (-1 / order)
        ctx.scale = -order * gamma * grid / (2 * reach)
        t_NI = (x_NI + reach) * (gamma * grid / (2 * reach))
        centre_C1 = torch.arange(C, device=x_NI.device, dtype=x_NI.dtype)[:, None]
        centre_C1 = (centre_C1 - (order - 1) / 2) * gamma
        b_NCI = x_NI.new_empty(N, C, I)
        d_NCI = torch.empty_like(b_NCI) if ctx.needs_input_grad[0] else None
        rows = max(1, TILE // (C * I))
        for n in range(0, N, rows):
            s_NCI = t_NI[n : n + rows, None] - centre_C1
            d = None if d_NCI is None else d_NCI[n : n + rows]
            _cardinal(s_NCI, order, gamma, b_NCI[n : n + rows], d)
        ctx.save_for_backward(d_NCI)
        return b_NCI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NCI: Tensor) -> tuple[Tensor, None, None, None]:
        (d_NCI,) = ctx.saved_tensors
        N, C, I = g_NCI.shape
        g_NI = g_NCI.new_empty(N, I)
        rows = max(1, TILE // (C * I))
        for n in range(0, N, rows):
            torch.sum(g_NCI[n : n + rows] * d_NCI[n : n + rows], 1, out=g_NI[n : n + rows])
        return g_NI.mul_(ctx.scale), None, None, None


def _cardinal(s: Tensor, order: int, gamma: float, out: Tensor, slope: Tensor | None) -> None:
    """B(s / gamma) into `out`, and B' / (-order gamma) into `slope`."""
    p = s.abs().neg_().add_(gamma * (order + 1) / 2)
    if slope is not None and order == 1:
        slope.copy_(p.sign().add_(1).mul_(0.5).mul_(s.sign()))
    p.relu_()
    for j in range((order + 2) // 2):
        if j:
            p.sub_(gamma).relu_()
        sign = (-1.0) ** j * math.comb(order + 1, j)
        below = p if order <= 2 else p * p
        for _ in range(order - 3):
            below = below * p
        if j == 0:
            torch.mul(below, p, out=out) if order > 1 else out.copy_(p)
        else:
            out.addcmul_(below, p, value=sign)
        if slope is not None and order > 1:
            torch.mul(below, sign, out=slope) if j == 0 else slope.add_(below, alpha=sign)
    if slope is not None and order > 1:
        slope.mul_(s.sign_())

"""A cubic B-spline of its own for each channel: y_f = sum_c w[f, c] B_c(x_f).

The B_c are those of a uniform grid over [-reach, reach], of which four are not 0 at any point. The
spline falls to 0 over three cells beyond the grid and is 0 from there on.

Shapes: N tokens, F channels, C basis functions, M cells.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.kernels.dispatch import op

ORDER = 3
"""Degree of the pieces; a channel has as many coefficients more than the grid has cells."""


@op("spline")
def spline(x: Tensor, w_FC: Tensor, reach: float) -> Tensor:
    """x_F to y_F, any leading axes. Computed in float32 or better, returned in the type of x.

    Args:
        x: Where the splines are taken; a NaN gives a NaN.
        w_FC: Coefficients; C - 3 is the number of cells.
        reach: Half width of the grid.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    # the four splines of a cell as one cubic in the place u inside it; cells beyond are 0
    w_FC = F.pad(w_FC.to(wide.dtype), (ORDER, ORDER))
    cells = w_FC.shape[1] - ORDER
    w0, w1, w2, w3 = (w_FC[:, j : j + cells] for j in range(ORDER + 1))
    p_4FM = torch.stack((
        (w0 + 4 * w1 + w2) / 6, (w2 - w0) / 2, (w0 - 2 * w1 + w2) / 2,
        (w3 - w0 + 3 * (w1 - w2)) / 6,
    ))  # fmt: skip
    apply: Any = _Cubic.apply
    y_NF: Tensor = apply(wide.reshape(-1, x.shape[-1]), p_4FM, reach)
    return y_NF.view(x.shape).to(x.dtype)


def spline_ref(x: Tensor, w_FC: Tensor, reach: float) -> Tensor:
    """The same, one basis function after the other."""
    basis = cox_de_boor(x, w_FC.shape[1] - ORDER, ORDER, reach)
    return sum((w * b for w, b in zip(w_FC.T, basis, strict=True)), x * 0)


def cox_de_boor(x: Tensor, grid: int, order: int, reach: float) -> list[Tensor]:
    """Every B-spline of a uniform grid over [-reach, reach] at x, by the recursion: slow.

    Source: de Boor 2001, A Practical Guide to Splines, chapter IX, eq. 14 and 15.
    """
    h = 2 * reach / grid
    knots = [h * j - reach for j in range(-order, grid + order + 1)]
    b = [((x >= low) & (x < high)).to(x.dtype) for low, high in pairwise(knots)]
    for k in range(1, order + 1):
        b = [
            (x - knots[c]) / (knots[c + k] - knots[c]) * b[c]
            + (knots[c + k + 1] - x) / (knots[c + k + 1] - knots[c + 1]) * b[c + 1]
            for c in range(len(b) - 1)
        ]
    return b


class _Cubic(Function):
    """Cubics by cell: channel f has in cell m the value p[0, f, m] + p[1, f, m] u + ..."""

    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, p_4FM: Tensor, reach: float) -> Tensor:
        cells = p_4FM.shape[2]
        ctx.per_unit = (cells - 2 * ORDER) / (2 * reach)
        t_NF = ((x_NF + reach) * ctx.per_unit).add_(ORDER).clamp_(0, cells)
        m_NF = t_NF.floor().clamp_(max=cells - 1).nan_to_num_()
        u_NF = t_NF.sub_(m_NF)
        first_F = torch.arange(x_NF.shape[1], device=x_NF.device) * cells
        at = m_NF.long().add_(first_F).flatten()
        p0, p1, p2, p3 = (p.flatten().index_select(0, at).view_as(u_NF) for p in p_4FM)
        slope_NF = torch.addcmul(2 * p2, p3, u_NF, value=3).mul_(u_NF).add_(p1)
        ctx.save_for_backward(at, u_NF, slope_NF)
        ctx.shape = p_4FM.shape
        return p3.mul_(u_NF).add_(p2).mul_(u_NF).add_(p1).mul_(u_NF).add_(p0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NF: Tensor) -> tuple[Tensor, Tensor, None]:
        at, u_NF, slope_NF = ctx.saved_tensors
        g_4FM, r_NF = g_NF.new_zeros(ctx.shape), g_NF.clone()
        for power, g_FM in enumerate(g_4FM):
            if power:
                r_NF.mul_(u_NF)
            g_FM.view(-1).index_add_(0, at, r_NF.view(-1))
        return (slope_NF * g_NF).mul_(ctx.per_unit), g_4FM, None

"""Nonlinearities of a feed-forward, two of them learnable.

spline    a cubic B-spline per channel in place of a fixed function (Yu et al. 2024, arXiv
          2407.16674): y_f = sum_c w[f, c] B_c(x_f), on a uniform grid over [-6, 6] that does not
          move. It falls to 0 over three cells beyond the grid and is 0 from there on.
rational  P(x) / (1 + |A(x)|) of degrees 5 and 4 (Molina et al. 2019, arXiv 1907.06732, the safe
          Pade unit); all channels share P, each group of channels has its own A, as in GR-KAN (Yang
          and Wang 2024, arXiv 2409.10594): P = a_0 + a_1 x + ..., A = b_1 x + b_2 x^2 + ...
          The bars are around the whole of A; the kernels released with GR-KAN sum |b_j x^j|, which
          is another function for the same coefficients.

Both start as SiLU or GELU. A feed-forward takes `activation(...)` as its module `act`, the roles
`learnable_roles("act")` and the parameters that `activation_params(...)` counts.

Shapes: N tokens, F channels, C basis functions, M cells, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.block import Init, Role

Start = Literal["silu", "gelu"]
STARTS: dict[Start, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}
ORDER, REACH = 3, 6.0
"""Degree and half width of the grid of `spline`."""
DEGREES = 5, 4
"""Degrees of the numerator and the denominator of `rational`."""
MINIMAX = {
    "silu": (0.24998319, 0.00567788, 0.1059824, 0.00051823),
    "gelu": (0.40922629, 0.00978860, 0.22079530, 0.0),
}
"""e_2, e_4, b_2, b_4: the start is x/2 + (e_2 x^2 + e_4 x^4) / (1 + b_2 x^2 + b_4 x^4), fitted on
[-4, 4] for the least maximum error, which is 6e-6 for SiLU and 2.5e-3 for GELU."""


def activation(name: str, channels: int, *, grid: int = 12, groups: int = 8) -> Spline | Rational:
    """The nonlinearity `spline` (with `grid` cells) or `rational` (with `groups` of channels).

    `groups` must divide `channels`. Both have an `oracle` beside `forward`.
    """
    return Spline(channels, grid) if name == "spline" else Rational(channels, groups)


def activation_params(name: str, channels: int, *, grid: int = 12, groups: int = 8) -> int:
    """Parameters of `activation` with the same arguments; 0 for any other nonlinearity."""
    learnable = {
        "spline": channels * (grid + ORDER),
        "rational": DEGREES[0] + 1 + DEGREES[1] * groups,
    }
    return learnable.get(name, 0)


def learnable_roles(module: str, start: Start = "silu") -> dict[str, Role]:
    """The roles of every learnable nonlinearity held as `module`, which starts as `start`."""
    e_2, e_4, b_2, b_4 = MINIMAX[start]
    numerator, denominator = (0.0, 0.5, e_2, b_2 / 2, e_4, b_4 / 2), (0.0, b_2, 0.0, b_4)
    return {
        f"{module}.coefficients": Role.vector("hidden", None, init=_fitted(start)),
        f"{module}.numerator": Role.small(None, init=_filled(numerator)),
        f"{module}.denominators": Role.small(None, None, init=_filled(denominator)),
    }


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


class Spline(nn.Module):
    """A cubic B-spline of its own for each channel."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.coefficients = nn.Parameter(torch.empty(channels, grid + ORDER))

    def forward(self, x: Tensor) -> Tensor:
        """x_F, any leading axes, computed in float32 or better."""
        wide = _wide(x)
        # the four splines of a cell as one cubic in the place u inside it; cells beyond are 0
        w_FC = F.pad(self.coefficients.to(wide.dtype), (ORDER, ORDER))
        cells = w_FC.shape[1] - ORDER
        w0, w1, w2, w3 = (w_FC[:, j : j + cells] for j in range(ORDER + 1))
        p_4FM = torch.stack((
            (w0 + 4 * w1 + w2) / 6, (w2 - w0) / 2, (w0 - 2 * w1 + w2) / 2,
            (w3 - w0 + 3 * (w1 - w2)) / 6,
        ))  # fmt: skip
        apply: Any = _Cubic.apply
        y_NF: Tensor = apply(wide.reshape(-1, x.shape[-1]), p_4FM, self.grid)
        return y_NF.view(x.shape).to(x.dtype)

    def oracle(self, x: Tensor) -> Tensor:
        """The same, one basis function after the other."""
        basis = cox_de_boor(x, self.grid, ORDER, REACH)
        return sum((w * b for w, b in zip(self.coefficients.T, basis, strict=True)), x * 0)


class _Cubic(Function):
    """Cubics by cell: channel f has in cell m the value p[0, f, m] + p[1, f, m] u + ..."""

    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, p_4FM: Tensor, grid: int) -> Tensor:
        ctx.per_unit, cells = grid / (2 * REACH), p_4FM.shape[2]
        t_NF = ((x_NF + REACH) * ctx.per_unit).add_(ORDER).clamp_(0, cells)
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


class Rational(nn.Module):
    """A safe Pade unit: one numerator for all channels, a denominator for each group of them."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.numerator = nn.Parameter(torch.empty(DEGREES[0] + 1))
        self.denominators = nn.Parameter(torch.empty(groups, DEGREES[1]))
        self.shared = channels // groups

    def forward(self, x: Tensor) -> Tensor:
        """x_F, any leading axes, computed in float32 or better."""
        wide = _wide(x)
        a, b_GJ = self.numerator.to(wide.dtype), self.denominators.to(wide.dtype)
        apply: Any = _Rational.apply
        b_JF = b_GJ.repeat_interleave(self.shared, 0).T.contiguous()
        y_NF: Tensor = apply(wide.reshape(-1, x.shape[-1]), a, b_JF)
        return y_NF.view(x.shape).to(x.dtype)

    def oracle(self, x: Tensor) -> Tensor:
        """The same, as a sum of powers, group by group."""
        parts = []
        for x_S, b in zip(x.split(self.shared, -1), self.denominators, strict=True):
            p = sum((a * x_S**i for i, a in enumerate(self.numerator)), x_S * 0)
            q = sum((b[j] * x_S ** (j + 1) for j in range(len(b))), x_S * 0)
            parts.append(p / (1 + q.abs()))
        return torch.cat(parts, -1)


class _Rational(Function):
    """P(x) / (1 + |A(x)|) in Horner's form, from a_0.. and the b_1.. of each channel."""

    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, a: Tensor, b_JF: Tensor) -> Tensor:
        A_NF = _horner(x_NF, [torch.zeros_like(a[0]), *b_JF])
        y_NF = _horner(x_NF, [*a]).div_(A_NF.abs().add_(1))
        ctx.save_for_backward(x_NF, a, b_JF, A_NF, y_NF)
        return y_NF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_NF, a, b_JF, A_NF, y_NF = ctx.saved_tensors
        # with r = g / (1 + |A|) and v = -y sign(A) r: d a_i = sum r x^i, d b_j = sum v x^j
        r_NF = g_NF / (A_NF.abs().add_(1))
        v_NF = (y_NF * A_NF.sign()).mul_(r_NF).neg_()
        slope_P = _horner(x_NF, [i * a[i] for i in range(1, len(a))])
        slope_A = _horner(x_NF, [(j + 1) * b for j, b in enumerate(b_JF)])
        g_x_NF = slope_P.mul_(r_NF).addcmul_(slope_A, v_NF)
        g_a, g_b_JF = torch.empty_like(a), torch.empty_like(b_JF)
        for i in range(len(a)):
            torch.sum(r_NF, (0, 1), out=g_a[i])
            r_NF.mul_(x_NF)
        for j in range(len(b_JF)):
            torch.sum(v_NF.mul_(x_NF), 0, out=g_b_JF[j])
        return g_x_NF, g_a, g_b_JF


def _horner(x_NF: Tensor, coefficients: list[Tensor]) -> Tensor:
    """c_0 + x (c_1 + x (c_2 + ...)), each c a number or one for each channel."""
    y_NF = torch.addcmul(coefficients[-2], x_NF, coefficients[-1])
    for c in coefficients[-3::-1]:
        y_NF.mul_(x_NF).add_(c)
    return y_NF


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _filled(values: tuple[float, ...]) -> Init:
    """Every row holds `values`."""

    def init(w: Tensor, g: Generator) -> Tensor:
        return w.copy_(w.new_tensor(values).expand_as(w))

    return init


def _fitted(start: Start) -> Init:
    """Every row holds the least-squares fit of a cubic spline on its grid."""

    def init(w: Tensor, g: Generator) -> Tensor:
        x = torch.linspace(-REACH, REACH, 1001, dtype=torch.float64)
        basis = torch.stack(cox_de_boor(x, w.shape[1] - ORDER, ORDER, REACH), 1)
        fit = torch.linalg.lstsq(basis, STARTS[start](x)[:, None]).solution[:, 0]
        return w.copy_(fit.to(w).expand_as(w))

    return init

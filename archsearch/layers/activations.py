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

Shapes: N tokens, F channels, C basis functions, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.block import Init, Role
from archsearch.kernels.spline import ORDER, cox_de_boor, spline, spline_ref

Start = Literal["silu", "gelu"]
STARTS: dict[Start, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}
REACH = 6.0
"""Half width of the grid of `spline`."""
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


class Spline(nn.Module):
    """A cubic B-spline of its own for each channel."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.empty(channels, grid + ORDER))

    def forward(self, x: Tensor) -> Tensor:
        """x_F, any leading axes, computed in float32 or better."""
        return spline(x, self.coefficients, REACH)

    def oracle(self, x: Tensor) -> Tensor:
        """The same, one basis function after the other."""
        return spline_ref(x, self.coefficients, REACH)


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

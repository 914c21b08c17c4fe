"""`kernels.spline.spline` and `kernels.spline_features.features` in Triton, forward and backward.

`spline`: forward, the coefficients of a channel lie in the registers of a warp, one for each lane,
and each point fetches the four of its cell from there; those of more than 26 cells are read from
memory. Backward, a program adds up, cell by cell, what its points give to the four coefficients of
that cell, and hands the three that the next cell shares on to it. A sum over the programs ends
that: no atomics, so equal runs give equal gradients.

`features`: a point is read once and all its functions are written; backward makes their slopes
anew, so nothing is kept but x.

The grid is a number at run time, so that a search that varies it hardly ever compiles anew.

Shapes: N tokens, F channels, I inputs, C functions of one of them, P programs along the tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Size, Tensor
from torch.utils.flop_counter import register_flop_formula

from archsearch.kernels.spline import ORDER

FORWARD = (
    {"N_BLOCK": 64, "F_BLOCK": 64, "num_warps": 8},
    {"N_BLOCK": 32, "F_BLOCK": 64, "num_warps": 4},
)
BACKWARD = (
    {"N_BLOCK": 32, "F_BLOCK": 64, "num_warps": 8},
    {"N_BLOCK": 32, "F_BLOCK": 64, "num_warps": 4},
    {"N_BLOCK": 64, "F_BLOCK": 64, "num_warps": 8},
)
FEATURES = (
    {"N_BLOCK": 8, "I_BLOCK": 128, "num_warps": 4},
    {"N_BLOCK": 4, "I_BLOCK": 256, "num_warps": 4},
    {"N_BLOCK": 16, "I_BLOCK": 128, "num_warps": 4},
)
"""Launch configs; the first is taken."""
LANES = 32
"""Of a warp, each of which holds a coefficient of a channel, or one of the zeros around them."""


def spline(x: Tensor, w_FC: Tensor, reach: float) -> Tensor:
    """As `kernels.spline.spline`."""
    y: Tensor = _spline(x, w_FC, reach)
    return y


def features(x: Tensor, grid: int, order: int, reach: float) -> Tensor:
    """As `kernels.spline_features.features`."""
    f_CI: Tensor = _features(x, grid, order, reach)
    return f_CI


@torch.library.custom_op("archsearch::spline_triton", mutates_args=())
def _spline(x: Tensor, w_FC: Tensor, reach: float) -> Tensor:
    x, w_FC, config = x.contiguous(), w_FC.contiguous(), FORWARD[0]
    y, (channels, C) = _spline_fake(x, w_FC, reach), w_FC.shape
    N = x.numel() // channels
    grid = triton.cdiv(N, config["N_BLOCK"]), triton.cdiv(channels, config["F_BLOCK"])
    with torch.accelerator.device_index(x.device.index):
        _spline_forward[grid](x, w_FC, y, N, channels, C, reach, _lanes(C), **config)
    return y


@torch.library.custom_op("archsearch::spline_triton_backward", mutates_args=())
def _spline_backward(dy: Tensor, x: Tensor, w_FC: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    dy, x, w_FC, config = dy.contiguous(), x.contiguous(), w_FC.contiguous(), BACKWARD[0]
    (dx, dw_FC), (channels, C) = _spline_backward_fake(dy, x, w_FC, reach), w_FC.shape
    N = x.numel() // channels
    grid = triton.cdiv(N, config["N_BLOCK"]), triton.cdiv(channels, config["F_BLOCK"])
    wide = torch.promote_types(x.dtype, torch.float32)
    dw_PCF = x.new_empty(grid[0], C, channels, dtype=wide)
    with torch.accelerator.device_index(x.device.index):
        _spline_gradient[grid](dy, x, w_FC, dx, dw_PCF, N, channels, C, reach, _lanes(C), **config)
    dw_FC.copy_(dw_PCF.sum(0).T)
    return dx, dw_FC


def _lanes(C: int) -> int:
    """Lanes that hold coefficients; 0 if there are too many of them."""
    return LANES if C + 2 * ORDER <= LANES else 0


@_spline.register_fake
def _spline_fake(x: Tensor, w_FC: Tensor, reach: float) -> Tensor:
    return x.new_empty(x.shape)


@_spline_backward.register_fake
def _spline_backward_fake(
    dy: Tensor, x: Tensor, w_FC: Tensor, reach: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), w_FC.new_empty(w_FC.shape)


def _spline_remember(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, w_FC, ctx.reach = inputs
    ctx.save_for_backward(x, w_FC)


def _spline_differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    dx, dw_FC = _spline_backward(dy, *ctx.saved_tensors, ctx.reach)
    return dx, dw_FC, None


_spline.register_autograd(_spline_differentiate, setup_context=_spline_remember)


@torch.library.custom_op("archsearch::spline_features_triton", mutates_args=())
def _features(x: Tensor, grid: int, order: int, reach: float) -> Tensor:
    x, f_CI, config = x.contiguous(), _features_fake(x, grid, order, reach), FEATURES[0]
    programs, *sizes = _sizes(x, grid, order, reach)
    with torch.accelerator.device_index(x.device.index):
        _features_forward[programs](x, f_CI, *sizes, **config)
    return f_CI


@torch.library.custom_op("archsearch::spline_features_triton_backward", mutates_args=())
def _features_backward(df_CI: Tensor, x: Tensor, grid: int, order: int, reach: float) -> Tensor:
    x, df_CI, config = x.contiguous(), df_CI.contiguous(), FEATURES[0]
    dx, (programs, *sizes) = torch.empty_like(x), _sizes(x, grid, order, reach)
    with torch.accelerator.device_index(x.device.index):
        _features_gradient[programs](df_CI, x, dx, *sizes, **config)
    return dx


def _sizes(x: Tensor, grid: int, order: int, reach: float) -> tuple[Any, ...]:
    """Programs, and what both kernels are told of the problem."""
    inputs, config = x.shape[-1], FEATURES[0]
    N = x.numel() // inputs
    programs = triton.cdiv(N, config["N_BLOCK"]), triton.cdiv(inputs, config["I_BLOCK"])
    per_unit = grid / (2 * reach)
    return programs, N, inputs, grid + order, reach, per_unit, order, math.factorial(order)


@_features.register_fake
def _features_fake(x: Tensor, grid: int, order: int, reach: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], 1 + grid + order, x.shape[-1])


@_features_backward.register_fake
def _(df_CI: Tensor, x: Tensor, grid: int, order: int, reach: float) -> Tensor:
    return x.new_empty(x.shape)


def _features_remember(ctx: Any, inputs: tuple[Tensor, int, int, float], output: Tensor) -> None:
    x, *ctx.spline = inputs
    ctx.save_for_backward(x)


def _features_differentiate(ctx: Any, df_CI: Tensor) -> tuple[Tensor, None, None, None]:
    return _features_backward(df_CI, *ctx.saved_tensors, *ctx.spline), None, None, None


_features.register_autograd(_features_differentiate, setup_context=_features_remember)


@register_flop_formula([
    torch.ops.archsearch.spline_triton, torch.ops.archsearch.spline_triton_backward,
    torch.ops.archsearch.spline_features_triton,
    torch.ops.archsearch.spline_features_triton_backward,
])  # fmt: skip
def _flops(x: Size, *rest: object, **named: object) -> int:
    """None, as PyTorch counts for everything elementwise."""
    return 0


@triton.jit
def _cell(x, per_unit, C, REACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The cell of the padded grid that x is in, and the place in it from 0 to 1."""
    t = (x + REACH) * per_unit + 3
    t = tl.maximum(t, 0.0, propagate_nan=tl.PropagateNan.ALL)
    t = tl.minimum(t, (C + 3).to(x.dtype), propagate_nan=tl.PropagateNan.ALL)
    m = tl.minimum(tl.where(t == t, t, 0.0).to(tl.int32), C + 2)
    return m, t - m


@triton.jit
def _four(w_ptr, f, m, channels, C, L: tl.constexpr, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    """The coefficients of a cell; beyond the grid they are 0."""
    mask = (f < channels)[None, :]
    w_ptr += f[None, :] * C - 3
    if L:
        r = tl.arange(0, L)[:, None]
        w = tl.load(w_ptr + r, mask & (r >= 3) & (r < C + 3), 0.0).to(wide)
        w0, w1 = tl.gather(w, m, 0), tl.gather(w, m + 1, 0)
        w2, w3 = tl.gather(w, m + 2, 0), tl.gather(w, m + 3, 0)
    else:
        w_ptr += m
        w0 = tl.load(w_ptr, mask & (m >= 3) & (m < C + 3), 0.0).to(wide)
        w1 = tl.load(w_ptr + 1, mask & (m >= 2) & (m < C + 2), 0.0).to(wide)
        w2 = tl.load(w_ptr + 2, mask & (m >= 1) & (m < C + 1), 0.0).to(wide)
        w3 = tl.load(w_ptr + 3, mask & (m < C), 0.0).to(wide)
    return w0, w1, w2, w3


@triton.jit
def _spline_forward(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, y_ptr, N, channels, C,
    REACH: tl.constexpr, L: tl.constexpr,
    N_BLOCK: tl.constexpr, F_BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    f = tl.program_id(1) * F_BLOCK + tl.arange(0, F_BLOCK)
    mask = (n < N)[:, None] & (f < channels)[None, :]
    at = n[:, None] * channels + f[None, :]
    per_unit = (C - 3).to(wide) / (2 * REACH)
    m, u = _cell(tl.load(x_ptr + at, mask, 0.0).to(wide), per_unit, C, REACH)
    w0, w1, w2, w3 = _four(w_ptr, f, m, channels, C, L, wide)
    v = 1 - u
    y = w0 * v * v * v + w1 * (4 - 3 * u * u * (1 + v)) + w2 * (4 - 3 * v * v * (1 + u))
    y += w3 * u * u * u
    tl.store(y_ptr + at, (y * (1 / 6)).to(y_ptr.dtype.element_ty), mask)


@triton.jit
def _spline_gradient(  # type: ignore[no-untyped-def]
    dy_ptr, x_ptr, w_ptr, dx_ptr, dw_ptr, N, channels, C,
    REACH: tl.constexpr, L: tl.constexpr,
    N_BLOCK: tl.constexpr, F_BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    f = tl.program_id(1) * F_BLOCK + tl.arange(0, F_BLOCK)
    mask = (n < N)[:, None] & (f < channels)[None, :]
    at = n[:, None] * channels + f[None, :]
    per_unit = (C - 3).to(wide) / (2 * REACH)
    m, u = _cell(tl.load(x_ptr + at, mask, 0.0).to(wide), per_unit, C, REACH)
    dy = tl.load(dy_ptr + at, mask, 0.0).to(wide)
    w0, w1, w2, w3 = _four(w_ptr, f, m, channels, C, L, wide)
    v = 1 - u
    slope = (w1 - w0) * v * v + (w2 - w1) * (1 + 2 * u * v) + (w3 - w2) * u * u
    dx = slope * dy * (per_unit / 2)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask)

    g = dy * (1 / 6)
    g0, g3 = g * v * v * v, g * u * u * u
    g1, g2 = g * (4 - 3 * u * u * (1 + v)), g * (4 - 3 * v * v * (1 + u))
    first, last = tl.min(m), tl.max(m)
    dw_ptr += tl.program_id(0).to(tl.int64) * C * channels + f
    dw0 = tl.zeros((F_BLOCK,), wide)
    dw1, dw2, dw3 = dw0, dw0, dw0
    for cell in range(C + 3):
        if (cell >= first) & (cell <= last):
            inside = (m == cell).to(wide)
            dw0 += tl.sum(inside * g0, 0)
            dw1 += tl.sum(inside * g1, 0)
            dw2 += tl.sum(inside * g2, 0)
            dw3 += tl.sum(inside * g3, 0)
        tl.store(dw_ptr + (cell - 3) * channels, dw0, (f < channels) & (cell >= 3))
        dw0, dw1, dw2, dw3 = dw1, dw2, dw3, tl.zeros_like(dw3)


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1 + small)


@triton.jit
def _power(p, EXPONENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The power of p to a whole exponent from 1 on."""
    power = p
    for _ in tl.static_range(EXPONENT - 1):
        power *= p
    return power


@triton.jit
def _cardinal(s, ORDER: tl.constexpr, FACTORIAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """B at a distance of s cells from its centre."""
    p = (ORDER + 1) / 2 - tl.abs(s)
    value, binomial = tl.zeros_like(s), 1.0 / FACTORIAL
    for j in tl.static_range((ORDER + 2) // 2):
        value += binomial * _power(tl.maximum(p - j, 0.0, tl.PropagateNan.ALL), ORDER)
        binomial *= -(ORDER + 1.0 - j) / (j + 1.0)
    return value


@triton.jit
def _slope(s, ORDER: tl.constexpr, FACTORIAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """The derivative of B there; at a knot of order 1 the mean of both."""
    p = (ORDER + 1) / 2 - tl.abs(s)
    if ORDER == 1:
        value = tl.where(p > 0, 1.0, tl.where(p == 0, 0.5, 0.0)).to(s.dtype)
    else:
        value, binomial = tl.zeros_like(s), 1.0 * ORDER / FACTORIAL
        for j in tl.static_range((ORDER + 2) // 2):
            value += binomial * _power(tl.maximum(p - j, 0.0, tl.PropagateNan.ALL), ORDER - 1)
            binomial *= -(ORDER + 1.0 - j) / (j + 1.0)
    return tl.where(s > 0, -value, tl.where(s < 0, value, s))


@triton.jit
def _features_forward(  # type: ignore[no-untyped-def]
    x_ptr, f_ptr, N, inputs, splines, reach, per_unit,
    ORDER: tl.constexpr, FACTORIAL: tl.constexpr, N_BLOCK: tl.constexpr, I_BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    i = tl.program_id(1) * I_BLOCK + tl.arange(0, I_BLOCK)
    mask = (n < N)[:, None] & (i < inputs)[None, :]
    x = tl.load(x_ptr + n[:, None] * inputs + i[None, :], mask, 0.0).to(wide)
    f_ptr += n[:, None] * ((splines + 1) * inputs) + i[None, :]
    tl.store(f_ptr, (x * _sigmoid(x)).to(f_ptr.dtype.element_ty), mask)
    s = (x + reach) * per_unit + (ORDER - 1) / 2
    for _ in range(splines):
        f_ptr += inputs
        tl.store(f_ptr, _cardinal(s, ORDER, FACTORIAL).to(f_ptr.dtype.element_ty), mask)
        s -= 1


@triton.jit
def _features_gradient(  # type: ignore[no-untyped-def]
    df_ptr, x_ptr, dx_ptr, N, inputs, splines, reach, per_unit,
    ORDER: tl.constexpr, FACTORIAL: tl.constexpr, N_BLOCK: tl.constexpr, I_BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    i = tl.program_id(1) * I_BLOCK + tl.arange(0, I_BLOCK)
    mask = (n < N)[:, None] & (i < inputs)[None, :]
    at = n[:, None] * inputs + i[None, :]
    x = tl.load(x_ptr + at, mask, 0.0).to(wide)
    df_ptr += n[:, None] * ((splines + 1) * inputs) + i[None, :]
    share = _sigmoid(x)
    silu = tl.load(df_ptr, mask, 0.0).to(wide) * share * (1 + x * (1 - share))
    s = (x + reach) * per_unit + (ORDER - 1) / 2
    total = tl.zeros_like(x)
    for _ in range(splines):
        df_ptr += inputs
        total += tl.load(df_ptr, mask, 0.0).to(wide) * _slope(s, ORDER, FACTORIAL)
        s -= 1
    tl.store(dx_ptr + at, (silu + total * per_unit).to(dx_ptr.dtype.element_ty), mask)

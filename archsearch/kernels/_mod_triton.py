"""`kernels.mod` in Triton, forward and backward: each a single pass over the rows that it needs.

No row is put back twice, so nothing is added up in memory. The gradient of the predictor is summed
by a block of tokens, then over the blocks.

Shapes: R rows, of which N are taken; D width, P programs along the rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Size, Tensor
from torch.utils.flop_counter import register_flop_formula

TILES = (
    {"N_BLOCK": 16, "D_BLOCK": 128, "num_warps": 4},
    {"N_BLOCK": 8, "D_BLOCK": 128, "num_warps": 4},
)
"""Ways to launch; the first is taken."""


def route(
    x: Tensor, router_1D: Tensor, predictor_1D: Tensor, bias_1: Tensor
) -> tuple[Tensor, Tensor]:
    """As `kernels.mod.route`."""
    score, logit = _route(x, router_1D.detach(), predictor_1D)
    return score, logit + bias_1.to(logit.dtype)


def take(x_RD: Tensor, row_N: Tensor) -> Tensor:
    """As `kernels.mod.take`."""
    y_ND: Tensor = _take(x_RD, row_N)
    return y_ND


def put(y_ND: Tensor, x_ND: Tensor, gate_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """As `kernels.mod.put`, with the gate in its own precision."""
    y_RD: Tensor = _put(y_ND, x_ND, gate_N, row_N, rows)
    return y_RD


def _grid(rows: int, width: int) -> tuple[int, int]:
    return triton.cdiv(rows, TILES[0]["N_BLOCK"]), triton.cdiv(width, TILES[0]["D_BLOCK"])


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@torch.library.custom_op("archsearch::mod_route", mutates_args=())
def _route(x: Tensor, router_1D: Tensor, predictor_1D: Tensor) -> tuple[Tensor, Tensor]:
    x_RD = x.reshape(-1, x.shape[-1]).contiguous()
    score, logit = (x.new_empty(x.shape[:-1], dtype=_exact(x)) for _ in range(2))
    weights = router_1D.contiguous(), predictor_1D.contiguous()
    with torch.accelerator.device_index(x.device.index):
        _scores_forward[_grid(*x_RD.shape)[:1]](
            x_RD, *weights, score, logit, *x_RD.shape, **TILES[0]
        )
    return score, logit


@_route.register_fake
def _(x: Tensor, router_1D: Tensor, predictor_1D: Tensor) -> tuple[Tensor, Tensor]:
    score, logit = (x.new_empty(x.shape[:-1], dtype=_exact(x)) for _ in range(2))
    return score, logit


@torch.library.custom_op("archsearch::mod_route_backward", mutates_args=())
def _route_backward(dlogit: Tensor, x: Tensor) -> Tensor:
    x_RD = x.reshape(-1, x.shape[-1]).contiguous()
    grid = _grid(*x_RD.shape)
    d_PD = x.new_empty(grid[0], x_RD.shape[1], dtype=_exact(x))
    with torch.accelerator.device_index(x.device.index):
        _scores_gradient[grid](dlogit.contiguous(), x_RD, d_PD, *x_RD.shape, **TILES[0])
    return d_PD.sum(0, keepdim=True)


@_route_backward.register_fake
def _(dlogit: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(1, x.shape[-1], dtype=_exact(x))


def _keep_x(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.of_weight = inputs[2].dtype


def _route_gradient(ctx: Any, dscore: Tensor, dlogit: Tensor) -> tuple[None, None, Tensor]:
    return None, None, _route_backward(dlogit, *ctx.saved_tensors).to(ctx.of_weight)


_route.register_autograd(_route_gradient, setup_context=_keep_x)


@torch.library.custom_op("archsearch::mod_take", mutates_args=())
def _take(x_RD: Tensor, row_N: Tensor) -> Tensor:
    x_RD, y_ND = x_RD.contiguous(), x_RD.new_empty(len(row_N), x_RD.shape[1])
    with torch.accelerator.device_index(x_RD.device.index):
        _rows_out[_grid(*y_ND.shape)](x_RD, row_N, y_ND, *y_ND.shape, **TILES[0])
    return y_ND


@_take.register_fake
def _(x_RD: Tensor, row_N: Tensor) -> Tensor:
    return x_RD.new_empty(len(row_N), x_RD.shape[1])


@torch.library.custom_op("archsearch::mod_take_backward", mutates_args=())
def _take_backward(dy_ND: Tensor, row_N: Tensor, rows: int) -> Tensor:
    dx_RD = dy_ND.new_zeros(rows, dy_ND.shape[1])
    with torch.accelerator.device_index(dy_ND.device.index):
        _rows_in[_grid(*dy_ND.shape)](dy_ND.contiguous(), row_N, dx_RD, *dy_ND.shape, **TILES[0])
    return dx_RD


@_take_backward.register_fake
def _(dy_ND: Tensor, row_N: Tensor, rows: int) -> Tensor:
    return dy_ND.new_empty(rows, dy_ND.shape[1])


def _keep_rows(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.rows = len(inputs[0])


def _take_gradient(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None]:
    return _take_backward(dy_ND, *ctx.saved_tensors, ctx.rows), None


_take.register_autograd(_take_gradient, setup_context=_keep_rows)


@torch.library.custom_op("archsearch::mod_put", mutates_args=())
def _put(y_ND: Tensor, x_ND: Tensor, gate_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    out_RD = x_ND.new_zeros(rows, x_ND.shape[1])
    given = y_ND.contiguous(), x_ND.contiguous(), gate_N.contiguous(), row_N
    with torch.accelerator.device_index(x_ND.device.index):
        _put_forward[_grid(*x_ND.shape)](*given, out_RD, *x_ND.shape, **TILES[0])
    return out_RD


@_put.register_fake
def _(y_ND: Tensor, x_ND: Tensor, gate_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    return x_ND.new_empty(rows, x_ND.shape[1])


@torch.library.custom_op("archsearch::mod_put_backward", mutates_args=())
def _put_backward(
    d_RD: Tensor, y_ND: Tensor, x_ND: Tensor, gate_N: Tensor, row_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    given = d_RD.contiguous(), y_ND.contiguous(), x_ND.contiguous(), gate_N.contiguous(), row_N
    grads = tuple(torch.empty_like(t) for t in given[1:4])
    with torch.accelerator.device_index(x_ND.device.index):
        _put_back[_grid(*x_ND.shape)[:1]](*given, *grads, *x_ND.shape, **TILES[0])
    dy_ND, dx_ND, dgate_N = grads
    return dy_ND, dx_ND, dgate_N


@_put_backward.register_fake
def _(
    d_RD: Tensor, y_ND: Tensor, x_ND: Tensor, gate_N: Tensor, row_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dy_ND, dx_ND, dgate_N = (t.new_empty(t.shape) for t in (y_ND, x_ND, gate_N))
    return dy_ND, dx_ND, dgate_N


def _keep_all(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _put_gradient(ctx: Any, d_RD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    return *_put_backward(d_RD, *ctx.saved_tensors), None, None


_put.register_autograd(_put_gradient, setup_context=_keep_all)


@register_flop_formula([torch.ops.archsearch.mod_route])
def _flops(x: Size, *rest: object, **named: object) -> int:
    """Two inner products for each token."""
    return 4 * x.numel()


@register_flop_formula([torch.ops.archsearch.mod_route_backward])
def _backward_flops(dlogit: Size, x: Size, **named: object) -> int:
    """One product, with the weight of the predictor."""
    return 2 * x.numel()


@register_flop_formula([
    torch.ops.archsearch.mod_take, torch.ops.archsearch.mod_take_backward,
    torch.ops.archsearch.mod_put, torch.ops.archsearch.mod_put_backward,
])  # fmt: skip
def _no_flops(*given: object, **named: object) -> int:
    """None, as PyTorch counts for everything elementwise."""
    return 0


@triton.jit
def _scores_forward(  # type: ignore[no-untyped-def]
    x_ptr, router_ptr, predictor_ptr, score_ptr, logit_ptr, N, D,
    N_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = score_ptr.dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    score = tl.zeros((N_BLOCK, D_BLOCK), wide)
    logit = tl.zeros((N_BLOCK, D_BLOCK), wide)
    for start in range(0, D, D_BLOCK):
        d = start + tl.arange(0, D_BLOCK)
        here = (n < N)[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + n[:, None] * D + d[None, :], here, 0.0).to(wide)
        score += x * tl.load(router_ptr + d, d < D, 0.0).to(wide)[None, :]
        logit += x * tl.load(predictor_ptr + d, d < D, 0.0).to(wide)[None, :]
    tl.store(score_ptr + n, tl.sum(score, 1), n < N)
    tl.store(logit_ptr + n, tl.sum(logit, 1), n < N)


@triton.jit
def _scores_gradient(  # type: ignore[no-untyped-def]
    dlogit_ptr, x_ptr, d_ptr, N, D, N_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr
):
    wide: tl.constexpr = d_ptr.dtype.element_ty
    p = tl.program_id(0).to(tl.int64)
    n, d = p * N_BLOCK + tl.arange(0, N_BLOCK), tl.program_id(1) * D_BLOCK + tl.arange(0, D_BLOCK)
    here = (n < N)[:, None] & (d < D)[None, :]
    x = tl.load(x_ptr + n[:, None] * D + d[None, :], here, 0.0).to(wide)
    g = tl.load(dlogit_ptr + n, n < N, 0.0).to(wide)
    tl.store(d_ptr + p * D + d, tl.sum(x * g[:, None], 0), d < D)


@triton.jit
def _rows_out(  # type: ignore[no-untyped-def]
    x_ptr, row_ptr, y_ptr, N, D, N_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    d = tl.program_id(1) * D_BLOCK + tl.arange(0, D_BLOCK)
    here = (n < N)[:, None] & (d < D)[None, :]
    row = tl.load(row_ptr + n, n < N, 0)
    x = tl.load(x_ptr + row[:, None] * D + d[None, :], here)
    tl.store(y_ptr + n[:, None] * D + d[None, :], x, here)


@triton.jit
def _rows_in(  # type: ignore[no-untyped-def]
    y_ptr, row_ptr, x_ptr, N, D, N_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    d = tl.program_id(1) * D_BLOCK + tl.arange(0, D_BLOCK)
    here = (n < N)[:, None] & (d < D)[None, :]
    row = tl.load(row_ptr + n, n < N, 0)
    y = tl.load(y_ptr + n[:, None] * D + d[None, :], here)
    tl.store(x_ptr + row[:, None] * D + d[None, :], y, here)


@triton.jit
def _put_forward(  # type: ignore[no-untyped-def]
    y_ptr, x_ptr, gate_ptr, row_ptr, out_ptr, N, D, N_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr
):
    wide: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    d = tl.program_id(1) * D_BLOCK + tl.arange(0, D_BLOCK)
    here = (n < N)[:, None] & (d < D)[None, :]
    at = n[:, None] * D + d[None, :]
    change = tl.load(y_ptr + at, here, 0.0).to(wide) - tl.load(x_ptr + at, here, 0.0).to(wide)
    gate = tl.load(gate_ptr + n, n < N, 0.0).to(wide)
    row = tl.load(row_ptr + n, n < N, 0)
    out = (change * gate[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * D + d[None, :], out, here)


@triton.jit
def _put_back(  # type: ignore[no-untyped-def]
    d_ptr, y_ptr, x_ptr, gate_ptr, row_ptr, dy_ptr, dx_ptr, dgate_ptr, N, D,
    N_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    gate = tl.load(gate_ptr + n, n < N, 0.0).to(wide)
    row = tl.load(row_ptr + n, n < N, 0)
    dgate = tl.zeros((N_BLOCK, D_BLOCK), wide)
    for start in range(0, D, D_BLOCK):
        d = start + tl.arange(0, D_BLOCK)
        here = (n < N)[:, None] & (d < D)[None, :]
        at = n[:, None] * D + d[None, :]
        g = tl.load(d_ptr + row[:, None] * D + d[None, :], here, 0.0).to(wide)
        change = tl.load(y_ptr + at, here, 0.0).to(wide) - tl.load(x_ptr + at, here, 0.0).to(wide)
        dgate += g * change
        dy = g * gate[:, None]
        tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), here)
        tl.store(dx_ptr + at, (-dy).to(dx_ptr.dtype.element_ty), here)
    tl.store(dgate_ptr + n, tl.sum(dgate, 1).to(dgate_ptr.dtype.element_ty), n < N)

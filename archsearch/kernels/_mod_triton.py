"""`mod.put` in Triton, forward and backward: each a single pass over the rows that it needs.

No row is put back twice, so nothing is added up in memory.

Shapes: R rows, of which N are taken; D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

TILES = (
    {"N_BLOCK": 16, "D_BLOCK": 128, "num_warps": 4},
    {"N_BLOCK": 8, "D_BLOCK": 128, "num_warps": 4},
)
"""Launch configs; the first is taken."""


def put(y_ND: Tensor, x_ND: Tensor, gate_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """As `kernels.mod.put`, with the gate in its own precision."""
    y_RD: Tensor = _put(y_ND, x_ND, gate_N, row_N, rows)
    return y_RD


def _grid(rows: int, width: int) -> tuple[int, int]:
    return triton.cdiv(rows, TILES[0]["N_BLOCK"]), triton.cdiv(width, TILES[0]["D_BLOCK"])


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


@register_flop_formula([torch.ops.archsearch.mod_put, torch.ops.archsearch.mod_put_backward])
def _flops(*given: object, **named: object) -> int:
    """None, as PyTorch counts for everything elementwise."""
    return 0


@triton.jit
def _put_forward(  # type: ignore[no-untyped-def]
    y_ptr, x_ptr, gate_ptr, row_ptr, out_ptr, N, D, N_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr
):
    wide: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    n = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    d = tl.program_id(1) * D_BLOCK + tl.arange(0, D_BLOCK)
    mask = (n < N)[:, None] & (d < D)[None, :]
    at = n[:, None] * D + d[None, :]
    change = tl.load(y_ptr + at, mask, 0.0).to(wide) - tl.load(x_ptr + at, mask, 0.0).to(wide)
    gate = tl.load(gate_ptr + n, n < N, 0.0).to(wide)
    row = tl.load(row_ptr + n, n < N, 0)
    out = (change * gate[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * D + d[None, :], out, mask)


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
        mask = (n < N)[:, None] & (d < D)[None, :]
        at = n[:, None] * D + d[None, :]
        g = tl.load(d_ptr + row[:, None] * D + d[None, :], mask, 0.0).to(wide)
        change = tl.load(y_ptr + at, mask, 0.0).to(wide) - tl.load(x_ptr + at, mask, 0.0).to(wide)
        dgate += g * change
        dy = g * gate[:, None]
        tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask)
        tl.store(dx_ptr + at, (-dy).to(dx_ptr.dtype.element_ty), mask)
    tl.store(dgate_ptr + n, tl.sum(dgate, 1).to(dgate_ptr.dtype.element_ty), n < N)

"""`kernels.peer.experts` in Triton, forward and backward.

Experts are read where they lie; nothing is copied. The gradient of a table is a sum over the picks
of each expert, which are sorted by expert: no atomics, so equal runs give equal gradients.

Shapes: N tokens, E picks, D width, R experts, P = N * E picks of all tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Size, Tensor
from torch.utils.flop_counter import register_flop_formula

from archsearch.kernels.table_rows import Picks

EXPERTS = (
    {"E_BLOCK": 4, "num_warps": 4},
    {"E_BLOCK": 2, "num_warps": 4},
    {"E_BLOCK": 8, "num_warps": 8},
)
TABLES = (
    {"P_BLOCK": 4, "num_warps": 4},
    {"P_BLOCK": 2, "num_warps": 4},
    {"P_BLOCK": 8, "num_warps": 8},
)
"""Launch configs; the first is taken."""
MAX_BYTES = 256
"""Of the rows of a table that a thread holds at once, so that no register is spilled."""
ACTS = {"gelu": 0, "silu": 1, "relu": 2}


def experts(
    x_ND: Tensor, down_RD: Tensor, up_RD: Tensor, gate_NE: Tensor, picks: Picks, act: str
) -> Tensor:
    """As `kernels.peer.experts`."""
    y_ND, _ = _experts(x_ND, down_RD, up_RD, gate_NE, picks.row_NE, act, picks.sparse)
    return y_ND


def _config(config: dict[str, int], rows: str, x_ND: Tensor) -> dict[str, int]:
    """The launch config with the width, and with fewer rows at once where they are wide."""
    width = triton.next_power_of_2(x_ND.shape[1])
    most = MAX_BYTES * 32 * config["num_warps"] // (width * x_ND.element_size())
    return config | {"D_BLOCK": width, rows: max(min(config[rows], most), 1)}


@torch.library.custom_op("archsearch::peer_triton", mutates_args=())
def _experts(
    x_ND: Tensor,
    down_RD: Tensor,
    up_RD: Tensor,
    gate_NE: Tensor,
    row_NE: Tensor,
    act: str,
    sparse: bool,
) -> tuple[Tensor, Tensor]:
    """y_ND, and before the nonlinearity the hidden units."""
    given = [t.contiguous() for t in (x_ND, down_RD, up_RD, gate_NE, row_NE)]
    y_ND, hidden_NE = _experts_fake(*given, act, sparse)
    (N, D), E = y_ND.shape, gate_NE.shape[1]
    with torch.accelerator.device_index(x_ND.device.index):
        _experts_forward[N,](
            *given, y_ND, hidden_NE, D, E, ACT=ACTS[act], **_config(EXPERTS[0], "E_BLOCK", x_ND)
        )
    return y_ND, hidden_NE


@torch.library.custom_op("archsearch::peer_triton_backward", mutates_args=())
def _experts_backward(
    dy_ND: Tensor,
    x_ND: Tensor,
    down_RD: Tensor,
    up_RD: Tensor,
    gate_NE: Tensor,
    row_NE: Tensor,
    hidden_NE: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of gates and of hidden units, and the weight of each pick's up row."""
    given = [t.contiguous() for t in (dy_ND, x_ND, down_RD, up_RD, gate_NE, row_NE, hidden_NE)]
    found = _experts_backward_fake(*given, act)
    (N, D), E = x_ND.shape, gate_NE.shape[1]
    with torch.accelerator.device_index(x_ND.device.index):
        _experts_gradient[N,](
            *given, *found, D, E, ACT=ACTS[act], **_config(EXPERTS[0], "E_BLOCK", x_ND)
        )
    return found


@torch.library.custom_op("archsearch::peer_triton_tables", mutates_args=())
def _tables(
    dhidden_NE: Tensor,
    weight_NE: Tensor,
    x_ND: Tensor,
    dy_ND: Tensor,
    pick_P: Tensor,
    begin_R: Tensor,
    like_RD: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows whose picks begin at `begin`, which has one more, in both tables."""
    given = [t.contiguous() for t in (dhidden_NE, weight_NE, x_ND, dy_ND, pick_P, begin_R)]
    found = _tables_fake(*given, like_RD)
    D, E = x_ND.shape[1], weight_NE.shape[1]
    with torch.accelerator.device_index(x_ND.device.index):
        _tables_gradient[len(found[0]),](
            *given, *found, D, E, **_config(TABLES[0], "P_BLOCK", x_ND)
        )
    return found


@_experts.register_fake
def _experts_fake(
    x_ND: Tensor,
    down_RD: Tensor,
    up_RD: Tensor,
    gate_NE: Tensor,
    row_NE: Tensor,
    act: str,
    sparse: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(gate_NE.shape, dtype=wide)


@_experts_backward.register_fake
def _experts_backward_fake(
    dy_ND: Tensor,
    x_ND: Tensor,
    down_RD: Tensor,
    up_RD: Tensor,
    gate_NE: Tensor,
    row_NE: Tensor,
    hidden_NE: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    picked = gate_NE.shape
    dx_ND, dgate_NE = x_ND.new_empty(x_ND.shape), gate_NE.new_empty(picked)
    return dx_ND, dgate_NE, hidden_NE.new_empty(picked), hidden_NE.new_empty(picked)


@_tables.register_fake
def _tables_fake(
    dhidden_NE: Tensor,
    weight_NE: Tensor,
    x_ND: Tensor,
    dy_ND: Tensor,
    pick_P: Tensor,
    begin_R: Tensor,
    like_RD: Tensor,
) -> tuple[Tensor, Tensor]:
    shape = len(begin_R) - 1, x_ND.shape[1]
    return like_RD.new_empty(shape), like_RD.new_empty(shape)


def _experts_remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *given, ctx.act, ctx.sparse = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros for the hidden units too
    ctx.save_for_backward(*given, output[1])


def _experts_differentiate(ctx: Any, dy_ND: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if dy_ND is None:
        return (None,) * 7
    x_ND, down_RD, up_RD, gate_NE, row_NE, hidden_NE = ctx.saved_tensors
    dx_ND, dgate_NE, dhidden_NE, weight_NE = _experts_backward(
        dy_ND, x_ND, down_RD, up_RD, gate_NE, row_NE, hidden_NE, ctx.act
    )
    tables: tuple[Tensor | None, Tensor | None] = None, None
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        row_P, pick_P = row_NE.flatten().int().sort(stable=True)
        row_R: Tensor | None = None
        if ctx.sparse:
            row_R, count_R = row_P.unique_consecutive(return_counts=True)
            begin_R = torch.nn.functional.pad(count_R.cumsum(0), (1, 0))
        else:
            every = torch.arange(len(down_RD) + 1, dtype=row_P.dtype, device=row_P.device)
            begin_R = torch.searchsorted(row_P, every)
        found = _tables(dhidden_NE, weight_NE, x_ND, dy_ND, pick_P, begin_R, down_RD)
        one, two = (_placed(rows_RD, row_R, down_RD.shape) for rows_RD in found)
        tables = one, two
    return dx_ND, *tables, dgate_NE, None, None, None


def _placed(rows_RD: Tensor, row_R: Tensor | None, shape: Size) -> Tensor:
    """A gradient that holds the picked rows alone; dense without these."""
    if row_R is None:
        return rows_RD
    return torch.sparse_coo_tensor(
        row_R[None].long(), rows_RD, shape, is_coalesced=True, check_invariants=False
    )


_experts.register_autograd(_experts_differentiate, setup_context=_experts_remember)


@register_flop_formula(torch.ops.archsearch.peer_triton)
def _experts_flops(
    x_ND: Size, down_RD: Size, up_RD: Size, gate_NE: Size, *rest: object, **named: object
) -> int:
    """Both tables multiply and add once for every number of every picked row."""
    return 4 * gate_NE[0] * gate_NE[1] * x_ND[1]


@register_flop_formula(torch.ops.archsearch.peer_triton_backward)
def _experts_backward_flops(
    dy_ND: Size, x_ND: Size, down_RD: Size, up_RD: Size, gate_NE: Size, *rest: object,
    **named: object,
) -> int:  # fmt: skip
    return 4 * gate_NE[0] * gate_NE[1] * x_ND[1]


@register_flop_formula(torch.ops.archsearch.peer_triton_tables)
def _tables_flops(
    dhidden_NE: Size, weight_NE: Size, x_ND: Size, *rest: object, **named: object
) -> int:
    return 4 * weight_NE[0] * weight_NE[1] * x_ND[1]


@triton.jit
def _act(a, ACT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The nonlinearity and its slope."""
    if ACT == 0:
        share = 0.5 * (1 + tl.erf(a * 0.7071067811865476))
        value, slope = a * share, share + a * tl.exp(-0.5 * a * a) * 0.3989422804014327
    elif ACT == 1:
        share = 1 / (1 + tl.exp(-a))
        value, slope = a * share, share * (1 + a * (1 - share))
    else:
        value, slope = tl.where(a > 0, a, 0.0), tl.where(a > 0, 1.0, 0.0)
    return value, slope.to(value.dtype)


@triton.jit
def _experts_forward(  # type: ignore[no-untyped-def]
    x_ptr, down_ptr, up_ptr, gate_ptr, row_ptr, y_ptr, hidden_ptr, D, E,
    D_BLOCK: tl.constexpr, ACT: tl.constexpr, E_BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = hidden_ptr.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D_BLOCK)
    x = tl.load(x_ptr + n * D + d, d < D, 0.0).to(wide)
    y = tl.zeros((D_BLOCK,), wide)
    for begin in range(0, E, E_BLOCK):
        e = begin + tl.arange(0, E_BLOCK)
        row = tl.load(row_ptr + n * E + e, e < E, 0)
        at = row[:, None] * D + d[None, :]
        mask = (e < E)[:, None] & (d < D)[None, :]
        down = tl.load(down_ptr + at, mask, 0.0).to(wide)
        up = tl.load(up_ptr + at, mask, 0.0).to(wide)
        a = tl.sum(down * x[None, :], 1)
        gate = tl.load(gate_ptr + n * E + e, e < E, 0.0).to(wide)
        value, _ = _act(a, ACT)
        y += tl.sum(up * (gate * value)[:, None], 0)
        tl.store(hidden_ptr + n * E + e, a, e < E)
    tl.store(y_ptr + n * D + d, y.to(y_ptr.dtype.element_ty), d < D)


@triton.jit
def _experts_gradient(  # type: ignore[no-untyped-def]
    dy_ptr, x_ptr, down_ptr, up_ptr, gate_ptr, row_ptr, hidden_ptr,
    dx_ptr, dgate_ptr, dhidden_ptr, weight_ptr, D, E,
    D_BLOCK: tl.constexpr, ACT: tl.constexpr, E_BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = hidden_ptr.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D_BLOCK)
    dy = tl.load(dy_ptr + n * D + d, d < D, 0.0).to(wide)
    dx = tl.zeros((D_BLOCK,), wide)
    for begin in range(0, E, E_BLOCK):
        e = begin + tl.arange(0, E_BLOCK)
        row = tl.load(row_ptr + n * E + e, e < E, 0)
        at = row[:, None] * D + d[None, :]
        mask = (e < E)[:, None] & (d < D)[None, :]
        up = tl.load(up_ptr + at, mask, 0.0).to(wide)
        down = tl.load(down_ptr + at, mask, 0.0).to(wide)
        gate = tl.load(gate_ptr + n * E + e, e < E, 0.0).to(wide)
        value, slope = _act(tl.load(hidden_ptr + n * E + e, e < E, 0.0), ACT)
        dweight = tl.sum(up * dy[None, :], 1)
        dhidden = dweight * gate * slope
        dx += tl.sum(down * dhidden[:, None], 0)
        dgate = (dweight * value).to(dgate_ptr.dtype.element_ty)
        tl.store(dgate_ptr + n * E + e, dgate, e < E)
        tl.store(dhidden_ptr + n * E + e, dhidden, e < E)
        tl.store(weight_ptr + n * E + e, gate * value, e < E)
    tl.store(dx_ptr + n * D + d, dx.to(dx_ptr.dtype.element_ty), d < D)


@triton.jit
def _tables_gradient(  # type: ignore[no-untyped-def]
    dhidden_ptr, weight_ptr, x_ptr, dy_ptr, pick_ptr, begin_ptr, ddown_ptr, dup_ptr, D, E,
    D_BLOCK: tl.constexpr, P_BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = weight_ptr.dtype.element_ty
    r = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D_BLOCK)
    ddown = tl.zeros((D_BLOCK,), wide)
    dup = tl.zeros((D_BLOCK,), wide)
    first = tl.load(begin_ptr + r).to(tl.int32)
    last = tl.load(begin_ptr + r + 1).to(tl.int32)
    for begin in range(first, last, P_BLOCK):
        p = begin + tl.arange(0, P_BLOCK)
        pick = tl.load(pick_ptr + p, p < last, 0)
        at = (pick // E)[:, None] * D + d[None, :]
        mask = (p < last)[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + at, mask, 0.0).to(wide)
        dy = tl.load(dy_ptr + at, mask, 0.0).to(wide)
        ddown += tl.sum(x * tl.load(dhidden_ptr + pick, p < last, 0.0)[:, None], 0)
        dup += tl.sum(dy * tl.load(weight_ptr + pick, p < last, 0.0)[:, None], 0)
    at = r * D + d
    tl.store(ddown_ptr + at, ddown.to(ddown_ptr.dtype.element_ty), d < D)
    tl.store(dup_ptr + at, dup.to(dup_ptr.dtype.element_ty), d < D)

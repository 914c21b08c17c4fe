"""`kernels.product_keys.route` and `kernels.peer.experts` in Triton, forward and backward.

Routing takes the best keys of either side one by one, and then pairs: of each key of the first side
only the best partner not yet taken can be next, so `count` candidates are looked at, never all
pairs. Experts are read where they lie; nothing is copied. The gradient of a table is a sum over the
picks of each expert, which are sorted by expert: no atomics, so equal runs give equal gradients.

Shapes: S the two sides, N tokens, M rows of scores, K keys of a side, E picks, D width, R experts,
P = N * E picks of all tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Size, Tensor
from torch.utils.flop_counter import register_flop_formula

from archsearch.kernels.table_rows import Picks

ROUTE = (
    {"ROWS": 4, "num_warps": 4},
    {"ROWS": 1, "num_warps": 4},
    {"ROWS": 2, "num_warps": 4},
)
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
"""Ways to launch; the first is taken."""
ACTS = {"gelu": 0, "silu": 1, "relu": 2}


def route(score_SNK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `kernels.product_keys.route`."""
    shape = (*score_SNK.shape[1:-1], count)
    if score_SNK.dim() != 4:
        score_SNK = score_SNK.reshape(2, 1, -1, score_SNK.shape[-1])
    gate_ME, row_ME = _route(score_SNK, count)
    return gate_ME.view(shape), row_ME.view(shape)


def experts(
    x_ND: Tensor, down_RD: Tensor, up_RD: Tensor, gate_NE: Tensor, picks: Picks, act: str
) -> Tensor:
    """As `kernels.peer.experts`."""
    y_ND, _ = _experts(x_ND, down_RD, up_RD, gate_NE, picks.row_NE, act, picks.sparse)
    return y_ND


@torch.library.custom_op("archsearch::product_keys_triton", mutates_args=())
def _route(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """From scores (2, A, B, K), whatever their strides, gates and pairs of M = A * B rows."""
    score = score if score.stride(-1) == 1 else score.contiguous()
    _, _, inner, K = score.shape
    gate_ME, row_ME = _route_fake(score, count)
    M = len(gate_ME)
    how, blocks = ROUTE[0], _blocks(K, count)
    with torch.accelerator.device_index(score.device.index):
        _route_forward[triton.cdiv(M, how["ROWS"]),](
            score, gate_ME, row_ME, M, inner, *score.stride()[:3], K, count, **blocks, **how
        )
    return gate_ME, row_ME


@torch.library.custom_op("archsearch::product_keys_triton_backward", mutates_args=())
def _route_backward(dgate_ME: Tensor, gate_ME: Tensor, row_ME: Tensor, K: int) -> Tensor:
    """The gradient of scores (2, M, K)."""
    (M, count), how = gate_ME.shape, ROUTE[0]
    dscore_SMK = _route_backward_fake(dgate_ME, gate_ME, row_ME, K)
    with torch.accelerator.device_index(gate_ME.device.index):
        _route_gradient[triton.cdiv(M, how["ROWS"]),](
            dgate_ME.contiguous(), gate_ME, row_ME, dscore_SMK, M, K, count,
            **_blocks(K, count), **how,
        )  # fmt: skip
    return dscore_SMK


@_route.register_fake
def _route_fake(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    M, wide = score.shape[1] * score.shape[2], torch.promote_types(score.dtype, torch.float32)
    gate_ME = score.new_empty(M, count, dtype=wide)
    return gate_ME, score.new_empty(M, count, dtype=torch.int64)


@_route_backward.register_fake
def _route_backward_fake(dgate_ME: Tensor, gate_ME: Tensor, row_ME: Tensor, K: int) -> Tensor:
    return gate_ME.new_empty(2, len(gate_ME), K)


def _route_remember(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output)


def _route_differentiate(ctx: Any, dgate_ME: Tensor, _: Any) -> tuple[Tensor, None]:
    dscore_SMK = _route_backward(dgate_ME, *ctx.saved_tensors, ctx.shape[-1])
    return dscore_SMK.view(ctx.shape).to(ctx.dtype), None


_route.register_autograd(_route_differentiate, setup_context=_route_remember)


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
            *given, y_ND, hidden_NE, D, E, D_BLOCK=triton.next_power_of_2(D), ACT=ACTS[act],
            **EXPERTS[0],
        )  # fmt: skip
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
            *given, *found, D, E, D_BLOCK=triton.next_power_of_2(D), ACT=ACTS[act], **EXPERTS[0]
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
            *given, *found, D, E, D_BLOCK=triton.next_power_of_2(D), **TABLES[0]
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
    ctx.save_for_backward(*given, output[1])


def _experts_differentiate(ctx: Any, dy_ND: Tensor, _: Any) -> tuple[Tensor | None, ...]:
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


@register_flop_formula([
    torch.ops.archsearch.product_keys_triton, torch.ops.archsearch.product_keys_triton_backward,
])  # fmt: skip
def _route_flops(*rest: object, **named: object) -> int:
    """None: it compares."""
    return 0


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


def _blocks(K: int, count: int) -> dict[str, int]:
    return {"K_BLOCK": triton.next_power_of_2(K), "E_BLOCK": triton.next_power_of_2(count)}


@triton.jit
def _take(x, index):  # type: ignore[no-untyped-def]
    """From each row the number at a column of its own; 0 beyond the last."""
    column = tl.arange(0, x.shape[1])[None, :]
    return tl.sum(tl.where(column == index[:, None], x, 0), 1)


@triton.jit
def _best(s, count, E_BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The `count` largest numbers of each row, in order, and where they are."""
    key = tl.arange(0, s.shape[1])[None, :]
    place = tl.arange(0, E_BLOCK)[None, :]
    value = tl.full((s.shape[0], E_BLOCK), -float("inf"), s.dtype)
    index = tl.zeros((s.shape[0], E_BLOCK), tl.int32)
    for i in range(count):
        largest, at = tl.max(s, 1, return_indices=True)
        value = tl.where(place == i, largest[:, None], value)
        index = tl.where(place == i, at[:, None], index)
        s = tl.where(key == at[:, None], -float("inf"), s)
    return value, index


@triton.jit
def _scores(ptr, start, here, K, K_BLOCK: tl.constexpr, wide: tl.constexpr, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores of one side that can be put in order: NaN before all, below all what is no key."""
    key = tl.arange(0, K_BLOCK)[None, :]
    s = tl.load(ptr + start[:, None] + key, here[:, None] & (key < K), 0.0).to(wide)
    s = tl.where(s == s, s, float("inf"))
    return tl.where(key < K, tl.maximum(s, LEAST), -float("inf"))


@triton.jit
def _route_forward(  # type: ignore[no-untyped-def]
    score_ptr, gate_ptr, row_ptr, M, inner, side, outer_step, inner_step, K, count,
    K_BLOCK: tl.constexpr, E_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    double: tl.constexpr = score_ptr.dtype.element_ty == tl.float64
    wide: tl.constexpr = tl.float64 if double else tl.float32
    least: tl.constexpr = -1.7e308 if double else -3.4e38
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = m < M
    start = (m // inner) * outer_step + (m % inner) * inner_step
    s = _scores(score_ptr, start, here, K, K_BLOCK, wide, least)
    one, one_key = _best(s, count, E_BLOCK)
    s = _scores(score_ptr + side, start, here, K, K_BLOCK, wide, least)
    two, two_key = _best(s, count, E_BLOCK)

    place = tl.arange(0, E_BLOCK)[None, :]
    partner = tl.zeros((ROWS, E_BLOCK), tl.int32)
    total = one + _take(two, tl.zeros((ROWS,), tl.int32))[:, None]
    chosen = tl.full((ROWS, E_BLOCK), -float("inf"), wide)
    row = tl.zeros((ROWS, E_BLOCK), tl.int32)
    for j in range(count):
        largest, i = tl.max(total, 1, return_indices=True)
        after = _take(partner, i)
        pair = _take(one_key, i) * K + _take(two_key, after)
        chosen = tl.where(place == j, largest[:, None], chosen)
        row = tl.where(place == j, pair[:, None], row)
        hit = place == i[:, None]
        partner = tl.where(hit, partner + 1, partner)
        total = tl.where(hit, one + _take(two, after + 1)[:, None], total)

    weight = tl.exp(chosen - tl.max(chosen, 1)[:, None])
    gate = weight / tl.sum(weight, 1)[:, None]
    at = m[:, None] * count + place
    kept = here[:, None] & (place < count)
    tl.store(gate_ptr + at, gate, kept)
    tl.store(row_ptr + at, row.to(tl.int64), kept)


@triton.jit
def _route_gradient(  # type: ignore[no-untyped-def]
    dgate_ptr, gate_ptr, row_ptr, dscore_ptr, M, K, count,
    K_BLOCK: tl.constexpr, E_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = gate_ptr.dtype.element_ty
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = m < M
    place = tl.arange(0, E_BLOCK)[None, :]
    at = m[:, None] * count + place
    kept = here[:, None] & (place < count)
    gate = tl.load(gate_ptr + at, kept, 0.0)
    dgate = tl.load(dgate_ptr + at, kept, 0.0).to(wide)
    row = tl.load(row_ptr + at, kept, 0).to(tl.int32)
    dchosen = gate * (dgate - tl.sum(gate * dgate, 1)[:, None])
    key = tl.arange(0, K_BLOCK)[None, :]
    one = tl.zeros((ROWS, K_BLOCK), wide)
    two = tl.zeros((ROWS, K_BLOCK), wide)
    for e in range(count):
        which = tl.zeros((ROWS,), tl.int32) + e
        d = _take(dchosen, which)[:, None]
        pair = _take(row, which)[:, None]
        one += tl.where(key == pair // K, d, 0.0)
        two += tl.where(key == pair % K, d, 0.0)
    to = m[:, None] * K + key
    known = here[:, None] & (key < K)
    tl.store(dscore_ptr + to, one, known)
    tl.store(dscore_ptr + tl.cast(M, tl.int64) * K + to, two, known)


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
        here = (e < E)[:, None] & (d < D)[None, :]
        down = tl.load(down_ptr + at, here, 0.0).to(wide)
        up = tl.load(up_ptr + at, here, 0.0).to(wide)
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
        here = (e < E)[:, None] & (d < D)[None, :]
        up = tl.load(up_ptr + at, here, 0.0).to(wide)
        down = tl.load(down_ptr + at, here, 0.0).to(wide)
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
        here = (p < last)[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + at, here, 0.0).to(wide)
        dy = tl.load(dy_ptr + at, here, 0.0).to(wide)
        ddown += tl.sum(x * tl.load(dhidden_ptr + pick, p < last, 0.0)[:, None], 0)
        dup += tl.sum(dy * tl.load(weight_ptr + pick, p < last, 0.0)[:, None], 0)
    at = r * D + d
    tl.store(ddown_ptr + at, ddown.to(ddown_ptr.dtype.element_ty), d < D)
    tl.store(dup_ptr + at, dup.to(dup_ptr.dtype.element_ty), d < D)

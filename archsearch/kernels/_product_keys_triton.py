"""`kernels.product_keys.route` in Triton, forward and backward.

The best keys of either side are taken one by one, and then pairs: of each key of the first side
only the best partner not yet taken can be next, so `count` candidates are looked at, never all
pairs.

Shapes: S the two sides, N tokens, M rows of scores, K keys of a side, E picks.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

ROUTE = (
    {"ROWS": 4, "num_warps": 4},
    {"ROWS": 1, "num_warps": 4},
    {"ROWS": 2, "num_warps": 4},
)
"""Launch configs; the first is taken."""


def route(score_SNK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `kernels.product_keys.route`."""
    shape = (*score_SNK.shape[1:-1], count)
    if score_SNK.dim() != 4:
        score_SNK = score_SNK.reshape(2, 1, -1, score_SNK.shape[-1])
    gate_ME, row_ME = _route(score_SNK, count)
    return gate_ME.view(shape), row_ME.view(shape)


@torch.library.custom_op("archsearch::product_keys_triton", mutates_args=())
def _route(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """From scores (2, A, B, K), whatever their strides, gates and pairs of M = A * B rows."""
    score = score if score.stride(-1) == 1 else score.contiguous()
    _, _, inner, K = score.shape
    gate_ME, row_ME = _route_fake(score, count)
    M = len(gate_ME)
    config, blocks = ROUTE[0], _blocks(K, count)
    with torch.accelerator.device_index(score.device.index):
        _route_forward[triton.cdiv(M, config["ROWS"]),](
            score, gate_ME, row_ME, M, inner, *score.stride()[:3], K, count, **blocks, **config
        )
    return gate_ME, row_ME


@torch.library.custom_op("archsearch::product_keys_triton_backward", mutates_args=())
def _route_backward(dgate_ME: Tensor, gate_ME: Tensor, row_ME: Tensor, K: int) -> Tensor:
    """The gradient of scores (2, M, K)."""
    (M, count), config = gate_ME.shape, ROUTE[0]
    dscore_SMK = _route_backward_fake(dgate_ME, gate_ME, row_ME, K)
    with torch.accelerator.device_index(gate_ME.device.index):
        _route_gradient[triton.cdiv(M, config["ROWS"]),](
            dgate_ME.contiguous(), gate_ME, row_ME, dscore_SMK, M, K, count,
            **_blocks(K, count), **config,
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
    ctx.set_materialize_grads(False)  # else zeros for the pairs too
    ctx.save_for_backward(*output)


def _route_differentiate(ctx: Any, dgate_ME: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
    if dgate_ME is None:
        return None, None
    dscore_SMK = _route_backward(dgate_ME, *ctx.saved_tensors, ctx.shape[-1])
    return dscore_SMK.view(ctx.shape).to(ctx.dtype), None


_route.register_autograd(_route_differentiate, setup_context=_route_remember)


@register_flop_formula([
    torch.ops.archsearch.product_keys_triton, torch.ops.archsearch.product_keys_triton_backward,
])  # fmt: skip
def _route_flops(*rest: object, **named: object) -> int:
    """None: it compares."""
    return 0


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
def _scores(ptr, start, mask, K, K_BLOCK: tl.constexpr, wide: tl.constexpr, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores of one side that can be put in order: NaN before all, below all what is no key."""
    key = tl.arange(0, K_BLOCK)[None, :]
    s = tl.load(ptr + start[:, None] + key, mask[:, None] & (key < K), 0.0).to(wide)
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
    mask = m < M
    start = (m // inner) * outer_step + (m % inner) * inner_step
    s = _scores(score_ptr, start, mask, K, K_BLOCK, wide, least)
    one, one_key = _best(s, count, E_BLOCK)
    s = _scores(score_ptr + side, start, mask, K, K_BLOCK, wide, least)
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
    kept = mask[:, None] & (place < count)
    tl.store(gate_ptr + at, gate, kept)
    tl.store(row_ptr + at, row.to(tl.int64), kept)


@triton.jit
def _route_gradient(  # type: ignore[no-untyped-def]
    dgate_ptr, gate_ptr, row_ptr, dscore_ptr, M, K, count,
    K_BLOCK: tl.constexpr, E_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = gate_ptr.dtype.element_ty
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = m < M
    place = tl.arange(0, E_BLOCK)[None, :]
    at = m[:, None] * count + place
    kept = mask[:, None] & (place < count)
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
    known = mask[:, None] & (key < K)
    tl.store(dscore_ptr + to, one, known)
    tl.store(dscore_ptr + tl.cast(M, tl.int64) * K + to, two, known)

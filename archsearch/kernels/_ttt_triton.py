"""`kernels.ttt.fit_linear` in Triton: one program runs all mini-batches of a head.

Only what one mini-batch hands to the next is in the loops. Forward, that is W, which stays in
registers: each mini-batch multiplies its keys by W, takes its gradient G through LN and writes it
into W. Backward, from the last mini-batch to the first, it is the gradient by W, which is written
too: what keys and rates owe to it are products for the whole sequence, and torch makes them.

A mini-batch of more tokens than a block is read block by block, so its length is not bounded. W is
held in slices of a few rows, so that the products, exact in float32, fit into registers; the row of
the bias is held apart. Where torch may round float32 to TF32, products of three such parts are
taken: on tensor cores, and nearly exact.

Shapes: I mini-batches, N batch x heads, M tokens in one, K head width, E = K + 1 rows of W, S
slices.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Size, Tensor
from torch.utils.flop_counter import register_flop_formula

from archsearch.kernels.precision import in_full
from archsearch.kernels.ttt import EPS

LOOP: tuple[dict[str, Any], ...] = (
    {"M_BLOCK": 16, "ROWS": 16, "PRECISION": "ieee", "num_warps": 8, "num_stages": 2},
    {"M_BLOCK": 16, "ROWS": 16, "PRECISION": "tf32x3", "num_warps": 8, "num_stages": 2},
)
"""Launch configs: the first, and the last where torch may round float32."""
EPSILON = tl.constexpr(EPS)


def fit_linear(
    k: Tensor, rate: Tensor, offset: Tensor, square: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """As `kernels.ttt.fit_linear`."""
    W, G, _, _ = _fit(k, rate, offset, square, start)
    return W, G


def _config(k: Tensor) -> dict[str, Any]:
    """The launch config, with what depends on the sizes."""
    exact = torch.get_float32_matmul_precision() == "highest"
    config, (M, K) = LOOP[0 if exact else -1], k.shape[-2:]
    width, short = max(triton.next_power_of_2(K), config["ROWS"]), config["M_BLOCK"] >= M
    if not short:  # the loop over blocks takes registers: so that none is spilled
        rows = width if config["PRECISION"] == "ieee" and width > 32 else config["ROWS"]
        stages = 1 if width > 16 else 2
        config = config | {"ROWS": rows, "num_warps": 8, "num_stages": stages}
    return {"SHORT": short, "K_BLOCK": width, **config}


@torch.library.custom_op("archsearch::ttt_linear_triton", mutates_args=())
def _fit(
    k: Tensor, rate: Tensor, offset: Tensor, square: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W, G, and of LN its output x_INMK and r_INM1, 1 over the standard deviation."""
    given = tuple(x.contiguous() for x in (k, rate, offset, square, start))
    found = _fit_fake(k, rate, offset, square, start)
    count, N, M, K = k.shape
    with torch.accelerator.device_index(k.device.index):
        _loop_forward[(N,)](*given, *found, count, M, K, **_config(k))
    return found


@_fit.register_fake
def _fit_fake(
    k: Tensor, rate: Tensor, offset: Tensor, square: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W = start.new_empty(k.shape[0], *start.shape)
    return W, k.new_empty(k.shape), k.new_empty(k.shape), rate.new_empty(rate.shape)


@torch.library.custom_op("archsearch::ttt_linear_triton_backward", mutates_args=())
def _fit_backward(
    from_W: Tensor, from_G: Tensor, k: Tensor, rate: Tensor, offset: Tensor, square: Tensor,
    W: Tensor, G: Tensor, x: Tensor, r: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    given = tuple(t.contiguous() for t in (from_W, from_G, k, rate, offset, square, G, x, r))
    by_W, by_z, by_offset = W.new_empty(W.shape), k.new_empty(k.shape), k.new_empty(k.shape)
    by_square, (count, N, M, K) = square.new_empty(square.shape), k.shape
    with torch.accelerator.device_index(k.device.index):
        _loop_backward[(N,)](*given, by_W, by_z, by_offset, by_square, count, M, K, **_config(k))
    by_k, by_rate = by_z @ W[..., :-1, :].mT, torch.zeros_like(rate)
    by_weights, by_bias = by_W[1:].split((K, 1), 2)
    by_step = G[:-1] @ by_weights.mT
    by_rate[:-1] -= (by_step * k[:-1]).sum(-1, keepdim=True)
    by_rate[:-1] -= (G[:-1] * by_bias).sum(-1, keepdim=True)
    by_k[:-1].addcmul_(by_step, rate[:-1], value=-1)
    return by_k, by_rate, by_offset, by_square, by_W[0].clone()


@_fit_backward.register_fake
def _(
    from_W: Tensor, from_G: Tensor, k: Tensor, rate: Tensor, offset: Tensor, square: Tensor,
    W: Tensor, G: Tensor, x: Tensor, r: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shapes = k.shape, rate.shape, offset.shape, square.shape, W.shape[1:]
    by_k, by_rate, by_offset, by_square, by_start = (k.new_empty(shape) for shape in shapes)
    return by_k, by_rate, by_offset, by_square, by_start


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)  # else zeros for those too
    ctx.save_for_backward(*inputs[:4], *output)


@in_full
def _differentiate(
    ctx: Any, from_W: Tensor | None, from_G: Tensor | None, *rest: None
) -> tuple[Tensor | None, ...]:
    if from_W is None and from_G is None:
        return (None,) * 5
    W, G = ctx.saved_tensors[4:6]
    from_W = torch.zeros_like(W) if from_W is None else from_W
    from_G = torch.zeros_like(G) if from_G is None else from_G
    found: tuple[Tensor, ...] = _fit_backward(from_W, from_G, *ctx.saved_tensors)
    return found


_fit.register_autograd(_differentiate, setup_context=_remember)


@register_flop_formula(torch.ops.archsearch.ttt_linear_triton)
def _flops(k: Size, *rest: object, **named: object) -> int:
    """The outputs, and for all mini-batches but the last what they write into the weights."""
    count, N, M, K = k
    return 2 * N * M * (K + 1) * K * (2 * count - 1)


@register_flop_formula(torch.ops.archsearch.ttt_linear_triton_backward)
def _flops_backward(from_W: Size, from_G: Size, k: Size, *rest: object, **named: object) -> int:
    """Two products for each of those."""
    return 2 * _flops(k)


@triton.jit
def _through_norm(grad, x, r, inside, K):  # type: ignore[no-untyped-def]
    """The backward pass of LN, whose output is x and 1 / r its standard deviation."""
    mean, along = tl.sum(grad, 1)[:, None] / K, tl.sum(grad * x, 1)[:, None] / K
    return tl.where(inside, r * (grad - mean - x * along), 0.0)


@triton.jit
def _load(ptr, W, K, K_BLOCK: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The slices of a matrix in memory, added to those of W."""
    slices = ()
    f = tl.arange(0, K_BLOCK)
    for s in tl.static_range(K_BLOCK // ROWS):
        e = s * ROWS + tl.arange(0, ROWS)
        rows = tl.load(ptr + e[:, None] * K + f[None, :], (e < K)[:, None] & (f < K)[None, :], 0.0)
        slices = slices + (W[s] + rows,)  # type: ignore[assignment]  # noqa: RUF005
    return slices


@triton.jit
def _store(ptr, W, K, K_BLOCK: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the slices of W as a matrix."""
    f = tl.arange(0, K_BLOCK)
    for s in tl.static_range(K_BLOCK // ROWS):
        e = s * ROWS + tl.arange(0, ROWS)
        mask = (e < K)[:, None] & (f < K)[None, :]
        tl.store(ptr + e[:, None] * K + f[None, :], W[s], mask)


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    k_ptr, factor, W, z, row, real, K,
    K_BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys of some rows, each times a factor, times W; added to z."""
    for s in tl.static_range(K_BLOCK // ROWS):
        e = s * ROWS + tl.arange(0, ROWS)
        mask = real[:, None] & (e < K)[None, :]
        k = tl.load(k_ptr + row[:, None] * K + e[None, :], mask, 0.0)
        z = tl.dot(k * factor[:, None], W[s], z, PRECISION, out_dtype=z.dtype)
    return z


@triton.jit
def _written(  # type: ignore[no-untyped-def]
    k_ptr, factor, G, W, row, real, K,
    K_BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outer products of keys of some rows, each times a factor, with G; added to W."""
    slices = ()
    for s in tl.static_range(K_BLOCK // ROWS):
        e = s * ROWS + tl.arange(0, ROWS)
        mask = (e < K)[:, None] & real[None, :]
        k = tl.load(k_ptr + row[None, :] * K + e[:, None], mask, 0.0)
        moved = tl.dot(k * factor[None, :], G, W[s], PRECISION, out_dtype=G.dtype)
        slices = slices + (moved,)  # type: ignore[assignment]  # noqa: RUF005
    return slices


@triton.jit
def _loop_forward(  # type: ignore[no-untyped-def]
    k_ptr, rate_ptr, offset_ptr, square_ptr, start_ptr, W_ptr, G_ptr, x_ptr, r_ptr,
    count, M, K: tl.constexpr, SHORT: tl.constexpr, K_BLOCK: tl.constexpr,
    M_BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    n, N = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    f = tl.arange(0, K_BLOCK)
    inside = (f < K)[None, :]
    square = tl.load(square_ptr + n * K + f, f < K, 0.0)[None, :]
    one = tl.full((M_BLOCK,), 1, square.dtype)
    start_ptr += n * (K + 1) * K
    none = (tl.zeros((ROWS, K_BLOCK), square.dtype),) * (K_BLOCK // ROWS)
    W, bias = _load(start_ptr, none, K, K_BLOCK, ROWS), tl.load(start_ptr + K * K + f, f < K, 0.0)
    for i in range(count):
        W_at = W_ptr + (i * N + n) * (K + 1) * K
        _store(W_at, W, K, K_BLOCK, ROWS)
        tl.store(W_at + K * K + f, bias, f < K)
        now_W, now_bias = W, bias
        for first in range(0, M_BLOCK if SHORT else M, M_BLOCK):
            m = first + tl.arange(0, M_BLOCK)
            row, real = (i * N + n) * M + m, m < M
            at, mask = row[:, None] * K + f[None, :], real[:, None] & inside
            rate = tl.load(rate_ptr + row, real, 0.0)
            z = tl.zeros_like(rate)[:, None] + now_bias[None, :]
            z = _product(k_ptr, one, now_W, z, row, real, K, K_BLOCK, ROWS, PRECISION)
            z = tl.where(inside, z - tl.sum(z, 1)[:, None] / K, 0.0)
            r = tl.rsqrt(tl.sum(z * z, 1) / K + EPSILON)
            x = z * r[:, None]
            p = square * x + tl.load(offset_ptr + at, mask, 0.0)
            G = _through_norm(p, x, r[:, None], inside, K)
            tl.store(G_ptr + at, G, mask)
            tl.store(x_ptr + at, x, mask)
            tl.store(r_ptr + row, r, real)
            W = _written(k_ptr, -rate, G, W, row, real, K, K_BLOCK, ROWS, PRECISION)
            bias -= tl.sum(rate[:, None] * G, 0)


@triton.jit
def _loop_backward(  # type: ignore[no-untyped-def]
    from_W_ptr, from_G_ptr, k_ptr, rate_ptr, offset_ptr, square_ptr, G_ptr, x_ptr, r_ptr,
    by_W_ptr, by_z_ptr, by_offset_ptr, by_square_ptr,
    count, M, K: tl.constexpr, SHORT: tl.constexpr, K_BLOCK: tl.constexpr,
    M_BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    n, N = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    f = tl.arange(0, K_BLOCK)
    inside = (f < K)[None, :]
    square = tl.load(square_ptr + n * K + f, f < K, 0.0)[None, :]
    one = tl.full((M_BLOCK,), 1, square.dtype)
    by_square, by_bias = tl.zeros_like(square), tl.zeros((K_BLOCK,), square.dtype)
    by_W = (tl.zeros((ROWS, K_BLOCK), square.dtype),) * (K_BLOCK // ROWS)
    for back in range(count):
        part = (count - 1 - back) * N + n
        W_at = part * (K + 1) * K
        next_W, next_bias = by_W, by_bias
        by_W = _load(from_W_ptr + W_at, by_W, K, K_BLOCK, ROWS)
        by_bias += tl.load(from_W_ptr + W_at + K * K + f, f < K, 0.0)
        for first in range(0, M_BLOCK if SHORT else M, M_BLOCK):
            m = first + tl.arange(0, M_BLOCK)
            row, real = part * M + m, m < M
            at, mask = row[:, None] * K + f[None, :], real[:, None] & inside
            rate = tl.load(rate_ptr + row, real, 0.0)
            u = tl.load(from_G_ptr + at, mask, 0.0) - rate[:, None] * next_bias[None, :]
            u = _product(k_ptr, -rate, next_W, u, row, real, K, K_BLOCK, ROWS, PRECISION)
            x, G = tl.load(x_ptr + at, mask, 0.0), tl.load(G_ptr + at, mask, 0.0)
            r = tl.load(r_ptr + row, real, 0.0)[:, None]
            p = square * x + tl.load(offset_ptr + at, mask, 0.0)
            by_p = _through_norm(u, x, r, inside, K)
            tl.store(by_offset_ptr + at, by_p, mask)
            by_square += tl.sum(x * by_p, 0)[None, :]
            along_p, along_u = tl.sum(p * x, 1)[:, None], tl.sum(u * x, 1)[:, None]
            by_x = square * by_p - r / K * (along_p * u + along_u * p)
            by_z = _through_norm(by_x, x, r, inside, K)
            by_z -= x * (r / K * tl.sum(u * G, 1)[:, None])
            tl.store(by_z_ptr + at, by_z, mask)
            by_W = _written(k_ptr, one, by_z, by_W, row, real, K, K_BLOCK, ROWS, PRECISION)
            by_bias += tl.sum(by_z, 0)
        _store(by_W_ptr + W_at, by_W, K, K_BLOCK, ROWS)
        tl.store(by_W_ptr + W_at + K * K + f, by_bias, f < K)
    tl.store(by_square_ptr + n * K + f[None, :], by_square, inside)

"""`selective_scan` in Triton, forward and backward: a program for a batch row and some channels.

It goes through time with the state in its registers, the states of a channel in one thread where
they are few. Forward writes the state before every `CHUNK`th token. Backward takes the chunks from
the last to the first: it runs each of them forward again, writes the states between its tokens to
scratch memory that is soon read back, and follows the gradient of the state back through it. What
is summed over channels or over batch rows is written apart by each program and added up after: no
atomics, so equal runs give equal gradients.

In float32 and for at most 128 states, T B N E / 4 bytes of states are kept from forward to
backward, and while backward runs as much again holds the parts of the gradients of B and C: 100 MB
each for 2048 tokens of 8 rows with 1536 channels of 16 states.

Shapes: T time, B batch, E channels, N state size, K chunks, Q time in a chunk, P programs along
the channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Size, Tensor
from torch.utils.flop_counter import register_flop_formula

from archsearch.kernels.precision import in_full

CHUNK = 16
"""Tokens from one kept state to the next. It has no effect on values: with more of them fewer
states are kept, and backward needs more scratch memory, a state for each token of a chunk."""
FORWARD = (
    {"E_BLOCK": 32, "ELEMENTS_PER_THREAD": 16, "STAGES": 4},
    {"E_BLOCK": 32, "ELEMENTS_PER_THREAD": 16, "STAGES": 1},
    {"E_BLOCK": 32, "ELEMENTS_PER_THREAD": 8, "STAGES": 4},
)
BACKWARD = (
    {"E_BLOCK": 32, "ELEMENTS_PER_THREAD": 8, "STAGES": 2},
    {"E_BLOCK": 16, "ELEMENTS_PER_THREAD": 8, "STAGES": 2},
)
"""Launch configs; the first is taken. Inputs are loaded STAGES - 1 tokens ahead."""
MAX_STATE = 4096
"""Numbers of the state in one program. With more than this over E_BLOCK states to a channel, a
program takes fewer channels than E_BLOCK."""


def selective_scan(
    x_TBE: Tensor, dt_TBE: Tensor, A_log_EN: Tensor, B_TBN: Tensor, C_TBN: Tensor
) -> Tensor:
    """As `kernels.selective_scan.selective_scan`."""
    y_TBE, _ = _scan(x_TBE, dt_TBE, A_log_EN, B_TBN, C_TBN)
    return y_TBE


def _launch(
    x_TBE: Tensor, N: int, config: dict[str, int]
) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs along batch and channels, and what a kernel is compiled for."""
    _, batch, E = x_TBE.shape
    N_BLOCK = triton.next_power_of_2(N)
    block = max(min(config["E_BLOCK"], MAX_STATE // N_BLOCK), 1)
    warps = min(max(block * N_BLOCK // (32 * config["ELEMENTS_PER_THREAD"]), 1), 8)
    blocks = {"Q": CHUNK, "E_BLOCK": block, "N_BLOCK": N_BLOCK, "STAGES": config["STAGES"]}
    return (batch, triton.cdiv(E, block)), blocks | {"num_warps": warps}


@torch.library.custom_op("archsearch::selective_scan_triton", mutates_args=())
def _scan(
    x_TBE: Tensor, dt_TBE: Tensor, A_log_EN: Tensor, B_TBN: Tensor, C_TBN: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs y_TBE, and the states h_KBNE before each chunk."""
    given = [t.contiguous() for t in (x_TBE, dt_TBE, A_log_EN.T, B_TBN, C_TBN)]
    (time, _, E), N = x_TBE.shape, A_log_EN.shape[1]
    y_TBE, h_KBNE = _scan_fake(x_TBE, dt_TBE, A_log_EN, B_TBN, C_TBN)
    grid, config = _launch(x_TBE, N, FORWARD[0])
    with torch.accelerator.device_index(x_TBE.device.index):
        _scan_forward[grid](*given, y_TBE, h_KBNE, time, E, N, **config)
    return y_TBE, h_KBNE


@torch.library.custom_op("archsearch::selective_scan_triton_backward", mutates_args=())
def _scan_backward(
    dy_TBE: Tensor,
    x_TBE: Tensor,
    dt_TBE: Tensor,
    A_log_EN: Tensor,
    B_TBN: Tensor,
    C_TBN: Tensor,
    h_KBNE: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = [t.contiguous() for t in (dy_TBE, x_TBE, dt_TBE, A_log_EN.T, B_TBN, C_TBN, h_KBNE)]
    (time, batch, E), N = x_TBE.shape, A_log_EN.shape[1]
    dx_TBE, ddt_TBE = x_TBE.new_empty(x_TBE.shape), dt_TBE.new_empty(dt_TBE.shape)
    grid, config = _launch(x_TBE, N, BACKWARD[0])
    dA_BNE, states_QBNE = h_KBNE.new_empty(batch, N, E), h_KBNE.new_empty(CHUNK, batch, N, E)
    dB_PTBN, dC_PTBN = (h_KBNE.new_empty(grid[1], *B_TBN.shape) for _ in range(2))
    grads = dx_TBE, ddt_TBE, dA_BNE, dB_PTBN, dC_PTBN
    with torch.accelerator.device_index(x_TBE.device.index):
        _scan_gradient[grid](*given, states_QBNE, *grads, time, E, N, **config)
    dA_EN = dA_BNE.sum(0).T.contiguous().to(A_log_EN.dtype)
    return dx_TBE, ddt_TBE, dA_EN, dB_PTBN.sum(0).to(B_TBN.dtype), dC_PTBN.sum(0).to(C_TBN.dtype)


@_scan.register_fake
def _scan_fake(
    x_TBE: Tensor, dt_TBE: Tensor, A_log_EN: Tensor, B_TBN: Tensor, C_TBN: Tensor
) -> tuple[Tensor, Tensor]:
    (time, batch, E), N = x_TBE.shape, A_log_EN.shape[1]
    wide, chunks = torch.promote_types(x_TBE.dtype, torch.float32), (time + CHUNK - 1) // CHUNK
    h_KBNE = x_TBE.new_empty(chunks, batch, N, E, dtype=wide)
    return x_TBE.new_empty(x_TBE.shape), h_KBNE


@_scan_backward.register_fake
def _(dy_TBE: Tensor, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x_TBE, dt_TBE, A_log_EN, B_TBN, C_TBN = (t.new_empty(t.shape) for t in given[:5])
    return x_TBE, dt_TBE, A_log_EN, B_TBN, C_TBN


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros, as many as there are kept states
    ctx.save_for_backward(*inputs, output[1])


@in_full
def _differentiate(ctx: Any, dy_TBE: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if dy_TBE is None:
        return (None,) * 5
    grads: tuple[Tensor, ...] = _scan_backward(dy_TBE, *ctx.saved_tensors)
    return grads


_scan.register_autograd(_differentiate, setup_context=_remember)


@register_flop_formula(torch.ops.archsearch.selective_scan_triton)
def _flops(x: Size, dt: Size, A: Size, *rest: object, **named: object) -> int:
    """What PyTorch counts in plain torch, where y = C h is a product of matrices."""
    return 2 * x.numel() * A[1]


@register_flop_formula(torch.ops.archsearch.selective_scan_triton_backward)
def _flops_backward(dy: Size, x: Size, dt: Size, A: Size, *rest: object, **named: object) -> int:
    """The same for the gradients of dt x, B and C."""
    return 6 * x.numel() * A[1]


@triton.jit
def _scan_forward(  # type: ignore[no-untyped-def]
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, y_ptr, h_ptr, time, E, N,
    Q: tl.constexpr, E_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = h_ptr.dtype.element_ty
    b, batch = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    e, n = tl.program_id(1) * E_BLOCK + tl.arange(0, E_BLOCK), tl.arange(0, N_BLOCK)
    mask, at = (n < N)[:, None] & (e < E)[None, :], n[:, None] * E + e[None, :]
    A = -tl.exp(tl.load(A_ptr + at, mask, 0.0).to(wide))
    x_ptr += b * E
    dt_ptr += b * E
    y_ptr += b * E
    B_ptr += b * N
    C_ptr += b * N
    h_ptr += b * N * E
    h = tl.zeros((N_BLOCK, E_BLOCK), wide)
    for start in range(0, time, Q):
        tl.store(h_ptr + at, h, mask)
        h_ptr += batch * N * E
        for _ in tl.range(start, tl.minimum(start + Q, time), num_stages=STAGES):
            x = tl.load(x_ptr + e, e < E, 0.0).to(wide)
            dt = tl.load(dt_ptr + e, e < E, 0.0).to(wide)
            B = tl.load(B_ptr + n, n < N, 0.0).to(wide)
            C = tl.load(C_ptr + n, n < N, 0.0).to(wide)
            h = tl.exp(dt[None, :] * A) * h + (dt * x)[None, :] * B[:, None]
            y = tl.sum(h * C[:, None], 0)
            tl.store(y_ptr + e, y.to(y_ptr.dtype.element_ty), e < E)
            x_ptr += batch * E
            dt_ptr += batch * E
            y_ptr += batch * E
            B_ptr += batch * N
            C_ptr += batch * N


@triton.jit
def _scan_gradient(  # type: ignore[no-untyped-def]
    dy_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, h_ptr, states_ptr,
    dx_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, time, E, N,
    Q: tl.constexpr, E_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = h_ptr.dtype.element_ty
    b, batch = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    e, n = tl.program_id(1) * E_BLOCK + tl.arange(0, E_BLOCK), tl.arange(0, N_BLOCK)
    mask, at = (n < N)[:, None] & (e < E)[None, :], n[:, None] * E + e[None, :]
    A = -tl.exp(tl.load(A_ptr + at, mask, 0.0).to(wide))
    h_ptr += b * N * E
    states_ptr += b * N * E
    apart = tl.program_id(1).to(tl.int64) * time * batch * N
    dB_ptr += apart
    dC_ptr += apart
    g = tl.zeros((N_BLOCK, E_BLOCK), wide)  # of the state, from what comes after
    dA = tl.zeros((N_BLOCK, E_BLOCK), wide)
    for k in range(tl.cdiv(time, Q) - 1, -1, -1):
        row = k * Q * batch + b
        length = tl.minimum(time - k * Q, Q)
        h = tl.load(h_ptr + k * (batch * N * E) + at, mask, 0.0)
        for q in tl.range(length, num_stages=STAGES):
            tl.store(states_ptr + q * (batch * N * E) + at, h, mask)
            at_e, at_n = row * E, row * N
            x = tl.load(x_ptr + at_e + e, e < E, 0.0).to(wide)
            dt = tl.load(dt_ptr + at_e + e, e < E, 0.0).to(wide)
            dy = tl.load(dy_ptr + at_e + e, e < E, 0.0).to(wide)
            B = tl.load(B_ptr + at_n + n, n < N, 0.0).to(wide)
            h = tl.exp(dt[None, :] * A) * h + (dt * x)[None, :] * B[:, None]
            tl.store(dC_ptr + at_n + n, tl.sum(h * dy[None, :], 1), n < N)
            row += batch
        tl.debug_barrier()  # what other threads wrote can be read
        for q in tl.range(length - 1, -1, -1, num_stages=STAGES):
            row -= batch
            at_e, at_n = row * E, row * N
            x = tl.load(x_ptr + at_e + e, e < E, 0.0).to(wide)
            dt = tl.load(dt_ptr + at_e + e, e < E, 0.0).to(wide)
            dy = tl.load(dy_ptr + at_e + e, e < E, 0.0).to(wide)
            B = tl.load(B_ptr + at_n + n, n < N, 0.0).to(wide)
            C = tl.load(C_ptr + at_n + n, n < N, 0.0).to(wide)
            g += dy[None, :] * C[:, None]
            du = tl.sum(g * B[:, None], 0)  # of dt x
            tl.store(dB_ptr + at_n + n, tl.sum(g * (dt * x)[None, :], 1), n < N)
            g *= tl.exp(dt[None, :] * A)
            h = tl.load(states_ptr + q * (batch * N * E) + at, mask, 0.0)
            rate = g * h * A  # of dt
            dA += rate * dt[None, :]
            ddt = du * x + tl.sum(rate, 0)
            tl.store(dx_ptr + at_e + e, (du * dt).to(dx_ptr.dtype.element_ty), e < E)
            tl.store(ddt_ptr + at_e + e, ddt.to(ddt_ptr.dtype.element_ty), e < E)
        tl.debug_barrier()  # all is read before it is written again
    tl.store(dA_ptr + b * N * E + at, dA, mask)

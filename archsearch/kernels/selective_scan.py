"""The selective scan of Mamba (S6): a linear recurrence with a decay per channel and state.

    h_t = exp(-dt_t exp(A_log)) h_(t-1) + dt_t x_t B_t^T,   y_t = h_t C_t,   h_(-1) = 0

Gu and Dao 2023, arXiv 2312.00752. Token by token; the state of every `CHUNK`th token is kept, and
the backward pass, written by hand, computes the states between them again.

Shapes: T time, B batch, E channels, N state size, Q time in a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archsearch.kernels.dispatch import op
from archsearch.kernels.precision import in_full

CHUNK = 8
"""Tokens between two states that the backward pass finds again. It has no effect on values; 4 to
16 are equally fast on a CPU, where the states of a chunk stay in its cache."""


@op("selective_scan")
@in_full
def selective_scan(
    x_TBE: Tensor, dt_TBE: Tensor, A_log_EN: Tensor, B_TBN: Tensor, C_TBN: Tensor
) -> Tensor:
    """y_t = h_t C_t with h_t = exp(-dt_t exp(A_log)) h_(t-1) + dt_t x_t B_t^T and h_(-1) = 0.

    Can be differentiated once.

    Returns:
        y_TBE.
    """
    A_log_NE = A_log_EN.T.to(dt_TBE.dtype).contiguous()
    return _Scan.apply(x_TBE, dt_TBE, A_log_NE, B_TBN.contiguous(), C_TBN.contiguous())  # type: ignore[no-untyped-call]


@in_full
def selective_scan_after(
    x_TBE: Tensor,
    dt_TBE: Tensor,
    A_log_EN: Tensor,
    B_TBN: Tensor,
    C_TBN: Tensor,
    h_BEN: Tensor,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` that begins with a state: y_TBE, and the state that it ends with.

    For decoding: without a gradient.
    """
    h_BNE, A_NE = h_BEN.mT.to(dt_TBE.dtype), -A_log_EN.T.to(dt_TBE.dtype).exp()
    y_TBE, _, h_BNE = _scan(x_TBE, dt_TBE, A_NE, B_TBN, C_TBN, h_BNE)
    return y_TBE, h_BNE.mT.to(h_BEN.dtype)


class _Scan(torch.autograd.Function):
    """`selective_scan` with channels as the last axis, where every pass is contiguous."""

    @staticmethod
    def forward(
        ctx: Any, x_TBE: Tensor, dt_TBE: Tensor, A_log_NE: Tensor, B_TBN: Tensor, C_TBN: Tensor
    ) -> Tensor:
        A_NE = -A_log_NE.exp()
        zero_BNE = x_TBE.new_zeros(x_TBE.shape[1], *A_NE.shape)
        y_TBE, starts, _ = _scan(x_TBE, dt_TBE, A_NE, B_TBN, C_TBN, zero_BNE)
        ctx.save_for_backward(x_TBE, dt_TBE, A_NE, B_TBN, C_TBN, torch.stack(starts))
        return y_TBE

    @staticmethod
    @once_differentiable
    @in_full
    def backward(ctx: Any, gy_TBE: Tensor) -> tuple[Tensor, ...]:
        """With g_t the gradient of h_t: g_t = gy_t C_t^T + exp(dt_(t+1) A) g_(t+1)."""
        x_TBE, dt_TBE, A_NE, B_TBN, C_TBN, starts = ctx.saved_tensors
        time, batch, E = x_TBE.shape
        dtx_TBE, gy_TBE = dt_TBE * x_TBE, gy_TBE.contiguous()
        gdt_TBE, gdtx_TBE, gB_TBN, gC_TBN = map(torch.empty_like, (dt_TBE, x_TBE, B_TBN, C_TBN))
        gA_BNE = x_TBE.new_zeros(batch, len(A_NE), E)
        carry_BNE = torch.zeros_like(gA_BNE)
        a_QBNE = x_TBE.new_empty(CHUNK, batch, len(A_NE), E)
        g_QBNE = torch.empty_like(a_QBNE)
        h_QBNE = x_TBE.new_empty(CHUNK + 1, batch, len(A_NE), E)
        for s, start_BNE in zip(_chunks(time)[::-1], starts.flip(0), strict=True):
            q = s.stop - s.start
            a, g, h = a_QBNE[:q], g_QBNE[:q], h_QBNE[: q + 1]
            h[0] = start_BNE
            _states(h, a, dt_TBE[s], A_NE, dtx_TBE[s], B_TBN[s])
            gC_TBN[s] = (h[1:] @ gy_TBE[s, ..., None])[..., 0]
            torch.mul(C_TBN[s, ..., None], gy_TBE[s, :, None], out=g)
            for i in reversed(range(q)):
                carry_BNE = a[i].mul_(g[i].add_(carry_BNE))
            carry_BNE = carry_BNE.clone()
            gdtx_TBE[s] = (B_TBN[s, :, None] @ g)[:, :, 0]
            gB_TBN[s] = (g @ dtx_TBE[s, ..., None])[..., 0]
            # a now holds a_t g_t; times h_(t-1) it is the gradient of dt_t A, times A that of dt_t
            torch.mul(a, h[:-1], out=g).mul_(A_NE)
            gdt_TBE[s] = g.sum(2)
            for g_BNE, dt_BE in zip(g, dt_TBE[s], strict=True):
                gA_BNE.addcmul_(g_BNE, dt_BE[:, None])
        gdt_TBE.addcmul_(gdtx_TBE, x_TBE)
        return gdtx_TBE.mul_(dt_TBE), gdt_TBE, gA_BNE.sum(0), gB_TBN, gC_TBN


@torch.no_grad()
def _scan(
    x_TBE: Tensor, dt_TBE: Tensor, A_NE: Tensor, B_TBN: Tensor, C_TBN: Tensor, h_BNE: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The outputs from a first state, the state before each chunk, and the last one."""
    time, batch, E = x_TBE.shape
    y_TBE, dtx_TBE = torch.empty_like(x_TBE), dt_TBE * x_TBE
    a_QBNE = x_TBE.new_empty(CHUNK, batch, len(A_NE), E)
    h_QBNE = x_TBE.new_empty(CHUNK + 1, batch, len(A_NE), E)
    h_QBNE[0] = h_BNE
    starts = []
    for s in _chunks(time):
        starts.append(h_QBNE[0].clone())
        q = s.stop - s.start
        _states(h_QBNE, a_QBNE, dt_TBE[s], A_NE, dtx_TBE[s], B_TBN[s])
        y_TBE[s] = (C_TBN[s, :, None] @ h_QBNE[1 : q + 1])[:, :, 0]
        h_QBNE[0] = h_QBNE[q]
    return y_TBE, starts, h_QBNE[0]


def _states(
    h: Tensor, a: Tensor, dt_QBE: Tensor, A_NE: Tensor, dtx_QBE: Tensor, B_QBN: Tensor
) -> None:
    """Fill `a` with the decays of a chunk and h[1:] with its states, from h[0] on."""
    q = len(dt_QBE)
    torch.mul(dt_QBE[:, :, None], A_NE, out=a[:q]).exp_()
    torch.mul(dtx_QBE[:, :, None], B_QBN[..., None], out=h[1 : q + 1])
    for i in range(q):
        h[i + 1].addcmul_(a[i], h[i])


def _chunks(time: int) -> list[slice]:
    """The pieces of at most `CHUNK` tokens, in order."""
    return [slice(t, min(t + CHUNK, time)) for t in range(0, time, CHUNK)]

"""State space duality: a linear recurrence with a scalar decay per head, in chunks.

    S_t = a_t S_(t-1) + dt_t B_t x_t^T,   y_t = S_t^T C_t + D x_t,   S_(-1) = 0

Dao and Gu 2024, arXiv 2405.21060, section 6. Inside a chunk the outputs are a masked matrix
product, (C B^T * L) (dt x) with L_ts = a_(s+1) ... a_t; between chunks only the state at the border
is passed on. Value and gradient go chunk by chunk, so that what one pass over memory writes is
in the cache for the next.

Shapes: B batch, T time, H heads, P head width, G groups, N state size, Q time in a chunk, R heads
of a group, V = RP width of a group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.kernels.decays import Levels, Products, products, products_grad

CHUNK = 64
"""Longest chunk, a power of 2. It has no effect on values."""


def ssd(
    x_BTHP: Tensor, dt_BTH: Tensor, a_BTH: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, D_H: Tensor
) -> Tensor:
    """y_BTHP; every `a` in [-1, 1]. What is less exact than fp32 is computed in fp32."""
    exact = torch.promote_types(x_BTHP.dtype, torch.float32)
    given = (t.to(exact) for t in (x_BTHP, dt_BTH, a_BTH, B_BTGN, C_BTGN, D_H))
    y_BTHP: Tensor = _SSD.apply(*given)
    return y_BTHP.to(x_BTHP.dtype)


def ssd_ref(
    x_BTHP: Tensor, dt_BTH: Tensor, a_BTH: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, D_H: Tensor
) -> Tensor:
    """The same, token by token."""
    shared = x_BTHP.shape[2] // B_BTGN.shape[2]
    B_BTHN, C_BTHN = (t.repeat_interleave(shared, 2) for t in (B_BTGN, C_BTGN))
    S_BHNP, outputs = x_BTHP.new_zeros(()), []
    for t in range(x_BTHP.shape[1]):
        x_BHP = x_BTHP[:, t]
        added = torch.einsum("bh,bhn,bhp->bhnp", dt_BTH[:, t], B_BTHN[:, t], x_BHP)
        S_BHNP = a_BTH[:, t, :, None, None] * S_BHNP + added
        outputs.append(torch.einsum("bhnp,bhn->bhp", S_BHNP, C_BTHN[:, t]) + D_H[:, None] * x_BHP)
    return torch.stack(outputs, 1)


def flops(time: int, inner: int, rows: int, state: int) -> int:
    """FLOPs of `ssd` for one sequence: inner width HP, rows of B (GN), state size N."""
    spans = [span.stop - span.start for span in _chunks(time)]
    passed = sum(spans[:-1]) + sum(spans[1:])
    return sum(2 * span**2 * (rows + inner) for span in spans) + 2 * passed * inner * state


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        x_BTHP, dt_BTH, a_BTH, B_BTGN, C_BTGN, D_H = given
        y_BTHP = torch.empty(x_BTHP.shape, dtype=x_BTHP.dtype, device=x_BTHP.device)
        decays, levels = _products(a_BTH)
        S_BGNV, starts, reads, groups = None, [], [], B_BTGN.shape[2]
        for i, span in enumerate(_chunks(x_BTHP.shape[1])):
            x_BQHP, y_BQHP, dt_BQH1 = x_BTHP[:, span], y_BTHP[:, span], dt_BTH[:, span, :, None]
            B_BGQN, C_BGQN = B_BTGN[:, span].transpose(1, 2), C_BTGN[:, span].transpose(1, 2)
            inside_BHQQ, before_BQH1, after_BQH1, all_BH = _of_chunk(decays, i, span)
            weight_BHQQ = _per_head(inside_BHQQ, C_BGQN @ B_BGQN.mT)
            y_BHQP = weight_BHQQ @ _heads_first(x_BQHP, dt_BQH1)
            torch.addcmul(y_BHQP.transpose(1, 2), x_BQHP, D_H[:, None], out=y_BQHP)
            starts.append(S_BGNV)
            reads.append(None if S_BGNV is None else _ungrouped(C_BGQN @ S_BGNV, x_BQHP))
            if S_BGNV is not None:
                y_BQHP.addcmul_(reads[i], before_BQH1)
            if span.stop < x_BTHP.shape[1]:
                late_BGQV = _grouped(x_BQHP * (dt_BQH1 * after_BQH1), groups)
                added_BGNV = B_BGQN.mT @ late_BGQV
                if S_BGNV is not None:
                    added_BGNV += _decayed(S_BGNV, all_BH)
                S_BGNV = added_BGNV
        ctx.save_for_backward(*given)
        ctx.decays, ctx.levels, ctx.starts, ctx.reads = decays, levels, starts, reads
        return y_BTHP

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy_BTHP: Tensor) -> tuple[Tensor, ...]:
        x_BTHP, dt_BTH, a_BTH, B_BTGN, C_BTGN, D_H = ctx.saved_tensors
        groups = B_BTGN.shape[2]
        dx_BTHP, ddt_BTH, dB_BTGN, dC_BTGN = (
            torch.empty(t.shape, dtype=t.dtype, device=t.device)
            for t in (x_BTHP, dt_BTH, B_BTGN, C_BTGN)
        )
        fill = torch.zeros_like if x_BTHP.shape[1] % _chunk(x_BTHP.shape[1]) else torch.empty_like
        dD_H = torch.zeros_like(D_H)
        ddecays = Products(fill(ctx.decays[0]), *map(torch.zeros_like, ctx.decays[1:]))
        dS_BGNV = None  # of the state at the end of the chunk
        for i, span in reversed(list(enumerate(_chunks(x_BTHP.shape[1])))):
            x_BQHP, dy_BQHP, dt_BQH1 = x_BTHP[:, span], dy_BTHP[:, span], dt_BTH[:, span, :, None]
            B_BGQN, C_BGQN = B_BTGN[:, span].transpose(1, 2), C_BTGN[:, span].transpose(1, 2)
            inside_BHQQ, before_BQH1, after_BQH1, all_BH = _of_chunk(ctx.decays, i, span)
            dinside_BHQQ, dbefore_BQH1, dafter_BQH1, dall_BH = _of_chunk(ddecays, i, span)
            S_BGNV, score_BGQQ = ctx.starts[i], C_BGQN @ B_BGQN.mT
            dy_BHQP = dy_BQHP.transpose(1, 2).contiguous()
            dweight_BHQQ = dy_BHQP @ _heads_first(x_BQHP, dt_BQH1).mT
            du_BQHP = (_per_head(inside_BHQQ, score_BGQQ).mT @ dy_BHQP).transpose(1, 2)
            _per_head(dweight_BHQQ, score_BGQQ, out=dinside_BHQQ)
            dscore_BGQQ = dweight_BHQQ.mul_(inside_BHQQ).unflatten(1, (groups, -1)).sum(2)
            dB_BGQN, dC_BGQN = dscore_BGQQ.mT @ C_BGQN, dscore_BGQQ @ B_BGQN
            if dS_BGNV is not None:
                late_BGQV = _grouped(x_BQHP * (dt_BQH1 * after_BQH1), groups)
                dB_BGQN += late_BGQV @ dS_BGNV.mT
                dlate_BQHP = _ungrouped(B_BGQN @ dS_BGNV, x_BQHP)
                du_BQHP = torch.addcmul(du_BQHP, dlate_BQHP, after_BQH1)
                dafter_BQH1.copy_(dlate_BQHP.mul_(x_BQHP).sum(-1, keepdim=True)).mul_(dt_BQH1)
            if S_BGNV is not None:
                dbefore_BQH1.copy_((dy_BQHP * ctx.reads[i]).sum(-1, keepdim=True))
                dread_BGQV = _grouped(dy_BQHP * before_BQH1, groups)
                dC_BGQN += dread_BGQV @ S_BGNV.mT
                dstart_BGNV = C_BGQN.mT @ dread_BGQV
                if dS_BGNV is not None:
                    dall_BH += (dS_BGNV * S_BGNV).sum(2).unflatten(-1, (len(D_H) // groups, -1)).sum(-1).flatten(1)
                    dstart_BGNV += _decayed(dS_BGNV, all_BH)
                dS_BGNV = dstart_BGNV
            torch.addcmul(du_BQHP * dt_BQH1, dy_BQHP, D_H[:, None], out=dx_BTHP[:, span])
            torch.sum(du_BQHP * x_BQHP, -1, out=ddt_BTH[:, span])
            dD_H += (dy_BQHP * x_BQHP).sum(-1).sum((0, 1))
            dB_BTGN[:, span], dC_BTGN[:, span] = dB_BGQN.transpose(1, 2), dC_BGQN.transpose(1, 2)
        return dx_BTHP, ddt_BTH, _products_grad(ctx.levels, ddecays, a_BTH.shape[1]), dB_BTGN, dC_BTGN, dD_H


def _chunk(time: int) -> int:
    """The length of a chunk: the least power of 2 that holds the sequence, at most `CHUNK`."""
    return min(CHUNK, 1 << (time - 1).bit_length())


def _chunks(time: int) -> list[slice]:
    """All of length `CHUNK` but the last."""
    return [slice(start, min(start + CHUNK, time)) for start in range(0, time, CHUNK)]


def _per_head(x_BHQQ: Tensor, factor_BGQQ: Tensor, out: Tensor | None = None) -> Tensor:
    """Times what the heads of a group share."""
    if out is None:
        out = torch.empty_like(x_BHQQ, memory_format=torch.contiguous_format)
    x_BGRQQ, out_BGRQQ = (t.unflatten(1, (factor_BGQQ.shape[1], -1)) for t in (x_BHQQ, out))
    torch.mul(x_BGRQQ, factor_BGQQ[:, :, None], out=out_BGRQQ)
    return out


def _heads_first(x_BQHP: Tensor, factor_BQH1: Tensor) -> Tensor:
    """The product as x_BHQP, contiguous."""
    x_BHQP = torch.empty_like(x_BQHP.transpose(1, 2), memory_format=torch.contiguous_format)
    return torch.mul(x_BQHP.transpose(1, 2), factor_BQH1.transpose(1, 2), out=x_BHQP)


def _grouped(x_BQHP: Tensor, groups: int) -> Tensor:
    """As x_BGQV: the heads of a group side by side."""
    return x_BQHP.unflatten(2, (groups, -1)).flatten(3).transpose(1, 2)


def _ungrouped(x_BGQV: Tensor, like_BQHP: Tensor) -> Tensor:
    """The inverse of `_grouped`."""
    return x_BGQV.transpose(1, 2).reshape(like_BQHP.shape)


def _decayed(S_BGNV: Tensor, decay_BH: Tensor) -> Tensor:
    """A state times one decay per head."""
    groups = S_BGNV.shape[1]
    decay_BGR = decay_BH.unflatten(1, (groups, -1))
    S_BGNRP = S_BGNV.unflatten(-1, (decay_BGR.shape[-1], -1))
    return (S_BGNRP * decay_BGR[:, :, None, :, None]).flatten(-2)


def _products(a_BTH: Tensor) -> tuple[Products, Levels]:
    """The products of each chunk and head, X = BIH; a short last chunk is filled up with 1."""
    chunk = _chunk(a_BTH.shape[1])
    a_BTH = F.pad(a_BTH, (0, 0, 0, -a_BTH.shape[1] % chunk), value=1.0)
    a_BIHQ = a_BTH.unflatten(1, (-1, chunk)).transpose(2, 3)
    found, levels = products(a_BIHQ.flatten(0, 2))
    size = a_BIHQ.shape[:3]
    return Products(*(t.unflatten(0, size) for t in found)), levels


def _products_grad(levels: Levels, grad: Products, time: int) -> Tensor:
    """The gradient of a_BTH."""
    da_XQ = products_grad(levels, Products(*(t.flatten(0, 2) for t in grad)))
    return da_XQ.view(grad[1].shape).transpose(2, 3).flatten(1, 2)[:, :time]


def _of_chunk(p: Products, i: int, span: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inside_BHQQ, before_BQH1 and after_BQH1 of chunk i, and the product over all of it, BH."""
    inside, before, after = (t[:, i] for t in p)
    size = span.stop - span.start
    return inside[:, :, :size, :size], before[:, :, :size].mT[..., None], after[:, :, :size].mT[..., None], before[:, :, -1]

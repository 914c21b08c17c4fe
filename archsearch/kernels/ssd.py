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

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.kernels.decays import Levels, Products, products, products_grad
from archsearch.kernels.dispatch import op
from archsearch.kernels.precision import in_full

CHUNK = 64
"""Longest chunk, a power of 2. It has no effect on values."""


@op("ssd")
@in_full
def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_BTH: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    positive: bool = True,
) -> Tensor:
    """y_BTHP; every `a` in [-1, 1], and above 0 if `positive`, which other backends need.

    What is less exact than fp32 is computed in fp32.
    """
    exact = torch.promote_types(x_BTHP.dtype, torch.float32)
    given = (t.to(exact) for t in (x_BTHP, dt_BTH, a_BTH, B_BTGN, C_BTGN, D_H))
    y_BTHP: Tensor = _SSD.apply(*given)  # type: ignore[no-untyped-call]
    return y_BTHP.to(x_BTHP.dtype)


@in_full
def ssd_after(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_BTH: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    S_BHPN: Tensor,
    positive: bool = True,
) -> tuple[Tensor, Tensor]:
    """`ssd` that begins with a state instead of 0: y_BTHP, and the state that it ends with."""
    y_BTHP = ssd(x_BTHP, dt_BTH, a_BTH, B_BTGN, C_BTGN, D_H, positive)
    exact, groups = torch.promote_types(x_BTHP.dtype, torch.float32), B_BTGN.shape[2]
    given = (x_BTHP, dt_BTH, a_BTH, B_BTGN, C_BTGN, S_BHPN)
    x, dt, a, B_BTGN, C_BTGN, S = (t.to(exact) for t in given)
    since_BTH = a.cumprod(1)
    after_BTH = F.pad(a[:, 1:], (0, 0, 0, 1), value=1.0).flip(1).cumprod(1).flip(1)
    S_BGRPN = S.unflatten(1, (groups, -1))
    read_BTHP = torch.einsum("btgn,bgrpn->btgrp", C_BTGN, S_BGRPN).flatten(2, 3)
    left_BTGRP = ((after_BTH * dt)[..., None] * x).unflatten(2, (groups, -1))
    added_BHPN = torch.einsum("btgrp,btgn->bgrpn", left_BTGRP, B_BTGN).flatten(1, 2)
    y_BTHP = y_BTHP + (read_BTHP * since_BTH[..., None]).to(y_BTHP.dtype)
    S = torch.addcmul(added_BHPN, S, since_BTH[:, -1, :, None, None])
    return y_BTHP, S.to(S_BHPN.dtype)


def ssd_ref(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_BTH: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    positive: bool = True,
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


class _Chunk(NamedTuple):
    """Views of the inputs and of the products of decays."""

    x: Tensor
    """BQHP."""
    dt: Tensor
    """BQH1."""
    B: Tensor
    """BGQN, as C."""
    C: Tensor
    inside: Tensor
    """BHQQ, see `Products`."""
    before: Tensor
    """BQH1."""
    after: Tensor
    """BQH1."""
    across: Tensor
    """The product over a whole chunk, BH."""

    @classmethod
    def of(cls, given: Sequence[Tensor], decays: Products, i: int, span: slice) -> _Chunk:
        """Chunk i: inputs x_BTHP, dt_BTH, a_BTH, B_BTGN, C_BTGN, D_H, products with X = B, I, H."""
        x, dt, _, B, C, _ = given
        size = span.stop - span.start
        inside, before, after = (t[:, i, :, :size] for t in decays)
        return cls(
            x=x[:, span],
            dt=dt[:, span, :, None],
            B=B[:, span].transpose(1, 2),
            C=C[:, span].transpose(1, 2),
            inside=inside[..., :size],
            before=before.mT[..., None],
            after=after.mT[..., None],
            across=decays.before[:, i, :, -1],
        )

    def leaves(self) -> Tensor:
        """What each token adds to the state at the end, without its B: BGQV."""
        return _grouped(self.x * (self.dt * self.after), self.B.shape[1])


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        x_BTHP, _, a_BTH, _, _, D_H = given
        y_BTHP = torch.empty(x_BTHP.shape, dtype=x_BTHP.dtype, device=x_BTHP.device)
        decays, levels = _products(a_BTH)
        state: Tensor | None = None
        passed: list[tuple[Tensor, Tensor] | None] = []
        for i, span in enumerate(_chunks(x_BTHP.shape[1])):
            c, y_BQHP = _Chunk.of(given, decays, i, span), y_BTHP[:, span]
            weight_BHQQ = _per_head(c.inside, c.C @ c.B.mT)
            y_BHQP = weight_BHQQ @ _heads_first(c.x, c.dt)
            torch.addcmul(y_BHQP.transpose(1, 2), c.x, D_H[:, None], out=y_BQHP)
            passed.append(None)
            if state is not None:
                read_BQHP = _ungrouped(c.C @ state, c.x)
                y_BQHP.addcmul_(read_BQHP, c.before)
                passed[i] = state, read_BQHP
            if span.stop < x_BTHP.shape[1]:
                added_BGNV = c.B.mT @ c.leaves()
                state = added_BGNV if state is None else added_BGNV + _decayed(state, c.across)
        ctx.save_for_backward(*given)
        ctx.decays, ctx.levels, ctx.passed = decays, levels, passed
        return y_BTHP

    @staticmethod
    @once_differentiable
    @in_full
    def backward(ctx: Any, dy_BTHP: Tensor) -> tuple[Tensor, ...]:
        given = ctx.saved_tensors
        x_BTHP, D_H = given[0], given[-1]
        time = x_BTHP.shape[1]
        grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in given[:-1]]
        dD_H = torch.zeros_like(D_H)
        fill = torch.zeros_like if time % _chunk(time) else torch.empty_like
        ddecays = Products(fill(ctx.decays.inside), *map(torch.zeros_like, ctx.decays[1:]))
        dstate: Tensor | None = None  # of the state at the end of the chunk
        for i, span in reversed(list(enumerate(_chunks(time)))):
            c, dy_BQHP = _Chunk.of(given, ctx.decays, i, span), dy_BTHP[:, span]
            d = _Chunk.of((*grads, dD_H), ddecays, i, span)
            du_BQHP = _grad_inside(c, d, dy_BQHP)
            if dstate is not None:
                d.B.add_(c.leaves() @ dstate.mT)
                dlate_BQHP = _ungrouped(c.B @ dstate, c.x)
                du_BQHP = torch.addcmul(du_BQHP, dlate_BQHP, c.after)
                torch.mul(dlate_BQHP.mul_(c.x).sum(-1, keepdim=True), c.dt, out=d.after)
            if ctx.passed[i] is not None:
                dstate = _grad_read(c, d, dy_BQHP, ctx.passed[i], dstate)
            torch.addcmul(du_BQHP * c.dt, dy_BQHP, D_H[:, None], out=d.x)
            torch.sum(du_BQHP * c.x, -1, keepdim=True, out=d.dt)
            dD_H += (dy_BQHP * c.x).sum(-1).sum((0, 1))
        dx_BTHP, ddt_BTH, _, dB_BTGN, dC_BTGN = grads
        da_BTH = _products_grad(ctx.levels, ddecays, time)
        return dx_BTHP, ddt_BTH, da_BTH, dB_BTGN, dC_BTGN, dD_H


def _grad_inside(c: _Chunk, d: _Chunk, dy_BQHP: Tensor) -> Tensor:
    """Fill d.inside, d.B and d.C with what tokens of one chunk give each other.

    Returns:
        The gradient of dt x, BQHP.
    """
    groups, score_BGQQ = c.B.shape[1], c.C @ c.B.mT
    dy_BHQP = dy_BQHP.transpose(1, 2).contiguous()
    dweight_BHQQ = dy_BHQP @ _heads_first(c.x, c.dt).mT
    _per_head(dweight_BHQQ, score_BGQQ, out=d.inside)
    dscore_BGQQ = dweight_BHQQ.mul_(c.inside).unflatten(1, (groups, -1)).sum(2)
    d.B.copy_(dscore_BGQQ.mT @ c.C)
    d.C.copy_(dscore_BGQQ @ c.B)
    return (_per_head(c.inside, score_BGQQ).mT @ dy_BHQP).transpose(1, 2)


def _grad_read(
    c: _Chunk,
    d: _Chunk,
    dy_BQHP: Tensor,
    passed: tuple[Tensor, Tensor],
    dend_BGNV: Tensor | None,
) -> Tensor:
    """Fill d.before and add to d.C and d.across what the state at the start of a chunk gives.

    Returns:
        The gradient of that state, BGNV.
    """
    S_BGNV, read_BQHP = passed
    d.before.copy_((dy_BQHP * read_BQHP).sum(-1, keepdim=True))
    dread_BGQV = _grouped(dy_BQHP * c.before, c.B.shape[1])
    d.C.add_(dread_BGQV @ S_BGNV.mT)
    dstart_BGNV = c.C.mT @ dread_BGQV
    if dend_BGNV is not None:
        dacross_BGV = (dend_BGNV * S_BGNV).sum(2)
        d.across.add_(dacross_BGV.view(*d.across.shape, -1).sum(-1))
        dstart_BGNV += _decayed(dend_BGNV, c.across)
    return dstart_BGNV


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

"""Causal depthwise convolution, then SiLU.

    y_t = silu(bias + sum_k filter_k x_(t - K + 1 + k)),   x_t = 0 for t < 0

A sum of K shifted copies: unlike a convolution of a library it leaves the channels innermost, as
the matrix products before and after it want them. The gradient is written out by hand.

Shapes: B batch, T time, C channels, K length of the filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.kernels.blocking import pieces

_silu, _silu_grad = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input


def conv_silu(
    x_BTC: Tensor, filter_CK: Tensor, bias_C: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """The channels of the result, cut into parts of the given sizes."""
    parts: tuple[Tensor, ...] = _ConvSiLU.apply(x_BTC, filter_CK, bias_C, sizes)
    return parts


def conv_silu_ref(
    x_BTC: Tensor, filter_CK: Tensor, bias_C: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """The same by torch's convolution."""
    channels, kernel = filter_CK.shape
    padded_BCT = F.pad(x_BTC.mT, (kernel - 1, 0))
    y_BCT = F.conv1d(padded_BCT, filter_CK[:, None], bias_C, groups=channels)
    return F.silu(y_BCT).mT.split(list(sizes), -1)


class _ConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BTC: Tensor, filter_CK: Tensor, bias_C: Tensor, sizes: Sequence[int]
    ) -> tuple[Tensor, ...]:
        lag_KC = filter_CK.mT.flip(0).contiguous()
        sum_BTC = torch.empty(x_BTC.shape, dtype=x_BTC.dtype, device=x_BTC.device)
        y_BTC = torch.empty_like(sum_BTC)
        for rows in pieces(x_BTC):
            x, s = x_BTC[rows], sum_BTC[rows]
            torch.addcmul(bias_C, x, lag_KC[0], out=s)
            for lag in range(1, min(len(lag_KC), x.shape[1])):
                s[:, lag:].addcmul_(x[:, :-lag], lag_KC[lag])
            _silu(s, out=y_BTC[rows])
        ctx.save_for_backward(x_BTC, lag_KC, sum_BTC)
        ctx.sizes = list(sizes)
        return y_BTC.split(ctx.sizes, -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, ...]:
        x_BTC, lag_KC, sum_BTC = ctx.saved_tensors
        dx_BTC = torch.empty_like(sum_BTC)
        dlag_KC, dbias_C = torch.zeros_like(lag_KC), torch.zeros_like(lag_KC[0])
        for rows in pieces(x_BTC):
            x, dx, ds = x_BTC[rows], dx_BTC[rows], torch.empty_like(sum_BTC[rows])
            product = torch.empty_like(ds)
            cut = (t.split(ctx.sizes, -1) for t in (sum_BTC[rows], ds))
            for part_dy, part_s, part_ds in zip(dy, *cut, strict=True):
                _silu_grad(part_dy[rows], part_s, grad_input=part_ds)
            torch.mul(ds, lag_KC[0], out=dx)
            dlag_KC[0] += torch.mul(ds, x, out=product).sum((0, 1))
            dbias_C += ds.sum((0, 1))
            for lag in range(1, min(len(lag_KC), x.shape[1])):
                late, early = ds[:, lag:], x[:, :-lag]
                dx[:, :-lag].addcmul_(late, lag_KC[lag])
                dlag_KC[lag] += torch.mul(late, early, out=product[:, lag:]).sum((0, 1))
        return dx_BTC, dlag_KC.flip(0).mT, dbias_C, None

"""Causal depthwise convolution, then SiLU.

    y_t = silu(bias + sum_k filter_k x_(t - K + 1 + k)),   x_t = 0 for t < 0

Channels stay innermost throughout, as the matrix products before and after want them, and the
gradient is written out by hand: torch's for a depthwise convolution is several times slower.

Shapes: B batch, T time, C channels, K length of the filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.kernels.blocking import row_pieces


def conv_silu(
    x_BTC: Tensor, filter_CK: Tensor, bias_C: Tensor | None, sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """The channels of the result, cut into parts of the given sizes."""
    parts: tuple[Tensor, ...] = _ConvSiLU.apply(  # type: ignore[no-untyped-call]
        x_BTC, filter_CK, bias_C, sizes
    )
    return parts


def conv_silu_ref(
    x_BTC: Tensor, filter_CK: Tensor, bias_C: Tensor | None, sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """The same by torch's convolution."""
    channels, kernel = filter_CK.shape
    padded_BCT = F.pad(x_BTC.mT, (kernel - 1, 0))
    y_BCT = F.conv1d(padded_BCT, filter_CK[:, None], bias_C, groups=channels)
    return F.silu(y_BCT).mT.split(list(sizes), -1)


class _ConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTC: Tensor,
        filter_CK: Tensor,
        bias_C: Tensor | None,
        sizes: Sequence[int],
    ) -> tuple[Tensor, ...]:
        padded_BTC = F.pad(x_BTC, (0, 0, filter_CK.shape[1] - 1, 0))
        sum_BTC = _convolve(padded_BTC, filter_CK, bias_C)
        ctx.save_for_backward(x_BTC, filter_CK, sum_BTC)
        ctx.sizes, ctx.biased = list(sizes), bias_C is not None
        return F.silu(sum_BTC).split(ctx.sizes, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, ...]:
        x_BTC, filter_CK, sum_BTC = ctx.saved_tensors
        batch, time, channels = x_BTC.shape
        lags = filter_CK.shape[1]
        padded_BTC = sum_BTC.new_empty(batch, time + lags - 1, channels)
        padded_BTC[:, time:] = 0
        parts = (t.split(ctx.sizes, -1) for t in (sum_BTC, padded_BTC[:, :time]))
        for part_dy, part_sum, part_dsum in zip(dy, *parts, strict=True):
            torch.ops.aten.silu_backward.grad_input(part_dy, part_sum, grad_input=part_dsum)
        dlag_KC = filter_CK.new_zeros(lags, channels)
        for rows in row_pieces(x_BTC):
            product_BTC = torch.empty_like(sum_BTC[rows])
            for lag in range(lags):
                torch.mul(padded_BTC[rows, lag : lag + time], x_BTC[rows], out=product_BTC)
                dlag_KC[lag] += product_BTC.sum((0, 1))
        dx_BTC = _convolve(padded_BTC, filter_CK.flip(1), None)
        dbias_C = padded_BTC.flatten(0, 1).sum(0) if ctx.biased else None
        return dx_BTC, dlag_KC.flip(0).mT, dbias_C, None


def _convolve(x_BTC: Tensor, filter_CK: Tensor, bias_C: Tensor | None) -> Tensor:
    """Without padding, channels innermost: as an image one pixel high in that layout."""
    image_BC1T, filter_C11K = x_BTC.mT[:, :, None], filter_CK[:, None, None]
    return F.conv2d(image_BC1T, filter_C11K, bias_C, groups=len(filter_CK))[:, :, 0].mT

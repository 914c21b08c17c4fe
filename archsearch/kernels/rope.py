"""Rotary position embedding. Su et al. 2021, arXiv 2104.09864.

Shapes: B batch, T time, H heads, K head width, R turned channels, I = R / 2 pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def rope(x_BTHK: Tensor, position: int | Tensor, theta: float, share: float = 1.0) -> Tensor:
    """Turn channel pairs (i, i + R/2) by position * theta^(-2i/R); `position` as in `Ctx`.

    R is `share` of K; the channels from R on stay as they are. Angles are at least fp32, whatever
    the type of x. Differentiable once.
    """
    time, half = x_BTHK.shape[1], int(share * x_BTHK.shape[-1]) // 2
    exact, device = torch.promote_types(x_BTHK.dtype, torch.float32), x_BTHK.device
    rate_I = theta ** (-torch.arange(half, dtype=exact, device=device) / half)
    if isinstance(position, int):
        position = torch.arange(position, position + time, device=device)
    angle_T1I = position.to(exact)[..., None, None] * rate_I
    cos_T1I, sin_T1I = angle_T1I.cos().to(x_BTHK.dtype), angle_T1I.sin().to(x_BTHK.dtype)
    y_BTHK: Tensor = _Turn.apply(x_BTHK, cos_T1I, sin_T1I)  # type: ignore[no-untyped-call]
    return y_BTHK


class _Turn(Function):
    """Each half is written where it belongs; the gradient is the turn back."""

    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, cos_T1I: Tensor, sin_T1I: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1I, sin_T1I)
        return _turned(x_BTHK, cos_T1I, sin_T1I)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTHK: Tensor) -> tuple[Tensor, None, None]:
        cos_T1I, sin_T1I = ctx.saved_tensors
        return _turned(dy_BTHK, cos_T1I, -sin_T1I), None, None


def _turned(x_BTHK: Tensor, cos_T1I: Tensor, sin_T1I: Tensor) -> Tensor:
    y_BTHK, half = x_BTHK.new_empty(x_BTHK.shape), cos_T1I.shape[-1]
    a, b, rest = x_BTHK.tensor_split([half, 2 * half], -1)
    a_out, b_out, rest_out = y_BTHK.tensor_split([half, 2 * half], -1)
    torch.mul(a, cos_T1I, out=a_out).addcmul_(b, sin_T1I, value=-1)
    torch.mul(b, cos_T1I, out=b_out).addcmul_(a, sin_T1I)
    rest_out.copy_(rest)
    return y_BTHK

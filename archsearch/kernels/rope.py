"""Rotary position embedding. Su et al. 2021, arXiv 2104.09864.

Shapes: B batch, T time, H heads, K head width, I pairs of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x_BTHK: Tensor, position: int | Tensor, theta: float) -> Tensor:
    """Turn channel pairs (i, i + K/2) by position * theta^(-2i/K); `position` as in `Ctx`.

    Angles are at least fp32, whatever the type of x.
    """
    time, half = x_BTHK.shape[1], x_BTHK.shape[-1] // 2
    exact, device = torch.promote_types(x_BTHK.dtype, torch.float32), x_BTHK.device
    rate_I = theta ** (-torch.arange(half, dtype=exact, device=device) / half)
    if isinstance(position, int):
        position = torch.arange(position, position + time, device=device)
    angle_T1I = position.to(exact)[..., None, None] * rate_I
    cos_T1I, sin_T1I = angle_T1I.cos().to(x_BTHK.dtype), angle_T1I.sin().to(x_BTHK.dtype)
    a_BTHI, b_BTHI = x_BTHK.chunk(2, -1)
    turned_a = torch.addcmul(a_BTHI * cos_T1I, b_BTHI, sin_T1I, value=-1)
    turned_b = torch.addcmul(b_BTHI * cos_T1I, a_BTHI, sin_T1I)
    return torch.cat((turned_a, turned_b), -1)

"""What the kernels compute, in plain torch: a gradient follows whatever is changed here.

Shapes: B batch, T time, H heads, K head width or length of a filter, C channels, D model width, F
hidden width, R turned channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RMSNorm = nn.RMSNorm
ACT: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}


def gated_ffn(x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, act: str) -> Tensor:
    """W_down (act(W_gate x) * W_up x); `act` is a key of `ACT`."""
    return F.linear(ACT[act](F.linear(x, gate_FD)) * F.linear(x, up_FD), down_DF)


def conv_silu(
    x_BTC: Tensor, filter_CK: Tensor, bias_C: Tensor | None, sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """A causal convolution of each channel, then SiLU; the channels cut into parts of `sizes`."""
    channels, kernel = filter_CK.shape
    padded_BCT = F.pad(x_BTC.mT, (kernel - 1, 0))
    y_BCT = F.conv1d(padded_BCT, filter_CK[:, None], bias_C, groups=channels)
    return F.silu(y_BCT).mT.split(list(sizes), -1)


def gated_norm(y: Tensor, z: Tensor, groups: int) -> Tensor:
    """RMSNorm of y * silu(z) over the channels of each group, without a gain."""
    v = (y * F.silu(z)).unflatten(-1, (groups, -1))
    return (v * torch.rsqrt(v.square().mean(-1, keepdim=True) + 1e-5)).flatten(-2)


def rope(x_BTHK: Tensor, position: int | Tensor, theta: float, share: float = 1.0) -> Tensor:
    """Turn channel pairs (i, i + R/2) by position * theta^(-2i/R); `position` as in `Ctx`.

    R is `share` of K; the channels from R on stay as they are. Angles are at least fp32, whatever
    the type of x. Su et al. 2021, arXiv 2104.09864.
    """
    time, half = x_BTHK.shape[1], int(share * x_BTHK.shape[-1]) // 2
    exact, device = torch.promote_types(x_BTHK.dtype, torch.float32), x_BTHK.device
    rate_I = theta ** (-torch.arange(half, dtype=exact, device=device) / half)
    if isinstance(position, int):
        position = torch.arange(position, position + time, device=device)
    angle_T1I = position.to(exact)[..., None, None] * rate_I
    cos_T1I, sin_T1I = angle_T1I.cos().to(x_BTHK.dtype), angle_T1I.sin().to(x_BTHK.dtype)
    a, b, rest = x_BTHK.tensor_split([half, 2 * half], -1)
    return torch.cat((a * cos_T1I - b * sin_T1I, b * cos_T1I + a * sin_T1I, rest), -1)

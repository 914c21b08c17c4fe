"""Causal convolution with a filter as long as the sequence, by FFT.

Shapes: B batch, T time, D channels, F frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_convolution(u_BDT: Tensor, h_DT: Tensor) -> Tensor:
    """y_t = sum over s up to t of h_(t-s) u_s for each channel, by FFT.

    Returns:
        y_BDT in float32 or finer. Its error is relative to the largest output of a channel.
    """
    time = u_BDT.shape[-1]
    # more than twice the length, so that the circle of the FFT brings nothing back
    size = 1 << (2 * time - 1).bit_length()
    wide = torch.promote_types(u_BDT.dtype, torch.float32)
    u_BDF, h_DF = torch.fft.rfft(u_BDT.to(wide), size), torch.fft.rfft(h_DT.to(wide), size)
    return torch.fft.irfft(u_BDF * h_DF, size)[..., :time]

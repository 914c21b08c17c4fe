"""The readout that rebuilds all tokens from the last position.

Shapes: B batch, T time, D model width, K half the width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CodeDecoder(nn.Module):
    """Rebuilds a sequence from the vector at its last position (MAD's autoencoder, 2403.17844).

    The code is added to a sinusoidal position embedding and goes through two layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.last_norm = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The decoded sequence x_BTD; only x[:, -1] is read."""
        length, width = x_BTD.shape[1:]
        rate_K = torch.arange(0, width, 2, dtype=torch.float32, device=x_BTD.device) / width
        angle_TK = torch.arange(length, device=x_BTD.device)[:, None] * 10_000**-rate_K
        position_TD = torch.stack((angle_TK.sin(), angle_TK.cos()), -1).flatten(-2)[:, :width]
        y_BTD = self.norm(x_BTD[:, -1:] + position_TD.to(x_BTD.dtype))
        return self.last_norm(F.gelu(self.outer(F.gelu(self.inner(y_BTD)))))

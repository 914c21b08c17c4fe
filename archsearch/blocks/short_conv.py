"""Gated short convolution. LFM2 technical report 2025, arXiv 2511.23404.

    B | C | x = W_in u
    y = W_out (C * conv(B * x))

conv is a causal convolution of each channel. This is the short half of H3 (arXiv 2212.14052) and
of Hyena (arXiv 2302.10866) alone: two gates, no activation, no state beyond the filter. Names and
row order are those of `Lfm2ShortConv` in transformers, which has inner width = model width.

Shapes: B batch, T time, D model width, E inner width, K taps of the filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State
from archsearch.cost import Cost
from archsearch.dims import whole
from archsearch.layers.initialisers import draw_conv


class ShortConv(Block, name="short_conv", kind="mixer", paper="2511.23404"):
    """Short causal convolution between two gates."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        conv: int = whole(1, 64, default=3)
        """Length of the causal convolution: how far one block looks back."""
        expand: int = whole(1, 8, default=1)
        """Inner width over model width."""

    roles = {
        "in_proj.weight": Role.hidden("inner", "model"),
        "conv.weight": Role.vector("inner", None, None, init=draw_conv),
        "out_proj.weight": Role.hidden("model", "inner"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        inner = config.expand * width
        self.in_proj = nn.Linear(width, 3 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, config.conv, groups=inner, bias=False)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        B_BTE, C_BTE, x_BTE = self.in_proj(x_BTD).chunk(3, -1)
        gated_BET = F.pad((B_BTE * x_BTE).mT, (self.conv.kernel_size[0] - 1, 0))
        return self.out_proj(C_BTE * self.conv(gated_BET).mT)

    def init_state(self, batch: int, context: int) -> State:
        channels, _, taps = self.conv.weight.shape
        return {"conv": self.conv.weight.new_zeros(batch, channels, taps - 1)}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        B_BE, C_BE, x_BE = self.in_proj(x_BD).chunk(3, -1)
        seen_BEK = torch.cat((state["conv"], (B_BE * x_BE)[..., None]), -1)
        y_BE = C_BE * (seen_BEK * self.conv.weight[:, 0]).sum(-1)
        return self.out_proj(y_BE), {"conv": seen_BEK[..., 1:]}

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        B_BTE, C_BTE, x_BTE = self.in_proj(x_BTD).chunk(3, -1)
        seen_BET = torch.cat((state["conv"], (B_BTE * x_BTE).mT), -1)
        y_BTD = self.out_proj(C_BTE * self.conv(seen_BET).mT)
        return y_BTD, {"conv": seen_BET[..., x_BTD.shape[1] :]}

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        E, _, K = self.conv.weight.shape
        u_BTF = x_BTD @ self.in_proj.weight.T
        B_BTE, C_BTE, v_BTE = u_BTF[..., :E], u_BTF[..., E : 2 * E], u_BTF[..., 2 * E :]
        outputs = []
        for t in range(x_BTD.shape[1]):
            y_BE = torch.zeros_like(v_BTE[:, 0])
            for lag in range(min(K, t + 1)):
                tap_E = self.conv.weight[:, 0, K - 1 - lag]
                y_BE = y_BE + tap_E * B_BTE[:, t - lag] * v_BTE[:, t - lag]
            outputs.append((C_BTE[:, t] * y_BE) @ self.out_proj.weight.T)
        return torch.stack(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        inner = config.expand * width
        params = 4 * width * inner + config.conv * inner
        return Cost(
            params=params,
            active_params=params,
            flops=2 * params,
            state_bytes=4 * (config.conv - 1) * inner,
        )

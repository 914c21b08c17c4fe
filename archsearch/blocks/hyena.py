"""Hyena of order 2: gated long convolution with an implicit filter. arXiv 2302.10866.

    v | x1 | x2 = conv(W_in u)
    y = W_out (x2 * (h * (x1 v) + d x1 v))
    h_l = MLP(l / L, cos(2 pi f_b l / L), -sin(2 pi f_b l / L)) exp(-s_c l / L)

conv is a short causal convolution of each channel, h * the long one: every token meets all that
came before. The filter is no parameter: a small network with sine activations makes its value at
lag l from the lag. L is `span`; nothing ends there, features and window go on beyond it. The slopes
s_c of the window run evenly from ln(100) / 1.5 to ln(100) / 0.3 over the channels, the frequencies
f_b from 0.0001 to bands - 1 (appendix D.3; values of the authors' code).

`forward` convolves by FFT in float32 or finer, zero-padded to more than twice the length.

Shapes: B batch, T time or lag, D model width, C channels of the short convolution (3D), M filter
width, P positional features, K taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, normal, zeros
from archsearch.cost import Cost
from archsearch.dims import pow2, real, whole
from archsearch.kernels.fft_convolution import causal_convolution
from archsearch.layers.convolution import bias_of
from archsearch.layers.initialisers import draw_conv

SLOPES = math.log(100) / 1.5, math.log(100) / 0.3
"""Decay of the window over one `span`, in the slowest and the fastest channel."""
LOWEST = 1e-4
"""Frequency of the first band, in periods per `span`."""


class ImplicitFilter(nn.Module):
    """The filter of every channel at any lag."""

    def __init__(self, width: int, config: Hyena.Config) -> None:
        super().__init__()
        self.span, self.bands, self.frequency = config.span, config.bands, config.frequency
        sizes = [2 * config.bands + 1] + [config.filter_width] * (config.filter_depth + 1)
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.out = nn.Linear(config.filter_width, width, bias=False)

    def sine_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each."""
        layers: list[Any] = list(self.layers)
        return [(layer.weight, layer.bias) for layer in layers]

    def forward(self, time: int) -> Tensor:
        """h_TD at lags 0 to time - 1, in float32 or finer.

        Made in float64: each sine enlarges a rounding error up to `frequency` times.
        """
        weight_DM = self.out.weight
        wide = torch.promote_types(weight_DM.dtype, torch.float32)
        f64, device = torch.float64, weight_DM.device
        lag_T1 = torch.arange(time, dtype=f64, device=device)[:, None] / self.span
        highest = max(self.bands - 1, LOWEST)
        bands_P = torch.linspace(LOWEST, highest, self.bands, dtype=f64, device=device)
        angle_TP = 2 * math.pi * lag_T1 * bands_P
        h = torch.cat((lag_T1, angle_TP.cos(), -angle_TP.sin()), 1)
        for weight, bias in self.sine_layers():
            h = torch.sin(self.frequency * F.linear(h, weight.to(f64), bias.to(f64)))
        slopes_D = torch.linspace(*SLOPES, len(weight_DM), dtype=f64, device=device)
        return (F.linear(h, weight_DM.to(f64)) * torch.exp(-lag_T1 * slopes_D)).to(wide)


class Hyena(Block, name="hyena", kind="mixer", paper="2302.10866"):
    """Gated long convolution with an implicit filter (Hyena, order 2)."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        filter_width: int = whole(1, 1024, default=64)
        """Width of the network that makes the filter."""
        filter_depth: int = whole(0, 4, default=2)
        """Its matrices from filter_width to filter_width."""
        frequency: float = real(0.1, 10.0, default=1.0, log=True)
        """Of its sine activations: how fast a filter may change from lag to lag."""
        bands: int = whole(1, 64, default=1)
        """Pairs of cosine and sine that tell it the lag."""
        span: int = pow2(1, 1 << 20, default=1024)
        """Lag over which the window decays; the usual context."""
        conv: int = whole(1, 16, default=3)
        """Length of the short convolution."""

    roles = {
        "in_proj.weight": Role.hidden("inner", "model"),
        "short_filter.weight": Role.vector("inner", None, None, init=draw_conv),
        "short_filter.bias": Role.vector("inner", init=zeros),
        "filter.layers.*.weight": Role.small(None, None, init=draw_conv),
        "filter.layers.*.bias": Role.small(None, init=normal(0.5)),
        "filter.out.weight": Role.embedding("model", None, init=draw_conv),
        "bias": Role.vector("model", init=normal(1.0)),
        "out_proj.weight": Role.hidden("model", "model"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.short_filter = nn.Conv1d(3 * width, 3 * width, config.conv, groups=3 * width)
        self.filter = ImplicitFilter(width, config)
        self.bias = nn.Parameter(torch.empty(width))
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        u_BCT = F.pad(self.in_proj(x_BTD).mT, (self.short_filter.kernel_size[0] - 1, 0))
        v_BDT, x1_BDT, x2_BDT = self.short_filter(u_BCT).chunk(3, 1)
        v_BDT = v_BDT * x1_BDT
        long_BDT = causal_convolution(v_BDT, self.filter(x_BTD.shape[1]).T)
        y_BDT = torch.addcmul(long_BDT, v_BDT, self.bias[:, None]) * x2_BDT
        return self.out_proj(y_BDT.mT.to(x_BTD.dtype))

    def init_state(self, batch: int, context: int) -> State:
        channels, _, taps = self.short_filter.weight.shape
        return {
            "conv": self.bias.new_zeros(batch, channels, taps - 1),
            "inputs": self.bias.new_zeros(batch, context, channels // 3),
        }

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """The filter is made again for each token; every sequence has the same."""
        seen_BCK = torch.cat((state["conv"], self.in_proj(x_BD)[..., None]), -1)
        conv_CK, bias_C = self.short_filter.weight[:, 0], bias_of(self.short_filter)
        v_BD, x1_BD, x2_BD = ((seen_BCK * conv_CK).sum(-1) + bias_C).chunk(3, -1)
        v_BD, time = v_BD * x1_BD, ctx.seen + 1
        state["inputs"][:, ctx.seen] = v_BD
        long_BD = (state["inputs"][:, :time] * self.filter(time).flip(0)).sum(1)
        y_BD = self.out_proj(((long_BD + self.bias * v_BD) * x2_BD).to(x_BD.dtype))
        return y_BD, {"conv": seen_BCK[..., 1:], "inputs": state["inputs"]}

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        time, seen = x_BTD.shape[1], ctx.seen
        u_BCT = torch.cat((state["conv"], self.in_proj(x_BTD).mT), -1)
        v_BDT, x1_BDT, x2_BDT = self.short_filter(u_BCT).chunk(3, 1)
        v_BDT = v_BDT * x1_BDT
        state["inputs"][:, seen : seen + time] = v_BDT.mT
        all_BDT = state["inputs"][:, : seen + time].mT
        long_BDT = causal_convolution(all_BDT, self.filter(seen + time).T)[..., seen:]
        y_BDT = torch.addcmul(long_BDT, v_BDT, self.bias[:, None]) * x2_BDT
        y_BTD = self.out_proj(y_BDT.mT.to(x_BTD.dtype))
        return y_BTD, {"conv": u_BCT[..., time:], "inputs": state["inputs"]}

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        K, span = self.short_filter.kernel_size[0], self.filter.span
        conv_CK, bias_C = self.short_filter.weight[:, 0], bias_of(self.short_filter)
        (_, time, D), bands = x_BTD.shape, self.filter.bands
        u_BTC = x_BTD @ self.in_proj.weight.T
        filters, inputs, outputs = [], [], []
        for t in range(time):
            f = [LOWEST + (bands - 1 - LOWEST) * b / max(bands - 1, 1) for b in range(bands)]
            angles = [2 * math.pi * f_b * t / span for f_b in f]
            features = [t / span, *map(math.cos, angles), *(-math.sin(a) for a in angles)]
            h_M = x_BTD.new_tensor(features)
            for weight, bias in self.filter.sine_layers():
                h_M = torch.sin(self.filter.frequency * (weight @ h_M + bias))
            low, high = SLOPES
            slopes = [low + (high - low) * c / max(D - 1, 1) for c in range(D)]
            window_D = x_BTD.new_tensor([math.exp(-s * t / span) for s in slopes])
            filters.append(self.filter.out.weight @ h_M * window_D)
            c_BC = bias_C + sum(
                conv_CK[:, K - 1 - i] * u_BTC[:, t - i] for i in range(min(K, t + 1))
            )
            v_BD, x1_BD, x2_BD = c_BC[:, :D], c_BC[:, D : 2 * D], c_BC[:, 2 * D :]
            inputs.append(v_BD * x1_BD)
            y_BD = self.bias * inputs[t]
            for lag in range(t + 1):
                y_BD = y_BD + filters[lag] * inputs[t - lag]
            outputs.append((x2_BD * y_BD) @ self.out_proj.weight.T)
        return torch.stack(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        """FLOPs are those of the products and the short convolution.

        The filter is made once for all sequences of a batch; half of that is counted here, as for
        a batch of two. Counters do not see an FFT: with n the power of two from 2T on, each
        costs 2.5 n log2(n); two for each channel of a sequence, one for each channel of a batch.
        """
        M, P = config.filter_width, 2 * config.bands + 1
        filters = M * (P + config.filter_depth * M + width)
        matrices, taps = 4 * width**2, 3 * width * config.conv
        biases = M * (config.filter_depth + 1) + 3 * width + width
        params = matrices + taps + filters + biases
        return Cost(
            params=params,
            active_params=params,
            flops=2 * (matrices + taps) + filters,
            state_bytes=4 * (3 * width * (config.conv - 1) + seq_len * width),
        )

"""Mamba: selective state space with a decay per channel and state (S6). arXiv 2312.00752.

    x | z = W_in u
    x <- silu(causal depthwise convolution of each channel)
    r | B | C = W_x x,   dt = softplus(W_dt r + b_dt),   A = -exp(A_log)
    h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t^T,   y_t = h_t C_t + D x_t
    o = W_out (y * silu(z))

h_t has one row per channel and one column per state. With `norm`, r, B and C each pass an RMSNorm
first (Jamba, arXiv 2403.19887). Names and row order are those of `mamba_ssm.Mamba` and, for the
norms, of Jamba in transformers. The convolution starts with bias 0, where mamba_ssm draws it.

Shapes: B batch, T time, D model width, E inner width, N state size, R rank of dt, K taps of the
convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, ones, zeros
from archsearch.cost import Cost
from archsearch.dims import choice, whole
from archsearch.kernels.selective_scan import selective_scan, selective_scan_after
from archsearch.layers.convolution import bias_of
from archsearch.layers.initialisers import draw_conv, draw_dt_bias


def draw_a_log(w_EN: Tensor, g: Generator) -> Tensor:
    """Let exp(w) be 1, 2, .. N in every channel: S4D-Real."""
    return w_EN.copy_(torch.arange(1, w_EN.shape[1] + 1, device=w_EN.device).log())


class Mamba1(Block, name="mamba1", kind="mixer", paper="2312.00752"):
    """Selective state space with one decay per channel and state (S6)."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        d_state: int = whole(1, 256, default=16)
        """State size per channel; memory at decode and time grow linearly with it."""
        expand: int = whole(1, 8, default=2)
        """Inner width over model width."""
        conv: int = whole(1, 16, default=4)
        """Length of the causal convolution."""
        dt_ratio: int = whole(1, 16, default=16)
        """Model width over the rank of the map to the step sizes."""
        norm: bool = choice(False, True, default=False)
        """Whether step size, B and C pass an RMSNorm each, as in Jamba."""

    roles = {
        "in_proj.weight": Role.hidden("inner", "model"),
        "conv1d.weight": Role.vector("inner", None, None, init=draw_conv),
        "conv1d.bias": Role.vector("inner", init=zeros),
        "x_proj.weight": Role.hidden("rank", "inner"),
        "dt_proj.weight": Role.hidden("inner", "rank", init=draw_conv),
        "dt_proj.bias": Role.vector("inner", init=draw_dt_bias),
        "A_log": Role.vector("inner", None, init=draw_a_log),
        "D": Role.vector("inner", init=ones),
        "dt_layernorm.weight": Role.vector("rank", init=ones),
        "b_layernorm.weight": Role.small(None, init=ones),
        "c_layernorm.weight": Role.small(None, init=ones),
        "out_proj.weight": Role.hidden("model", "inner"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        E, N, R = config.expand * width, config.d_state, math.ceil(width / config.dt_ratio)
        self.split = [R, N, N]
        self.in_proj = nn.Linear(width, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, config.conv, groups=E)
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        self.A_log = nn.Parameter(torch.empty(E, N))
        self.D = nn.Parameter(torch.empty(E))
        self.out_proj = nn.Linear(E, width, bias=False)
        if config.norm:
            self.dt_layernorm = nn.RMSNorm(R, eps=1e-6)
            self.b_layernorm = nn.RMSNorm(N, eps=1e-6)
            self.c_layernorm = nn.RMSNorm(N, eps=1e-6)
        self.normed = config.norm

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        x_BTE, z_BTE = self.in_proj(x_BTD).chunk(2, -1)
        x_BET = F.silu(self.conv1d(F.pad(x_BTE.mT, (self.conv1d.kernel_size[0] - 1, 0))))
        # time first: each step of the scan then reads one contiguous piece
        x_TBE = x_BET.permute(2, 0, 1).contiguous()
        dt_TBE, B_TBN, C_TBN = self._selected(x_TBE)
        y_TBE = selective_scan(x_TBE.to(dt_TBE.dtype), dt_TBE, self.A_log, B_TBN, C_TBN)
        y_BTE = torch.addcmul(y_TBE, x_TBE, self.D).transpose(0, 1) * F.silu(z_BTE)
        return self.out_proj(y_BTE.to(x_BTD.dtype))

    def _selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step size, B and C of every token, in float32 or finer."""
        wide = torch.promote_types(x.dtype, torch.float32)
        r, B, C = self.x_proj(x).split(self.split, -1)
        if self.normed:
            r, B, C = self.dt_layernorm(r), self.b_layernorm(B), self.c_layernorm(C)
        dt = F.softplus(F.linear(r, self.dt_proj.weight).to(wide) + self.dt_proj.bias)
        return dt, B.to(wide), C.to(wide)

    def init_state(self, batch: int, context: int) -> State:
        channels, _, taps = self.conv1d.weight.shape
        return {
            "conv": self.A_log.new_zeros(batch, channels, taps - 1),
            "ssm": self.A_log.new_zeros(batch, *self.A_log.shape),
        }

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        x_BE, z_BE = self.in_proj(x_BD).chunk(2, -1)
        seen_BEK = torch.cat((state["conv"], x_BE[..., None]), -1)
        conv_EK, bias_E = self.conv1d.weight[:, 0], bias_of(self.conv1d)
        x_BE = F.silu((seen_BEK * conv_EK).sum(-1) + bias_E)
        dt_BE, B_BN, C_BN = self._selected(x_BE)
        a_BEN = torch.exp(dt_BE[..., None] * -self.A_log.exp())
        h_BEN = torch.addcmul((dt_BE * x_BE)[..., None] * B_BN[:, None], a_BEN, state["ssm"])
        y_BE = (h_BEN @ C_BN[..., None])[..., 0] + self.D * x_BE
        y_BD = self.out_proj((y_BE * F.silu(z_BE)).to(x_BD.dtype))
        return y_BD, {"conv": seen_BEK[..., 1:], "ssm": h_BEN}

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        x_BTE, z_BTE = self.in_proj(x_BTD).chunk(2, -1)
        seen_BET = torch.cat((state["conv"], x_BTE.mT), -1)
        x_TBE = F.silu(self.conv1d(seen_BET)).permute(2, 0, 1).contiguous()
        dt_TBE, B_TBN, C_TBN = self._selected(x_TBE)
        given = x_TBE.to(dt_TBE.dtype), dt_TBE, self.A_log, B_TBN, C_TBN, state["ssm"]
        y_TBE, h_BEN = selective_scan_after(*given)
        y_BTE = torch.addcmul(y_TBE, x_TBE, self.D).transpose(0, 1) * F.silu(z_BTE)
        y_BTD = self.out_proj(y_BTE.to(x_BTD.dtype))
        return y_BTD, {"conv": seen_BET[..., x_BTD.shape[1] :], "ssm": h_BEN}

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        (E, N), (R, *_), K = self.A_log.shape, self.split, self.conv1d.kernel_size[0]
        conv_EK, bias_E = self.conv1d.weight[:, 0], bias_of(self.conv1d)

        def silu(x: Tensor) -> Tensor:
            return x / (1 + torch.exp(-x))

        def rms(x: Tensor, name: str) -> Tensor:
            if not self.normed:
                return x
            gain = self.get_parameter(f"{name}_layernorm.weight")
            return gain * x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)

        u_BTF = x_BTD @ self.in_proj.weight.T
        h_BEN, outputs = x_BTD.new_zeros(len(x_BTD), E, N), []
        for t in range(x_BTD.shape[1]):
            lags = range(min(K, t + 1))
            x_BE = silu(bias_E + sum(conv_EK[:, K - 1 - i] * u_BTF[:, t - i, :E] for i in lags))
            s_BF = x_BE @ self.x_proj.weight.T
            r_BR, B_BN = rms(s_BF[:, :R], "dt"), rms(s_BF[:, R : R + N], "b")
            C_BN = rms(s_BF[:, R + N :], "c")
            dt_BE = torch.log1p(torch.exp(r_BR @ self.dt_proj.weight.T + self.dt_proj.bias))
            a_BEN = torch.exp(torch.einsum("be,en->ben", dt_BE, -torch.exp(self.A_log)))
            h_BEN = a_BEN * h_BEN + torch.einsum("be,be,bn->ben", dt_BE, x_BE, B_BN)
            y_BE = torch.einsum("ben,bn->be", h_BEN, C_BN) + self.D * x_BE
            outputs.append((y_BE * silu(u_BTF[:, t, E:])) @ self.out_proj.weight.T)
        return torch.stack(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        """FLOPs are those of the products and the convolution.

        The recurrence does another 7 E N per token elementwise, which no counter of products sees:
        about a tenth of the whole at the defaults.
        """
        E, N, R = config.expand * width, config.d_state, math.ceil(width / config.dt_ratio)
        matrices = 3 * width * E + E * (R + 2 * N) + R * E
        norms = (R + 2 * N) * config.norm
        params = matrices + E * (config.conv + 1) + E + E * N + E + norms
        return Cost(
            params=params,
            active_params=params,
            flops=2 * matrices + 2 * config.conv * E + 2 * E * N,
            state_bytes=4 * E * (N + config.conv - 1),
        )

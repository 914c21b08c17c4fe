"""Hydra: a state space in both directions, as one matrix. Hwang et al. 2024, arXiv 2407.09941.

    z | x | B | C | B' | C' | dt | dt' = W_in u
    x, B, C, B', C' <- silu(centred depthwise convolution of each channel)
    y_t = past_(t-1) + future_(t+1) + (W_D x_t + D) x_t
    o = W_out (silu(z) * norm * RMSNorm(y))

past_t is what Mamba-2 (arXiv 2405.21060) reads at t from the tokens up to t, with B, C and dt;
future_t is the same from the last token down to t, with B', C' and dt'. Both share x, A, dt_bias.
Each is shifted by one token, which leaves the diagonal to the last term alone: the whole is a
quasiseparable matrix. The norm comes before the gate.

Every output meets every token, so there is nothing to decode with: for tasks that see the whole
sequence, and not for a model that predicts the next token.

Shapes: B batch, T time, D model width, E inner width, H heads, P head width, G groups, N state
size, C channels of the convolution (E + 4GN).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, divisors, ones, require, zeros
from archsearch.cost import Cost
from archsearch.dims import whole
from archsearch.kernels.ssd import flops, ssd
from archsearch.layers.convolution import bias_of
from archsearch.layers.initialisers import draw_conv, draw_dt_bias


class Hydra(
    Block, name="hydra", kind="mixer", paper="2407.09941", causal=False, bidirectional=True
):
    """State space in both directions (quasiseparable matrix mixer)."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        d_state: int = whole(1, 1024, default=64)
        """State size per channel and direction."""
        head_dim: int = whole(1, 1024, default=32)
        """Channels that share one decay."""
        expand: int = whole(1, 8, default=2)
        """Inner width over model width."""
        conv: int = whole(1, 15, step=2, default=7)
        """Length of the centred convolution."""
        groups: int = whole(1, 64, default=1)
        """Sets of B and C, each shared by heads / groups heads."""

    roles = {
        "in_proj.weight": Role.hidden("inner", "model"),
        "conv1d.weight": Role.vector("inner", None, None, init=draw_conv),
        "conv1d.bias": Role.vector("inner", init=zeros),
        "dt_bias": Role.vector("heads", init=draw_dt_bias),
        "A_log": Role.vector("heads", init=zeros),
        "D": Role.vector("heads", init=ones),
        "fc_D.weight": Role.hidden("heads", "inner"),
        "norm.weight": Role.vector("inner", init=ones),
        "out_proj.weight": Role.hidden("model", "inner"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        inner, bc = config.expand * width, 2 * config.groups * config.d_state
        self.heads, self.groups = inner // config.head_dim, config.groups
        self.split = [inner, bc, bc]
        channels = inner + 2 * bc
        self.in_proj = nn.Linear(width, inner + channels + 2 * self.heads, bias=False)
        self.conv1d = nn.Conv1d(
            channels, channels, config.conv, groups=channels, padding=config.conv // 2
        )
        self.dt_bias, self.A_log, self.D = (nn.Parameter(torch.empty(self.heads)) for _ in range(3))
        self.fc_D = nn.Linear(inner, self.heads, bias=False)
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        inner, channels = self.split[0], sum(self.split)
        z_BTE, c_BTC, dt_BTF = self.in_proj(x_BTD).split([inner, channels, 2 * self.heads], -1)
        x_BTE, *both_BTC = F.silu(self.conv1d(c_BTC.mT)).mT.split(self.split, -1)
        # both directions as one batch: the second half is the sequence read backwards
        x_BTHP = x_BTE.unflatten(-1, (self.heads, -1))
        x2_BTHP = torch.cat((x_BTHP, x_BTHP.flip(1)))
        dt_BTH = F.softplus(_backwards(*dt_BTF.chunk(2, -1)) + self.dt_bias)
        bc_BTGN = _backwards(*both_BTC).unflatten(-1, (2 * self.groups, -1))
        B_BTGN, C_BTGN = bc_BTGN.chunk(2, 2)
        a_BTH = (dt_BTH * -self.A_log.exp()).exp()
        y_BTHP = ssd(x2_BTHP, dt_BTH, a_BTH, B_BTGN, C_BTGN, torch.zeros_like(self.D))
        past_BTHP, future_BTHP = F.pad(y_BTHP[:, :-1], (0, 0, 0, 0, 1, 0)).chunk(2)
        diagonal_BTH = self.fc_D(x_BTE) + self.D
        y_BTHP = past_BTHP + future_BTHP.flip(1) + diagonal_BTH[..., None] * x_BTHP
        return self.out_proj(self.norm(y_BTHP.flatten(2).to(z_BTE.dtype)) * F.silu(z_BTE))

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        (E, two_GN, _), H, G = self.split, self.heads, self.groups
        (batch, time, _), K, C = x_BTD.shape, self.conv1d.kernel_size[0], sum(self.split)
        u_BTF = x_BTD @ self.in_proj.weight.T
        z_BTE, c_BTC, dt_BTF = u_BTF[..., :E], u_BTF[..., E : E + C], u_BTF[..., E + C :]
        convolved = []
        for t in range(time):
            value_BC = bias_of(self.conv1d).expand(batch, -1)
            for k in range(K):
                if 0 <= t + k - K // 2 < time:
                    tap_C = self.conv1d.weight[:, 0, k]
                    value_BC = value_BC + tap_C * c_BTC[:, t + k - K // 2]
            convolved.append(value_BC * torch.sigmoid(value_BC))
        c_BTC = torch.stack(convolved, 1)
        x_BTHP = c_BTC[..., :E].reshape(batch, time, H, E // H)
        y_BTHP = (c_BTC[..., :E] @ self.fc_D.weight.T + self.D)[..., None] * x_BTHP
        rows = [y_BTHP[:, t] for t in range(time)]
        for direction, order in enumerate((range(time), range(time - 1, -1, -1))):
            first = E + direction * two_GN
            B_BTGN, C_BTGN = (
                c_BTC[..., first : first + two_GN].reshape(batch, time, 2, G, -1).unbind(2)
            )
            S_BHPN = x_BTD.new_zeros(batch, H, E // H, B_BTGN.shape[-1])
            read_BHP = torch.zeros_like(rows[0])
            for t in order:
                rows[t] = rows[t] + read_BHP
                dt_BH = dt_BTF[:, t, direction * H : (direction + 1) * H] + self.dt_bias
                dt_BH = torch.log1p(torch.exp(dt_BH))
                a_BH = torch.exp(-torch.exp(self.A_log) * dt_BH)
                B_BHN, C_BHN = (v[:, t].repeat_interleave(H // G, 1) for v in (B_BTGN, C_BTGN))
                added_BHPN = torch.einsum("bh,bhp,bhn->bhpn", dt_BH, x_BTHP[:, t], B_BHN)
                S_BHPN = a_BH[..., None, None] * S_BHPN + added_BHPN
                read_BHP = torch.einsum("bhpn,bhn->bhp", S_BHPN, C_BHN)
        y_BTE = torch.stack(rows, 1).reshape(batch, time, E)
        y_BTE = y_BTE / torch.sqrt((y_BTE**2).mean(-1, keepdim=True) + 1e-5) * self.norm.weight
        return (y_BTE * z_BTE * torch.sigmoid(z_BTE)) @ self.out_proj.weight.T

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        """There is no decode state."""
        E, GN = config.expand * width, config.groups * config.d_state
        H, channels = E // config.head_dim, E + 4 * GN
        matrices = width * (E + channels + 2 * H) + E * H + E * width
        params = matrices + channels * (config.conv + 1) + 3 * H + E
        return Cost(
            params=params,
            active_params=params,
            flops=2 * matrices
            + 2 * config.conv * channels
            + 2 * flops(seq_len, E, GN, config.d_state) / seq_len,
            state_bytes=0,
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        inner, info = config.expand * width, Hydra.info
        why = f"does not divide the inner width {inner} ({config.expand} x {width})"
        require(info, "head_dim", config.head_dim, divisors(inner), why)
        heads = inner // config.head_dim
        why = f"does not divide the {heads} heads (inner width {inner} / {config.head_dim})"
        require(info, "groups", config.groups, divisors(heads), why)


def _backwards(first_BTF: Tensor, second_BTF: Tensor) -> Tensor:
    """One batch of both, the second with its last token first."""
    return torch.cat((first_BTF, second_BTF.flip(1)))

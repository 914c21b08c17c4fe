"""Mamba-2: selective state space with one decay per head (SSD). Dao and Gu 2024, arXiv 2405.21060.

    z | x | B | C | dt = W_in u
    x, B, C <- silu(causal depthwise convolution of each channel)
    dt = softplus(dt + dt_bias),   a_t = exp(-exp(A_log) dt_t)
    S_t = a_t S_(t-1) + dt_t B_t x_t^T,   y_t = S_t^T C_t + D x_t
    o = W_out (norm * RMSNorm(y * silu(z)))

With `neg_eigval`, a_t = 2 exp(-exp(A_log) dt_t) - 1 and all else as it is (Grazzi et al. 2024,
arXiv 2411.12537): a layer can then follow the parity of a bit string, which one with decays above 0
cannot.

The RMSNorm runs over the channels of each group, after the gate; head h reads B and C of group
h // (H / G). Names and row order are those of `mamba_ssm.Mamba2`. The convolution starts with
bias 0, where mamba_ssm draws it as the weights.

Shapes: B batch, T time, D model width, E inner width, H heads, P head width, G groups, N state
size, C channels of the convolution (E + 2GN).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, divisors, ones, require, zeros
from archsearch.cost import Cost
from archsearch.dims import choice, whole
from archsearch.kernels.conv_silu import conv_silu
from archsearch.kernels.gated_norm import gated_norm, gated_norm_ref
from archsearch.kernels.ssd import flops, ssd, ssd_after
from archsearch.layers.convolution import bias_of
from archsearch.layers.initialisers import draw_conv, draw_dt_bias


def draw_a_log(w: Tensor, g: Generator) -> Tensor:
    """Let exp(w) be uniform in [1, 16]."""
    return w.uniform_(1, 16, generator=g).log_()


class Mamba2(Block, name="mamba2", kind="mixer", paper="2405.21060"):
    """Selective state space with one decay per head (SSD)."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        d_state: int = whole(1, 1024, default=64)
        """State size per channel; memory at decode grows linearly with it."""
        head_dim: int = whole(1, 1024, default=32)
        """Channels that share one decay."""
        expand: int = whole(1, 8, default=2)
        """Inner width over model width."""
        conv: int = whole(1, 16, default=4)
        """Length of the causal convolution."""
        groups: int = whole(1, 64, default=1)
        """Sets of B and C, each shared by heads / groups heads."""
        neg_eigval: bool = choice(False, True, default=False)
        """Decays from -1 to 1 in place of 0 to 1, so that a state can change its sign."""

    roles = {
        "in_proj.weight": Role.hidden("inner", "model"),
        "conv1d.weight": Role.vector("inner", None, None, init=draw_conv),
        "conv1d.bias": Role.vector("inner", init=zeros),
        "dt_bias": Role.vector("heads", init=draw_dt_bias),
        "A_log": Role.vector("heads", init=draw_a_log),
        "D": Role.vector("heads", init=ones),
        "norm.weight": Role.vector("inner", init=ones),
        "out_proj.weight": Role.hidden("model", "inner"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        inner = config.expand * width
        self.heads, self.groups = inner // config.head_dim, config.groups
        self.neg_eigval = config.neg_eigval
        bc = config.groups * config.d_state
        self.split = [inner, inner + 2 * bc, self.heads], [inner, bc, bc]
        channels = inner + 2 * bc
        self.in_proj = nn.Linear(width, inner + channels + self.heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, config.conv, groups=channels)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        # three products: to cut the result of one would cost a pass over its gradient
        rows = self.in_proj.weight.split(self.split[0])
        z_BTE, xBC_BTC, dt_BTH = (F.linear(x_BTD, weight) for weight in rows)
        filter_CK, bias_C = self.conv1d.weight[:, 0], bias_of(self.conv1d)
        x_BTE, B_BTC, C_BTC = conv_silu(xBC_BTC, filter_CK, bias_C, self.split[1])
        x_BTHP = x_BTE.unflatten(-1, (self.heads, -1))
        B_BTGN, C_BTGN = (x.unflatten(-1, (self.groups, -1)) for x in (B_BTC, C_BTC))
        dt_BTH = F.softplus(dt_BTH + self.dt_bias)
        decay_BTH, positive = self._decay(dt_BTH), not self.neg_eigval
        y_BTHP = ssd(x_BTHP, dt_BTH, decay_BTH, B_BTGN, C_BTGN, self.D, positive)
        y_BTE = gated_norm(y_BTHP.flatten(-2), z_BTE, self.groups)
        # the gain goes into the matrix: two passes less over a (B, T, E) tensor
        return F.linear(y_BTE, self.out_proj.weight * self.norm.weight)

    def init_state(self, batch: int, context: int) -> State:
        channels, _, kernel = self.conv1d.weight.shape
        P, N = (self.split[1][0] // self.heads, self.split[1][1] // self.groups)
        return {
            "conv": self.A_log.new_zeros(batch, channels, kernel - 1),
            "ssm": self.A_log.new_zeros(batch, self.heads, P, N),
        }

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        z_BE, xBC_BC, dt_BH = self.in_proj(x_BD).split(self.split[0], -1)
        seen_BCK = torch.cat((state["conv"], xBC_BC[..., None]), -1)
        xBC_BC = F.silu(self.conv1d(seen_BCK)[..., 0])
        x_BE, B_BC, C_BC = xBC_BC.split(self.split[1], -1)
        x_BHP = x_BE.unflatten(-1, (self.heads, -1))
        shared = self.heads // self.groups
        B_BHN, C_BHN = (
            x.unflatten(-1, (self.groups, -1)).repeat_interleave(shared, 1) for x in (B_BC, C_BC)
        )
        dt_BH = F.softplus(dt_BH + self.dt_bias)
        a_BH11 = self._decay(dt_BH)[..., None, None]
        added_BHPN = (dt_BH[..., None] * x_BHP)[..., None] * B_BHN[:, :, None]
        ssm_BHPN = torch.addcmul(added_BHPN, state["ssm"], a_BH11)
        y_BHP = (ssm_BHPN @ C_BHN[..., None])[..., 0] + self.D[:, None] * x_BHP
        y_BE = gated_norm_ref(y_BHP.flatten(-2), z_BE, self.groups) * self.norm.weight
        return self.out_proj(y_BE), {"conv": seen_BCK[..., 1:], "ssm": ssm_BHPN}

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        z_BTE, xBC_BTC, dt_BTH = self.in_proj(x_BTD).split(self.split[0], -1)
        seen_BCT = torch.cat((state["conv"], xBC_BTC.mT), -1)
        x_BTE, B_BTC, C_BTC = F.silu(self.conv1d(seen_BCT)).mT.split(self.split[1], -1)
        x_BTHP = x_BTE.unflatten(-1, (self.heads, -1))
        B_BTGN, C_BTGN = (x.unflatten(-1, (self.groups, -1)) for x in (B_BTC, C_BTC))
        dt_BTH = F.softplus(dt_BTH + self.dt_bias)
        decay_BTH, positive = self._decay(dt_BTH), not self.neg_eigval
        y_BTHP, ssm_BHPN = ssd_after(
            x_BTHP, dt_BTH, decay_BTH, B_BTGN, C_BTGN, self.D, state["ssm"], positive
        )
        y_BTE = gated_norm_ref(y_BTHP.flatten(-2), z_BTE, self.groups) * self.norm.weight
        return self.out_proj(y_BTE), {"conv": seen_BCT[..., x_BTD.shape[1] :], "ssm": ssm_BHPN}

    def _decay(self, dt: Tensor) -> Tensor:
        a = (dt * -self.A_log.exp()).exp()
        return 2 * a - 1 if self.neg_eigval else a

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        (E, C, H), (_, GN, _), G = self.split[0], self.split[1], self.groups
        K, group_H = self.conv1d.kernel_size[0], [h // (H // G) for h in range(H)]
        conv_CK, bias_C = self.conv1d.weight[:, 0], bias_of(self.conv1d)

        def silu(x: Tensor) -> Tensor:
            return x / (1 + torch.exp(-x))

        u_BTF = x_BTD @ self.in_proj.weight.T
        S_BHPN = x_BTD.new_zeros(len(x_BTD), H, E // H, GN // G)
        outputs = []
        for t in range(x_BTD.shape[1]):
            z_BE, dt_BH = u_BTF[:, t, :E], u_BTF[:, t, E + C :]
            lags = range(min(K, t + 1))
            c_BC = silu(
                bias_C + sum(conv_CK[:, K - 1 - i] * u_BTF[:, t - i, E : E + C] for i in lags)
            )
            x_BHP = c_BC[:, :E].reshape(-1, H, E // H)
            B_BHN = c_BC[:, E : E + GN].reshape(-1, G, GN // G)[:, group_H]
            C_BHN = c_BC[:, E + GN :].reshape(-1, G, GN // G)[:, group_H]
            dt_BH = torch.log1p(torch.exp(dt_BH + self.dt_bias))
            a_BH = torch.exp(-torch.exp(self.A_log) * dt_BH)
            a_BH = 2 * a_BH - 1 if self.neg_eigval else a_BH
            input_BHPN = torch.einsum("bh,bhp,bhn->bhpn", dt_BH, x_BHP, B_BHN)
            S_BHPN = a_BH[:, :, None, None] * S_BHPN + input_BHPN
            y_BHP = torch.einsum("bhpn,bhn->bhp", S_BHPN, C_BHN) + self.D[:, None] * x_BHP
            y_BGE = (y_BHP.reshape(-1, E) * silu(z_BE)).reshape(-1, G, E // G)
            y_BGE = y_BGE / torch.sqrt((y_BGE**2).mean(-1, keepdim=True) + 1e-5)
            outputs.append(self.out_proj.weight @ (self.norm.weight * y_BGE.reshape(-1, E)).T)
        return torch.stack(outputs).permute(2, 0, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        E, GN, H = _sizes(width, config)
        channels = E + 2 * GN
        matrices = width * (E + channels + H) + E * width
        params = matrices + channels * (config.conv + 1) + 3 * H + E
        return Cost(
            params=params,
            active_params=params,
            flops=2 * matrices
            + 2 * config.conv * channels
            + flops(seq_len, E, GN, config.d_state) / seq_len,
            state_bytes=4 * (E * config.d_state + (config.conv - 1) * channels),
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        inner, info = config.expand * width, Mamba2.info
        why = f"does not divide the inner width {inner} ({config.expand} x {width})"
        require(info, "head_dim", config.head_dim, divisors(inner), why)
        heads = inner // config.head_dim
        why = f"does not divide the {heads} heads (inner width {inner} / {config.head_dim})"
        require(info, "groups", config.groups, divisors(heads), why)


def _sizes(width: int, config: Mamba2.Config) -> tuple[int, int, int]:
    """Inner width, rows of B, heads."""
    inner = config.expand * width
    return inner, config.groups * config.d_state, inner // config.head_dim

"""Gated DeltaNet and DeltaNet: linear attention that overwrites instead of adding.

Yang et al. 2024, arXiv 2412.06464, eq. 10; without decay 2406.06484; strengths up to 2: 2411.12537.

    q | k | v | z | b | a = W_in x
    q, k, v <- silu(causal depthwise convolution of each channel);   q, k <- q / |q|, k / |k|
    beta = s sigmoid(b),   alpha = exp(-exp(A_log) softplus(a + dt_bias))
    S_t = alpha_t (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T,   y_t = S_t^T q_t / sqrt(K)
    o = W_out (norm * RMSNorm(y) * silu(z))

s is 1 or 2; with 2 the factor I - beta k k^T may have a negative eigenvalue. |x| is
sqrt(sum x^2 + 1e-6). The RMSNorm runs over each head, before the gate; its gain is shared by all
heads. With `decay: false` alpha is 1, with `gate: false` z is left out. Value head h reads key head
h // R.

`forward` cuts the sequence into chunks (2412.06464, section 3.3). In a chunk that starts at state S
all writes are U - W S, where U and W solve one unit triangular system. So the states at the
borders follow S' = M S + N with one small matrix product each, and all else is done for all chunks
at once.

Shapes: B batch, T time, D model width, G key heads, H = G R value heads, K key width, V value
width, C channels of the convolution (2GK + HV), I chunks, Q time in a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, divisors, ones, require
from archsearch.cost import Cost
from archsearch.dims import choice, whole
from archsearch.kernels.chunked_recurrence import (
    FORGOTTEN,
    border_states,
    states_after,
    unit_solve,
)
from archsearch.kernels.conv_silu import conv_silu
from archsearch.kernels.dispatch import op
from archsearch.kernels.precision import in_full
from archsearch.layers.initialisers import draw_conv, draw_dt_bias

CHUNK = 32
"""Longest chunk. It has no effect on values; 16 and 64 are slower on a CPU by a tenth."""
NORM_EPS = 1e-6


def draw_decay(w: Tensor, g: Generator) -> Tensor:
    """Let exp(w) be uniform in [0.01, 16]."""
    return w.uniform_(0.01, 16, generator=g).log_()


class GatedDeltaNet(Block, name="gated_deltanet", kind="mixer", paper="2412.06464"):
    """Linear attention with the delta rule and a decay per head."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        head_dim: int = whole(8, 256, default=32)
        """Key channels per head."""
        expand_k: float = choice(0.5, 0.75, 1.0, 2.0, default=1.0)
        """Key channels of all heads together, over model width."""
        expand_v: int = whole(1, 8, default=1)
        """Value channels over key channels, per head; memory at decode grows linearly with it."""
        value_heads: int = whole(1, 16, default=1)
        """Value heads that share one key head, each with a state of its own."""
        conv: int = whole(1, 16, default=4)
        """Length of the causal convolution."""
        beta: int = choice(1, 2, default=1)
        """Largest writing strength; 2 allows negative eigenvalues."""
        decay: bool = choice(True, False, default=True)
        """Whether the state decays (Gated DeltaNet) or not (DeltaNet)."""
        gate: bool = choice(True, False, default=True)
        """Whether the output is gated."""

    roles = {
        "in_proj.weight": Role.hidden("inner", "model"),
        "conv1d.weight": Role.vector("inner", None, None, init=draw_conv),
        "dt_bias": Role.vector("heads", init=draw_dt_bias),
        "A_log": Role.vector("heads", init=draw_decay),
        "norm.weight": Role.small(None, init=ones),
        "out_proj.weight": Role.hidden("model", "inner"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.key_heads, self.heads, inner = _sizes(width, config)
        self.channels = [*[self.key_heads * config.head_dim] * 2, inner]
        rows = [sum(self.channels), inner * config.gate, self.heads, self.heads * config.decay]
        self.rows = rows
        self.in_proj = nn.Linear(width, sum(rows), bias=False)
        self.conv1d = nn.Conv1d(rows[0], rows[0], config.conv, groups=rows[0], bias=False)
        if config.decay:
            self.dt_bias = nn.Parameter(torch.empty(self.heads))
            self.A_log = nn.Parameter(torch.empty(self.heads))
        self.norm = nn.RMSNorm(inner // self.heads, eps=NORM_EPS)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        qkv_BTC, z_BTE, b_BTH, a_BTH = self.in_proj(x_BTD).split(self.rows, -1)
        (qkv_BTC,) = conv_silu(qkv_BTC, self.conv1d.weight[:, 0], None, self.rows[:1])
        y_BTHV = gated_delta_rule(*self._heads(qkv_BTC), *self._strengths(b_BTH, a_BTH))
        return self._out(y_BTHV, z_BTE)

    def init_state(self, batch: int, context: int) -> State:
        weight, (_, _, inner) = self.conv1d.weight, self.channels
        memory = batch, self.heads, self.config.head_dim, inner // self.heads
        exact = torch.promote_types(weight.dtype, torch.float32)
        return {
            "conv": weight.new_zeros(batch, len(weight), self.config.conv - 1),
            "memory": weight.new_zeros(memory, dtype=exact),
        }

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        qkv_BC, z_BE, b_BH, a_BH = self.in_proj(x_BD).split(self.rows, -1)
        seen_BCK = torch.cat((state["conv"], qkv_BC[..., None]), -1)
        q_BGK, k_BGK, v_BHV = self._heads(F.silu(self.conv1d(seen_BCK)[..., 0]))
        log_a_BH, beta_BH = self._strengths(b_BH, a_BH)
        q_BHK, k_BHK = (x.repeat_interleave(self.config.value_heads, 1) for x in (q_BGK, k_BGK))
        S_BHKV = state["memory"] * log_a_BH.exp()[..., None, None]
        wrong_BHV = v_BHV - (k_BHK[:, :, None] @ S_BHKV)[:, :, 0]
        write_BHV = beta_BH[..., None] * wrong_BHV
        S_BHKV = torch.addcmul(S_BHKV, k_BHK[..., None], write_BHV[:, :, None])
        y_BHV = (q_BHK[:, :, None] @ S_BHKV)[:, :, 0]
        return self._out(y_BHV, z_BE), {"conv": seen_BCK[..., 1:], "memory": S_BHKV}

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        qkv_BTC, z_BTE, b_BTH, a_BTH = self.in_proj(x_BTD).split(self.rows, -1)
        seen_BCT = torch.cat((state["conv"], qkv_BTC.mT), -1)
        given = *self._heads(F.silu(self.conv1d(seen_BCT)).mT), *self._strengths(b_BTH, a_BTH)
        y_BTHV, S_BHKV = gated_delta_rule_after(*given, state["memory"])
        after = {"conv": seen_BCT[..., x_BTD.shape[1] :], "memory": S_BHKV}
        return self._out(y_BTHV, z_BTE), after

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys of length 1 (queries scaled) and values, by head, in at least fp32."""
        exact = torch.promote_types(qkv.dtype, torch.float32)
        q, k, v = qkv.to(exact).split(self.channels, -1)
        K = self.config.head_dim
        q, k = (x.unflatten(-1, (self.key_heads, K)) for x in (q, k))
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        return q * K**-0.5, k, v.unflatten(-1, (self.heads, -1))

    def _strengths(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Log decay and writing strength of each head, in at least fp32."""
        exact = torch.promote_types(b.dtype, torch.float32)
        beta = self.config.beta * torch.sigmoid(b.to(exact))
        if not self.config.decay:
            return torch.zeros_like(beta), beta
        return F.softplus(a.to(exact) + self.dt_bias) * -self.A_log.to(exact).exp(), beta

    def _out(self, y: Tensor, z: Tensor) -> Tensor:
        """From the heads to the model: normalise, gate, project."""
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + NORM_EPS)
        y = y.to(self.out_proj.weight.dtype).flatten(-2)
        if self.config.gate:
            y = y * F.silu(z)
        # the gain goes into the matrix: a pass less over a (B, T, HV) tensor
        return F.linear(y, self.out_proj.weight * self.norm.weight.repeat(self.heads))

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        config, (batch, time, _) = self.config, x_BTD.shape
        K, H, J, R = config.head_dim, self.heads, config.conv, config.value_heads
        V, GK = config.expand_v * K, H // R * K

        def silu(x: Tensor) -> Tensor:
            return x / (1 + torch.exp(-x))

        u_BTF = x_BTD @ self.in_proj.weight.T
        conv_CJ = self.conv1d.weight[:, 0]
        S = {h: x_BTD.new_zeros(batch, K, V) for h in range(H)}
        eye_KK = torch.eye(K, dtype=x_BTD.dtype, device=x_BTD.device)
        outputs = []
        for t in range(time):
            lags = range(min(J, t + 1))
            taps = [conv_CJ[:, J - 1 - i] * u_BTF[:, t - i, : len(conv_CJ)] for i in lags]
            c_BC = silu(torch.stack(taps).sum(0))
            gates_BF, mixed = u_BTF[:, t, len(conv_CJ) :], []
            z_BE, rest_BF = gates_BF.split([H * V * config.gate, H * (1 + config.decay)], 1)
            for h in range(H):
                at = h // R * K
                q_BK, k_BK = c_BC[:, at : at + K], c_BC[:, GK + at : GK + at + K]
                q_BK = q_BK / (q_BK**2).sum(1, keepdim=True).add(1e-6).sqrt()
                k_BK = k_BK / (k_BK**2).sum(1, keepdim=True).add(1e-6).sqrt()
                v_BV = c_BC[:, 2 * GK + h * V : 2 * GK + (h + 1) * V]
                beta_B11 = config.beta / (1 + torch.exp(-rest_BF[:, h, None, None]))
                turn_BKK = eye_KK - beta_B11 * k_BK[:, :, None] * k_BK[:, None]
                if config.decay:
                    dt_B = torch.log1p(torch.exp(rest_BF[:, H + h] + self.dt_bias[h]))
                    turn_BKK = turn_BKK * torch.exp(-dt_B * self.A_log[h].exp())[:, None, None]
                S[h] = turn_BKK @ S[h] + beta_B11 * k_BK[:, :, None] * v_BV[:, None]
                y_BV = torch.einsum("bk,bkv->bv", q_BK, S[h]) / K**0.5
                y_BV = y_BV / ((y_BV**2).mean(1, keepdim=True) + NORM_EPS).sqrt()
                y_BV = y_BV * self.norm.weight
                mixed.append(y_BV * silu(z_BE[:, h * V : (h + 1) * V]) if config.gate else y_BV)
            outputs.append(torch.cat(mixed, 1) @ self.out_proj.weight.T)
        return torch.stack(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        G, H, E = _sizes(width, config)
        K, V, C = config.head_dim, E // H, 2 * G * config.head_dim + E
        matrices = width * (C + E * config.gate + H * (1 + config.decay)) + E * width
        params = matrices + config.conv * C + 2 * H * config.decay + V
        chunks, Q = _chunks(seq_len)
        flops: float = 4 * G * Q * K + 2 * H * Q * V
        if chunks > 1:
            flops += H * 2 * K * (K + 3 * V) + H * 2 * K * K * V * (chunks - 1) / (chunks * Q)
        return Cost(
            params=params,
            active_params=params,
            flops=2 * matrices + 2 * config.conv * C + flops * chunks * Q / seq_len,
            state_bytes=4 * (H * K * V + (config.conv - 1) * C),
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        keys = config.expand_k * width
        legal = divisors(int(keys)) if keys.is_integer() else []
        why = f"does not divide the key width {keys:g} ({config.expand_k:g} x {width})"
        require(GatedDeltaNet.info, "head_dim", config.head_dim, legal, why)


@op("gated_deltanet")
@in_full
def gated_delta_rule(
    q_BTGK: Tensor, k_BTGK: Tensor, v_BTHV: Tensor, log_a_BTH: Tensor, beta_BTH: Tensor
) -> Tensor:
    """y_t = S_t^T q_t with S_t = a_t (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T, S_(-1) = 0.

    Stable for keys of length at most 1 and beta in [0, 2], however much keys resemble each other.

    Args:
        q_BTGK: Queries, scaled by the caller.
        k_BTGK: Keys.
        v_BTHV: Values; H is a multiple of G.
        log_a_BTH: Log decay, at most 0.
        beta_BTH: Writing strength.

    Returns:
        y_BTHV.
    """
    return _delta_rule(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, beta_BTH, None)[0]


@in_full
def gated_delta_rule_after(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_a_BTH: Tensor,
    beta_BTH: Tensor,
    S_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """`gated_delta_rule` that begins with a state: y_BTHV, and the state that it ends with."""
    return _delta_rule(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, beta_BTH, S_BHKV)


def _delta_rule(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_a_BTH: Tensor,
    beta_BTH: Tensor,
    start_BHKV: Any,
) -> tuple[Tensor, Any]:
    """The outputs and, if a state to start from is given, the state that they end with."""
    (time, _, K), V = q_BTGK.shape[1:], v_BTHV.shape[-1]
    chunks, Q = _chunks(time)
    if tail := chunks * Q - time:
        # beta = 0 and log a = 0: what is padded changes no state
        q_BTGK, k_BTGK, v_BTHV = (
            F.pad(x, (0, 0) * 2 + (0, tail)) for x in (q_BTGK, k_BTGK, v_BTHV)
        )
        log_a_BTH, beta_BTH = (F.pad(x, (0, 0, 0, tail)) for x in (log_a_BTH, beta_BTH))
    q_BIGQK, k_BIGQK, v_BIHQV, log_a_BIHQ, beta_BIHQ = (
        x.unflatten(1, (chunks, Q)).transpose(2, 3).contiguous()
        for x in (q_BTGK, k_BTGK, v_BTHV, log_a_BTH, beta_BTH)
    )
    sum_BIHQ = log_a_BIHQ.clamp(min=FORGOTTEN).cumsum(-1)
    future_QQ = sum_BIHQ.new_full((Q, Q), -math.inf).triu(1)
    decay_BIHQQ = (sum_BIHQ[..., None] + (-sum_BIHQ)[..., None, :]).add_(future_QQ).exp_()
    since_BIHQ1, beta_BIHQ1 = sum_BIHQ.exp()[..., None], beta_BIHQ[..., None]
    # the solver reads the part below the diagonal alone
    overlap_BIHQQ = _per_head(k_BIGQK @ k_BIGQK.mT, decay_BIHQQ * beta_BIHQ1)
    weight_BIHQQ = _per_head(q_BIGQK @ k_BIGQK.mT, decay_BIHQQ)
    written_BIHQF = v_BIHQV * beta_BIHQ1
    if chunks == 1 and start_BHKV is None:
        y_BIHQV = weight_BIHQQ @ unit_solve(overlap_BIHQQ, written_BIHQF)
        return y_BIHQV.transpose(2, 3).flatten(1, 2), None
    read_BIHQK = _per_head(k_BIGQK, since_BIHQ1 * beta_BIHQ1)
    solved_BIHQF = unit_solve(overlap_BIHQQ, torch.cat((written_BIHQF, read_BIHQK), -1))
    U_BIHQV, W_BIHQK = solved_BIHQF.split([V, K], -1)
    last_BIH1 = sum_BIHQ[..., -1:]
    kept_BIHQK = _per_head(k_BIGQK, (last_BIH1 - sum_BIHQ).exp()[..., None])
    N_BIHKV, lost_BIHKK = (kept_BIHQK.mT @ solved_BIHQF).split([V, K], -1)
    M_BIHKK = torch.diag_embed(last_BIH1.exp().expand(-1, -1, -1, K)) - lost_BIHKK
    if start_BHKV is None:
        starts_BIHKV, end_BHKV = border_states(M_BIHKK[:, :-1], N_BIHKV[:, :-1]), None
    else:
        starts_BIHKV, end_BHKV = states_after(M_BIHKK, N_BIHKV, start_BHKV)
    reads_BIHFK = torch.cat((_per_head(q_BIGQK, since_BIHQ1), W_BIHQK), -2)
    carried_BIHQV, known_BIHQV = (reads_BIHFK @ starts_BIHKV).split(Q, -2)
    y_BIHQV = carried_BIHQV + weight_BIHQQ @ (U_BIHQV - known_BIHQV)
    return y_BIHQV.transpose(2, 3).flatten(1, 2)[:, :time], end_BHKV


def _per_head(x_BIGQ: Tensor, factor_BIHQ: Tensor) -> Tensor:
    """Multiply x of key heads by a factor of value heads; both have one more axis."""
    key_heads = x_BIGQ.shape[2]
    if key_heads == factor_BIHQ.shape[2]:
        return x_BIGQ * factor_BIHQ
    grouped = factor_BIHQ.unflatten(2, (key_heads, -1))
    return (x_BIGQ[:, :, :, None] * grouped).flatten(2, 3)


def _chunks(time: int) -> tuple[int, int]:
    """How many chunks of which length, with as little padding as can be."""
    count = math.ceil(time / CHUNK)
    return count, math.ceil(time / count)


def _sizes(width: int, config: GatedDeltaNet.Config) -> tuple[int, int, int]:
    """Key heads, value heads, inner width."""
    key_heads = int(config.expand_k * width) // config.head_dim
    heads = key_heads * config.value_heads
    return key_heads, heads, heads * config.expand_v * config.head_dim

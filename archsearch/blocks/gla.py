"""Gated linear attention, and linear attention with one decay per head, a fixed one or none.

Yang et al. 2023, arXiv 2312.06635, eq. 3 and section 4.4; without decay Katharopoulos et al. 2020,
arXiv 2006.16236; fixed decays: RetNet, Sun et al. 2023, arXiv 2307.08621.

    q | k | v | z = W_in x
    q, k, v <- silu(causal depthwise convolution of each channel)   where `conv` is not none
    q, k <- phi(q), phi(k)
    S_t = diag(a_t) S_(t-1) + k_t v_t^T,   y_t = S_t^T q_t / sqrt(K)
    o = W_out (norm * RMSNorm(y) * silu(z))

    decay: channel   a = sigmoid(W_2 W_1 x + b)^(1/16), one number per key channel, W_1 of low rank
    decay: head      a = sigmoid(W x + b)^(1/16), one number per head
    decay: fixed     a = 1 - exp(r), r evenly spaced over heads from log(1/32) to log(1/512)
    decay: none      a = 1

The RMSNorm runs over each head, before the gate; its gain is shared by all heads. Linear attention
divides y by a positive number per token and head: the RMSNorm does so in any case, so nothing does
it twice.

`forward` works in chunks (section 4.2). One decay per head is the scan of Mamba-2. With one per
channel a decay between two tokens is split in two factors, each with an exponent at most 0, by a
border between them: the border of the two halves of the chunk, of the halves of each half, and so
on down to tiles of 4 tokens.

Shapes: B batch, T time, D model width, H heads, K key width, V value width, I chunks, Q time in a
chunk, N tiles, P time in a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, divisors, fan_in, ones, require, zeros
from archsearch.cost import Cost
from archsearch.dims import choice, whole
from archsearch.kernels.chunked_recurrence import FORGOTTEN
from archsearch.kernels.conv_silu import conv_silu
from archsearch.kernels.dispatch import op
from archsearch.kernels.precision import in_full
from archsearch.kernels.ssd import flops, ssd, ssd_after
from archsearch.layers.initialisers import draw_conv

CHUNK = 32
"""Longest chunk with a decay per channel, a power of two. It has no effect on values.

On a CPU 16 is a tenth faster for heads of 16 keys and a third slower for heads of 128.
"""
TILE = 4
"""Longest tile: with no decay below `FORGOTTEN`, exponents in it are from -60 to 60."""
SLOWER = 1 / 16
"""Power of the decay (tau in the paper), which keeps it near 1."""
NORM_EPS = 1e-5


class GLA(Block, name="gla", kind="mixer", paper="2312.06635"):
    """Gated linear attention, RetNet-like or plain linear attention."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        head_dim: int = whole(4, 256, default=16)
        """Key channels per head."""
        expand_k: float = choice(0.5, 1.0, 2.0, default=0.5)
        """Key channels of all heads together, over model width."""
        expand_v: int = whole(1, 8, default=2)
        """Value channels over key channels, per head; memory at decode grows linearly with it."""
        decay: str = choice("channel", "head", "fixed", "none", default="channel")
        """What the state decays by: a number per key channel or head, a constant, nothing."""
        rank: int = whole(1, 256, default=16, when=("decay", "channel"))
        """Rank of the map from the input to the decays."""
        conv: int | None = whole(2, 16, default=None, optional=True)
        """Length of a causal convolution of queries, keys and values; none is as published."""
        feature: str = choice("none", "elu", "relu", default="none")
        """Feature map of queries and keys: none, 1 + elu, relu."""
        gate: bool = choice(True, False, default=True)
        """Whether the output is gated."""

    roles = {
        "in_proj.weight": Role.hidden("inner", "model"),
        "conv1d.weight": Role.vector("inner", None, None, init=draw_conv),
        "low.weight": Role.hidden(None, "model"),
        "channel_decay.weight": Role.embedding("inner", None, init=fan_in),
        "channel_decay.bias": Role.vector("inner", init=zeros),
        "head_decay.weight": Role.hidden("heads", "model"),
        "head_decay.bias": Role.vector("heads", init=zeros),
        "norm.weight": Role.small(None, init=ones),
        "out_proj.weight": Role.hidden("model", "inner"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.heads, keys, inner = _sizes(width, config)
        self.rows = [keys, keys, inner]
        channels = sum(self.rows)
        self.in_proj = nn.Linear(width, channels + inner * config.gate, bias=False)
        if config.conv:
            self.conv1d = nn.Conv1d(channels, channels, config.conv, groups=channels, bias=False)
        if config.decay == "channel":
            self.low = nn.Linear(width, config.rank, bias=False)
            self.channel_decay = nn.Linear(config.rank, keys)
        elif config.decay == "head":
            self.head_decay = nn.Linear(width, self.heads)
        self.norm = nn.RMSNorm(inner // self.heads, eps=NORM_EPS)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        qkv_BTC, z_BTE = self.in_proj(x_BTD).tensor_split([sum(self.rows)], -1)
        if self.config.conv:
            filter_CJ = self.conv1d.weight[:, 0]
            (qkv_BTC,) = conv_silu(qkv_BTC, filter_CJ, None, [sum(self.rows)])
        q_BTHK, k_BTHK, v_BTHV = self._heads(qkv_BTC)
        log_a = self._log_decay(x_BTD)
        if self.config.decay == "channel":
            y_BTHV = gated_linear_attention(q_BTHK, k_BTHK, v_BTHV, log_a)
        else:
            log_a_BTH = log_a[..., 0].expand(v_BTHV.shape[:-1])
            one_BTH, no_H = torch.ones_like(log_a_BTH), log_a_BTH.new_zeros(self.heads)
            y_BTHV = ssd(v_BTHV, one_BTH, log_a_BTH.exp(), k_BTHK, q_BTHK, no_H)
        return self._out(y_BTHV, z_BTE)

    def init_state(self, batch: int, context: int) -> State:
        weight, (keys, _, inner) = self.out_proj.weight, self.rows
        shape = batch, self.heads, keys // self.heads, inner // self.heads
        exact = torch.promote_types(weight.dtype, torch.float32)
        state = {"memory": weight.new_zeros(shape, dtype=exact)}
        if self.config.conv:
            state["conv"] = weight.new_zeros(batch, sum(self.rows), self.config.conv - 1)
        return state

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        qkv_BC, z_BE = self.in_proj(x_BD).tensor_split([sum(self.rows)], -1)
        after = {}
        if self.config.conv:
            seen_BCJ = torch.cat((state["conv"], qkv_BC[..., None]), -1)
            qkv_BC, after["conv"] = F.silu(self.conv1d(seen_BCJ)[..., 0]), seen_BCJ[..., 1:]
        q_BHK, k_BHK, v_BHV = self._heads(qkv_BC)
        added_BHKV = k_BHK[..., None] * v_BHV[:, :, None]
        a_BHK1 = self._log_decay(x_BD).exp()[..., None]
        after["memory"] = S_BHKV = torch.addcmul(added_BHKV, state["memory"], a_BHK1)
        return self._out((q_BHK[:, :, None] @ S_BHKV)[:, :, 0], z_BE), after

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        qkv_BTC, z_BTE = self.in_proj(x_BTD).tensor_split([sum(self.rows)], -1)
        after = {}
        if self.config.conv:
            seen_BCT = torch.cat((state["conv"], qkv_BTC.mT), -1)
            qkv_BTC, after["conv"] = (
                F.silu(self.conv1d(seen_BCT)).mT,
                seen_BCT[..., len(x_BTD[0]) :],
            )
        q_BTHK, k_BTHK, v_BTHV = self._heads(qkv_BTC)
        log_a, S_BHKV = self._log_decay(x_BTD), state["memory"]
        if self.config.decay == "channel":
            y_BTHV, S_BHKV = gated_attention_after(q_BTHK, k_BTHK, v_BTHV, log_a, S_BHKV)
        else:
            a_BTH = log_a[..., 0].exp().expand(v_BTHV.shape[:-1])
            one_BTH, no_H = torch.ones_like(a_BTH), a_BTH.new_zeros(self.heads)
            given = v_BTHV, one_BTH, a_BTH, k_BTHK, q_BTHK, no_H, S_BHKV.mT
            y_BTHV, S_BHVK = ssd_after(*given)
            S_BHKV = S_BHVK.mT
        return self._out(y_BTHV, z_BTE), after | {"memory": S_BHKV}

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled), keys and values by head, in at least fp32."""
        exact = torch.promote_types(qkv.dtype, torch.float32)
        each = qkv.to(exact).split(self.rows, -1)
        q, k, v = (u.unflatten(-1, (self.heads, -1)) for u in each)
        if self.config.feature == "elu":
            q, k = F.elu(q) + 1, F.elu(k) + 1
        elif self.config.feature == "relu":
            q, k = F.relu(q), F.relu(k)
        return q * q.shape[-1] ** -0.5, k, v

    def _log_decay(self, x: Tensor) -> Tensor:
        """Log decay of each key channel, or with a last axis of 1 of each head."""
        exact = torch.promote_types(x.dtype, torch.float32)
        if self.config.decay == "channel":
            logits = self.channel_decay(self.low(x)).unflatten(-1, (self.heads, -1))
        elif self.config.decay == "head":
            logits = self.head_decay(x)[..., None]
        elif self.config.decay == "fixed":
            spread = torch.linspace(math.log(1 / 32), math.log(1 / 512), self.heads, dtype=exact)
            return torch.log1p(-spread.exp()).to(x.device)[:, None]
        else:
            return x.new_zeros(self.heads, 1, dtype=exact)
        return F.logsigmoid(logits.to(exact)) * SLOWER

    def _out(self, y: Tensor, z: Tensor) -> Tensor:
        """From the heads to the model: normalise, gate, project."""
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + NORM_EPS)
        y = y.to(self.out_proj.weight.dtype).flatten(-2)
        if self.config.gate:
            y = y * F.silu(z)
        # the gain goes into the matrix: a pass less over a (B, T, HV) tensor
        return F.linear(y, self.out_proj.weight * self.norm.weight.repeat(self.heads))

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        config, H, (batch, time, _) = self.config, self.heads, x_BTD.shape
        keys, _, inner = self.rows
        u_BTF, (K, V) = x_BTD @ self.in_proj.weight.T, (keys // H, inner // H)
        C, J = 2 * keys + inner, config.conv

        def sigmoid(x: Tensor) -> Tensor:
            return 1 / (1 + torch.exp(-x))

        def phi(x: Tensor) -> Tensor:
            if config.feature == "elu":
                return torch.where(x > 0, x + 1, torch.exp(x))
            return torch.where(x > 0, x, 0.0) if config.feature == "relu" else x

        def decay(x_BD: Tensor, h: int) -> Tensor:
            if config.decay == "channel":
                weight, bias = self.channel_decay.weight, self.channel_decay.bias
                logits_BK = (x_BD @ self.low.weight.T) @ weight.T + bias
                return sigmoid(logits_BK[:, h * K : (h + 1) * K, None]) ** (1 / 16)
            if config.decay == "head":
                logit_B = x_BD @ self.head_decay.weight[h] + self.head_decay.bias[h]
                return sigmoid(logit_B[:, None, None]) ** (1 / 16)
            share = h / (H - 1) if H > 1 else 0.0
            rate = math.exp(math.log(1 / 32) * (1 - share) + math.log(1 / 512) * share)
            return x_BD.new_full((), 1 - rate if config.decay == "fixed" else 1.0)

        S, outputs = {h: x_BTD.new_zeros(batch, K, V) for h in range(H)}, []
        for t in range(time):
            c_BC, mixed = u_BTF[:, t, :C], []
            if J:
                weight_CJ, lags = self.conv1d.weight[:, 0], range(min(J, t + 1))
                taps = [weight_CJ[:, J - 1 - i] * u_BTF[:, t - i, :C] for i in lags]
                c_BC = torch.stack(taps).sum(0)
                c_BC = c_BC * sigmoid(c_BC)
            for h in range(H):
                q_BK, k_BK = (phi(c_BC[:, at + h * K : at + (h + 1) * K]) for at in (0, keys))
                v_BV = c_BC[:, 2 * keys + h * V : 2 * keys + (h + 1) * V]
                S[h] = decay(x_BTD[:, t], h) * S[h] + k_BK[:, :, None] * v_BV[:, None]
                y_BV = (q_BK[:, :, None] * S[h]).sum(1) / K**0.5
                y_BV = y_BV / ((y_BV**2).mean(1, keepdim=True) + NORM_EPS).sqrt()
                if config.gate:
                    z_BV = u_BTF[:, t, C + h * V : C + (h + 1) * V]
                    y_BV = y_BV * z_BV * sigmoid(z_BV)
                mixed.append(y_BV * self.norm.weight)
            outputs.append(torch.cat(mixed, 1) @ self.out_proj.weight.T)
        return torch.stack(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        H, keys, inner = _sizes(width, config)
        matrices, biases = width * (2 * keys + inner * (2 + config.gate)), 0
        if config.decay == "channel":
            matrices, biases = matrices + config.rank * (width + keys), keys
            chunks, Q = _chunks(seq_len)
            pairs = (Q + min(Q, TILE)) / 2
            borders = 4 * inner * keys // H * (chunks - 1) / chunks
            scan = (2 * pairs * (keys + inner) + borders) * chunks * Q / seq_len
        else:
            if config.decay == "head":
                matrices, biases = matrices + H * width, H
            scan = flops(seq_len, inner, keys, keys // H) / seq_len
        channels, lag = 2 * keys + inner, config.conv or 1
        taps = channels * lag if config.conv else 0
        params = matrices + biases + inner // H + taps
        return Cost(
            params=params,
            active_params=params,
            flops=2 * (matrices + taps) + scan,
            state_bytes=4 * (keys * inner // H + (lag - 1) * channels),
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        keys = config.expand_k * width
        legal = divisors(int(keys)) if keys.is_integer() else []
        why = f"does not divide the key width {keys:g} ({config.expand_k:g} x {width})"
        require(GLA.info, "head_dim", config.head_dim, legal, why)


@op("gla")
@in_full
def gated_linear_attention(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_a_BTHK: Tensor
) -> Tensor:
    """y_t = S_t^T q_t with S_t = diag(exp(log_a_t)) S_(t-1) + k_t v_t^T and S_(-1) = 0.

    Finite and exact whatever the decays.

    Returns:
        y_BTHV.
    """
    time = q_BTHK.shape[1]
    chunks, Q = _chunks(time)
    given = [q_BTHK, k_BTHK, v_BTHV, log_a_BTHK]
    if tail := chunks * Q - time:
        given = [F.pad(x, (0, 0) * 2 + (0, tail)) for x in given]
    q_BIHQK, k_BIHQK, v_BIHQV, log_a_BIHQK = (
        x.unflatten(1, (chunks, Q)).transpose(2, 3).contiguous() for x in given
    )
    sum_BIHQK = log_a_BIHQK.clamp(min=FORGOTTEN).cumsum(-2)
    y_BIHQV = _within(q_BIHQK, k_BIHQK, v_BIHQV, sum_BIHQK)
    if chunks > 1:
        last_BIH1K = sum_BIHQK[:, :-1, :, -1:]
        kept_BIHQK = k_BIHQK[:, :-1] * (last_BIH1K - sum_BIHQK[:, :-1]).exp()
        added_BIHKV = kept_BIHQK.mT @ v_BIHQV[:, :-1]
        carry_BIHK1 = last_BIH1K[:, 1:].exp().mT
        starts = [added_BIHKV[:, 0]]
        # unbind: indexing in the loop would make the backward pass quadratic in chunks
        for added, carry in zip(added_BIHKV.unbind(1)[1:], carry_BIHK1.unbind(1), strict=True):
            starts.append(torch.addcmul(added, starts[-1], carry))
        read_BIHQK = q_BIHQK[:, 1:] * sum_BIHQK[:, 1:].exp()
        carried_BIHQV = read_BIHQK @ torch.stack(starts, 1)
        y_BIHQV = torch.cat((y_BIHQV[:, :1], y_BIHQV[:, 1:] + carried_BIHQV), 1)
    return y_BIHQV.transpose(2, 3).flatten(1, 2)[:, :time]


@in_full
def gated_attention_after(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_a_BTHK: Tensor, S_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """`gated_linear_attention` after a state: y_BTHV, and the state that it ends with."""
    y_BTHV = gated_linear_attention(q_BTHK, k_BTHK, v_BTHV, log_a_BTHK)
    since_BTHK = log_a_BTHK.cumsum(1)
    left_BTHK = k_BTHK * (since_BTHK[:, -1:] - since_BTHK).exp()
    read_BTHV = torch.einsum("bthk,bhkv->bthv", q_BTHK * since_BTHK.exp(), S_BHKV)
    added_BHKV = torch.einsum("bthk,bthv->bhkv", left_BTHK, v_BTHV)
    S_BHKV = torch.addcmul(added_BHKV, S_BHKV, since_BTHK[:, -1, ..., None].exp())
    return y_BTHV + read_BTHV, S_BHKV


def _within(q_BIHQK: Tensor, k_BIHQK: Tensor, v_BIHQV: Tensor, sum_BIHQK: Tensor) -> Tensor:
    """What tokens of a chunk read from each other; `sum` is the log decay since its start."""
    size = min(TILE, q_BIHQK.shape[-2])
    whole = [q_BIHQK, k_BIHQK, v_BIHQV, sum_BIHQK]
    q, k, v, total = (x.unflatten(-2, (-1, size)) for x in whole)
    # the middle of a tile is a border that half of its pairs lie on one side of
    since = total - total[..., (size - 1) // 2, :].unsqueeze(-2)
    weight_NPP = ((q * since.exp()) @ (k * (-since).exp()).mT).tril()
    y_NPV = weight_NPP @ v
    while y_NPV.shape[-3] > 1:
        (q_0, q_1), (k_0, k_1), (v_0, v_1), (s_0, s_1) = (  # noqa: RUF059
            x.unflatten(-2, (-1, 2, size)).unbind(-3) for x in whole
        )
        border = s_0[..., -1:, :]
        weight_NPP = (q_1 * (s_1 - border).exp()) @ (k_0 * (border - s_0).exp()).mT
        y_0, y_1 = y_NPV.unflatten(-3, (-1, 2)).unbind(-3)
        y_NPV = torch.cat((y_0, y_1 + weight_NPP @ v_0), -2)
        size *= 2
    return y_NPV.squeeze(-3)


def _chunks(time: int) -> tuple[int, int]:
    """How many chunks of which length, a power of two."""
    Q = min(CHUNK, 1 << (time - 1).bit_length())
    return math.ceil(time / Q), Q


def _sizes(width: int, config: GLA.Config) -> tuple[int, int, int]:
    """Heads, key width and inner width of all heads."""
    heads = int(config.expand_k * width) // config.head_dim
    keys = heads * config.head_dim
    return heads, keys, keys * config.expand_v

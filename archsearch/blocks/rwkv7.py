"""RWKV-7 time mixing: a delta rule with a decay and a rate of rewriting per channel.

Peng et al. 2025, arXiv 2503.14456, section 4.

    x_i = x_t + mu_i (x_(t-1) - x_t)   for each of r, w, k, v, a, g, with x_(-1) = 0
    r, k, v = W_r x_r, W_k x_k, W_v x_v
    w = exp(-e^(-1/2) sigmoid(w0 + B_w tanh(A_w x_w))),   eta = sigmoid(a0 + B_a A_a x_a)
    g = B_g sigmoid(A_g x_g)
    kap = (k * k_k) / |k * k_k| in each head,   k <- k (1 + (eta - 1) k_a)
    S_t = (diag(w_t) - (kap_t * eta_t) kap_t^T) S_(t-1) + k_t v_t^T
    y_t = GroupNorm(S_t^T r_t) + (r_t . (r_k * k_t)) v_t,   o = W_o (g * y)

What is removed is read from the state before it decays. The norm has 1e-5 K in its root.

Two things differ from the published layer. That mixes v with the v of the first layer of the
model; a block sees no other layer, so it is left out. The starts are those of its first layer, but
for W_o, which starts as other matrices do and not at 0, and for the B, which are uniform where it
has orthogonal ones. The A start at 0 in both.

`forward` cuts the sequence into chunks. All removals in a chunk that starts at state S are
U + W S, where U and W solve one unit triangular system. Since w > 0.54, a decay between two tokens
of a chunk may be split in two factors at the middle of the chunk.

Shapes: B batch, T time, D model width, H heads, K head width of keys and of values (written V), R
rank, I chunks, Q time in a chunk, P either of two sets of Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Init, Role, State, divisors, ones, require, zeros
from archsearch.cost import Cost
from archsearch.dims import whole
from archsearch.kernels.chunked_recurrence import border_states, states_after, unit_solve
from archsearch.kernels.dispatch import op
from archsearch.kernels.precision import in_full

CHUNK = 32
"""Longest chunk. It has no effect on values; at 32 a factor of a decay is at most e^10."""
FASTEST = -math.exp(-0.5)
"""Lowest log decay."""
NORM_EPS = 1e-5
"""Of the norm over each head, times the channels of a head: 64e-5 for 64, as published."""
SHIFTS = "rwkvag"
"""What each row of the token shift is for."""


def draw_shift(w: Tensor, g: Generator) -> Tensor:
    """1 - (i / D)^p for channel i, p being 0.2, 0.9, 0.7, 0.7, 0.9, 0.2 for r, w, k, v, a, g."""
    power_61 = w.new_tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])[:, None]
    return w.copy_(1 - (torch.arange(w.shape[1], device=w.device) / w.shape[1]) ** power_61)


def draw_decay(w: Tensor, g: Generator) -> Tensor:
    """From -6.5 in the first channel, the slowest, to -1.5 in the last."""
    share_D = torch.arange(len(w), device=w.device) / max(1, len(w) - 1)
    return w.copy_(-6.5 + 5 * share_D**0.85)


def uniform(bound: float) -> Init:
    """Draw from U(-b, b) with b = bound / sqrt(fan_in)."""

    def draw(w: Tensor, g: Generator) -> Tensor:
        b = bound * w.shape[1] ** -0.5
        return w.uniform_(-b, b, generator=g)

    return draw


def constant(value: float) -> Init:
    """Fill with a number."""
    return lambda w, g: w.fill_(value)


class Heads(NamedTuple):
    """What a token brings to each head, in at least fp32: (B, T, H, K) or (B, H, K)."""

    r: Tensor
    """Receptance, which other papers call queries."""
    log_w: Tensor
    """Log decay, from `FASTEST` to 0."""
    k: Tensor
    """Keys."""
    v: Tensor
    """Values."""
    kap: Tensor
    """What is removed, of length at most 1."""
    gone: Tensor
    """kap times the share of it that is removed, in [0, 1]."""


class RWKV7(Block, name="rwkv7", kind="mixer", paper="2503.14456"):
    """Delta rule with a decay and a rewriting rate per channel, and token shift."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        head_dim: int = whole(8, 256, default=32)
        """Channels per head; memory at decode grows linearly with it."""
        decay_rank: int = whole(1, 512, default=32)
        """Rank of the map from the input to the decays."""
        rate_rank: int = whole(1, 512, default=32)
        """Rank of the map from the input to the rates of rewriting."""
        gate_rank: int = whole(1, 512, default=32)
        """Rank of the map from the input to the output gate."""

    roles = {
        "shift": Role.vector(None, "model", init=draw_shift),
        "receptance.weight": Role.hidden("heads", "model", init=uniform(0.5)),
        "key.weight": Role.hidden("heads", "model", init=uniform(0.05)),
        "value.weight": Role.hidden("heads", "model", init=uniform(0.5)),
        "output.weight": Role.hidden("model", "heads"),
        "decay_low.weight": Role.hidden(None, "model", init=zeros),
        "decay_high.weight": Role.embedding("heads", None, init=uniform(0.1)),
        "decay_high.bias": Role.vector("heads", init=draw_decay),
        "rate_low.weight": Role.hidden(None, "model", init=zeros),
        "rate_high.weight": Role.embedding("heads", None, init=uniform(0.1)),
        "rate_high.bias": Role.vector("heads", init=zeros),
        "gate_low.weight": Role.hidden(None, "model", init=zeros),
        "gate_high.weight": Role.embedding("heads", None, init=uniform(0.1)),
        "k_k": Role.vector("heads", init=constant(0.85)),
        "k_a": Role.vector("heads", init=ones),
        "r_k": Role.vector("heads", None, init=zeros),
        "norm.weight": Role.vector("heads", init=ones),
        "norm.bias": Role.vector("heads", init=zeros),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.heads = heads = width // config.head_dim
        self.shift = nn.Parameter(torch.empty(len(SHIFTS), width))
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.decay_low = nn.Linear(width, config.decay_rank, bias=False)
        self.decay_high = nn.Linear(config.decay_rank, width)
        self.rate_low = nn.Linear(width, config.rate_rank, bias=False)
        self.rate_high = nn.Linear(config.rate_rank, width)
        self.gate_low = nn.Linear(width, config.gate_rank, bias=False)
        self.gate_high = nn.Linear(config.gate_rank, width, bias=False)
        self.k_k = nn.Parameter(torch.empty(width))
        self.k_a = nn.Parameter(torch.empty(width))
        self.r_k = nn.Parameter(torch.empty(heads, config.head_dim))
        self.norm = nn.GroupNorm(heads, width, eps=NORM_EPS * config.head_dim)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        before_BTD = F.pad(x_BTD, (0, 0, 1, 0))[:, :-1]
        heads, g_BTD = self._project(x_BTD, before_BTD)
        return self._out(weighted_delta_rule(heads), heads, g_BTD)

    def init_state(self, batch: int, context: int) -> State:
        width, (heads, K) = len(self.k_k), self.r_k.shape
        exact = torch.promote_types(self.k_k.dtype, torch.float32)
        return {
            "before": self.k_k.new_zeros(batch, width),
            "memory": self.k_k.new_zeros(batch, heads, K, K, dtype=exact),
        }

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        heads, g_BD = self._project(x_BD, state["before"])
        S_BHKV, w_BHK1 = state["memory"], heads.log_w.exp()[..., None]
        added_BHKV = heads.k[..., None] * heads.v[:, :, None]
        removed_BHKV = heads.gone[..., None] * (heads.kap[:, :, None] @ S_BHKV)
        S_BHKV = torch.addcmul(added_BHKV - removed_BHKV, S_BHKV, w_BHK1)
        y_BHV = (heads.r[:, :, None] @ S_BHKV)[:, :, 0]
        return self._out(y_BHV, heads, g_BD), {"before": x_BD, "memory": S_BHKV}

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        before_BTD = torch.cat((state["before"][:, None], x_BTD[:, :-1]), 1)
        heads, g_BTD = self._project(x_BTD, before_BTD)
        y_BTHV, S_BHKV = weighted_delta_rule_after(heads, state["memory"])
        return self._out(y_BTHV, heads, g_BTD), {"before": x_BTD[:, -1], "memory": S_BHKV}

    def _project(self, x: Tensor, before: Tensor) -> tuple[Heads, Tensor]:
        """All that the heads need, and the gate."""
        change = before - x
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(x, change, m) for m in self.shift.unbind())
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        w = self.decay_high(torch.tanh(self.decay_low(x_w)))
        a = self.rate_high(self.rate_low(x_a))
        g = self.gate_high(torch.sigmoid(self.gate_low(x_g)))
        exact = torch.promote_types(x.dtype, torch.float32)
        r, w, k, v, a = (u.to(exact) for u in (r, w, k, v, a))
        rate, log_w = torch.sigmoid(a), FASTEST * torch.sigmoid(w)
        kap, k = k * self.k_k, torch.addcmul(k, k * (rate - 1), self.k_a.to(exact))
        r, log_w, k, v, kap, rate = (
            u.unflatten(-1, (self.heads, -1)) for u in (r, log_w, k, v, kap, rate)
        )
        kap = kap * torch.rsqrt(kap.square().sum(-1, keepdim=True) + 1e-12)
        return Heads(r, log_w, k, v, kap, kap * rate), g

    def _out(self, y: Tensor, heads: Heads, g: Tensor) -> Tensor:
        """From the heads to the model: normalise, add the bonus, gate, project."""
        bonus = (heads.r * heads.k * self.r_k).sum(-1, keepdim=True) * heads.v
        y = F.layer_norm(y, y.shape[-1:], eps=self.norm.eps).flatten(-2)
        y = torch.addcmul(bonus.flatten(-2) + self.norm.bias, y, self.norm.weight.to(y.dtype))
        return self.output(y.to(g.dtype) * g)

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        H, (batch, _, width) = self.heads, x_BTD.shape
        K, before_BD = width // H, torch.zeros_like(x_BTD[:, 0])

        def sigmoid(x: Tensor) -> Tensor:
            return 1 / (1 + torch.exp(-x))

        S, outputs = {h: x_BTD.new_zeros(batch, K, K) for h in range(H)}, []
        for x_BD in x_BTD.unbind(1):
            x = {c: x_BD + self.shift[i] * (before_BD - x_BD) for i, c in enumerate(SHIFTS)}
            r_BD, k_BD = x["r"] @ self.receptance.weight.T, x["k"] @ self.key.weight.T
            v_BD = x["v"] @ self.value.weight.T
            low_BR = torch.tanh(x["w"] @ self.decay_low.weight.T)
            speed_BD = sigmoid(low_BR @ self.decay_high.weight.T + self.decay_high.bias)
            low_BR = x["a"] @ self.rate_low.weight.T
            eta_BD = sigmoid(low_BR @ self.rate_high.weight.T + self.rate_high.bias)
            g_BD = sigmoid(x["g"] @ self.gate_low.weight.T) @ self.gate_high.weight.T
            own_BD, k_BD = k_BD * self.k_k, k_BD * (1 + (eta_BD - 1) * self.k_a)
            mixed = []
            for h in range(H):
                at = slice(h * K, (h + 1) * K)
                kap_BK = own_BD[:, at]
                kap_BK = kap_BK / ((kap_BK**2).sum(1, keepdim=True) + 1e-12).sqrt()
                turn_BKK = torch.diag_embed(torch.exp(-speed_BD[:, at] / math.e**0.5))
                turn_BKK = turn_BKK - torch.einsum("bk,bl->bkl", kap_BK * eta_BD[:, at], kap_BK)
                S[h] = turn_BKK @ S[h] + k_BD[:, at, None] * v_BD[:, None, at]
                y_BV = (r_BD[:, at, None] * S[h]).sum(1)
                y_BV = y_BV - y_BV.mean(1, keepdim=True)
                y_BV = y_BV / ((y_BV**2).mean(1, keepdim=True) + K * 1e-5).sqrt()
                y_BV = y_BV * self.norm.weight[at] + self.norm.bias[at]
                bonus_B1 = (r_BD[:, at] * k_BD[:, at] * self.r_k[h]).sum(1, keepdim=True)
                mixed.append(y_BV + bonus_B1 * v_BD[:, at])
            outputs.append((g_BD * torch.cat(mixed, 1)) @ self.output.weight.T)
            before_BD = x_BD
        return torch.stack(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        K, ranks = config.head_dim, config.decay_rank + config.rate_rank + config.gate_rank
        matrices = 4 * width**2 + 2 * width * ranks
        params = matrices + (len(SHIFTS) + 2 + 3 + 2) * width
        chunks, Q = _chunks(seq_len)
        scan: float = 14 * Q
        if chunks > 1:
            scan += 10 * K + 2 * K * K * (chunks - 1) / (chunks * Q)
        return Cost(
            params=params,
            active_params=params,
            flops=2 * matrices + scan * width * chunks * Q / seq_len,
            state_bytes=4 * width * (K + 1),
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        why = f"does not divide the width {width}"
        require(RWKV7.info, "head_dim", config.head_dim, divisors(width), why)


@op("rwkv7")
@in_full
def weighted_delta_rule(heads: Heads) -> Tensor:
    """y_t = S_t^T r_t with S_t = (diag(w_t) - gone_t kap_t^T) S_(t-1) + k_t v_t^T and S_(-1) = 0.

    Returns:
        y_BTHV.
    """
    return _delta_rule(heads, None)[0]


@in_full
def weighted_delta_rule_after(heads: Heads, S_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """`weighted_delta_rule` that begins with a state: y_BTHV, and the state that it ends with."""
    return _delta_rule(heads, S_BHKV)


def _delta_rule(heads: Heads, start_BHKV: Any) -> tuple[Tensor, Any]:
    """The outputs and, if a state to start from is given, the state that they end with."""
    time, K, V = heads.r.shape[1], heads.r.shape[-1], heads.v.shape[-1]
    chunks, Q = _chunks(time)
    if tail := chunks * Q - time:
        # with 0, which changes no state
        heads = Heads(*(F.pad(x, (0, 0) * 2 + (0, tail)) for x in heads))
    chunked = Heads(*(x.unflatten(1, (chunks, Q)).transpose(2, 3).contiguous() for x in heads))
    v_BIHQV, sum_BIHQK = chunked.v, chunked.log_w.cumsum(-2)
    middle_BIH1K, last_BIH1K = sum_BIHQK[..., Q // 2, None, :], sum_BIHQK[..., -1:, :]
    reads_BIHPK, writes_BIHPK = _since(chunked, sum_BIHQK - middle_BIH1K)
    seen_QQ = sum_BIHQK.new_ones(Q, Q).tril()
    seen_PP = torch.cat((seen_QQ.tril(-1), seen_QQ)).repeat(1, 2)
    kap_BIHQP, r_BIHQP = (reads_BIHPK @ writes_BIHPK.mT * seen_PP).split(Q, -2)
    kap_gone_BIHQQ, kap_k_BIHQQ = kap_BIHQP.split(Q, -1)
    r_gone_BIHQQ, r_k_BIHQQ = r_BIHQP.split(Q, -1)
    known_BIHQV = kap_k_BIHQQ @ v_BIHQV
    if chunks == 1 and start_BHKV is None:
        y_BIHQV = r_k_BIHQQ @ v_BIHQV - r_gone_BIHQQ @ unit_solve(kap_gone_BIHQQ, known_BIHQV)
        return y_BIHQV.transpose(2, 3).flatten(1, 2), None
    kap_BIHQK, r_BIHQK = (reads_BIHPK * middle_BIH1K.exp()).split(Q, -2)
    solved_BIHQF = unit_solve(kap_gone_BIHQQ, torch.cat((known_BIHQV, kap_BIHQK), -1))
    U_BIHQV, W_BIHQK = solved_BIHQF.split([V, K], -1)
    left_BIHPK = writes_BIHPK * (last_BIH1K - middle_BIH1K).exp()
    gone_BIHQK, k_BIHQK = left_BIHPK.split(Q, -2)
    removed_BIHKV, lost_BIHKK = (gone_BIHQK.mT @ solved_BIHQF).split([V, K], -1)
    M_BIHKK = torch.diag_embed(last_BIH1K.squeeze(-2).exp()) - lost_BIHKK
    N_BIHKV = k_BIHQK.mT @ v_BIHQV - removed_BIHKV
    if start_BHKV is None:
        starts_BIHKV, end_BHKV = border_states(M_BIHKK[:, :-1], N_BIHKV[:, :-1]), None
    else:
        starts_BIHKV, end_BHKV = states_after(M_BIHKK, N_BIHKV, start_BHKV)
    carried_BIHPV = torch.cat((W_BIHQK, r_BIHQK), -2) @ starts_BIHKV
    more_BIHQV, y_BIHQV = carried_BIHPV.split(Q, -2)
    y_BIHQV = y_BIHQV + r_k_BIHQQ @ v_BIHQV - r_gone_BIHQQ @ (U_BIHQV + more_BIHQV)
    return y_BIHQV.transpose(2, 3).flatten(1, 2)[:, :time], end_BHKV


def _since(chunked: Heads, sum_BIHQK: Tensor) -> tuple[Tensor, Tensor]:
    """Reads (kap, r) and writes (gone, k) with the decay since the point where `sum` is 0.

    kap reads the state before it decays.
    """
    kap_BIHQK = chunked.kap * (sum_BIHQK - chunked.log_w).exp()
    reads_BIHPK = torch.cat((kap_BIHQK, chunked.r * sum_BIHQK.exp()), -2)
    until_BIHQK = (-sum_BIHQK).exp()
    writes_BIHPK = torch.cat((chunked.gone * until_BIHQK, chunked.k * until_BIHQK), -2)
    return reads_BIHPK, writes_BIHPK


def _chunks(time: int) -> tuple[int, int]:
    """How many chunks of which length, with as little padding as can be."""
    count = math.ceil(time / CHUNK)
    return count, math.ceil(time / count)

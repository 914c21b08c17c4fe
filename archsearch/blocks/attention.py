"""Softmax attention: multi-head, grouped-query, multi-query, sliding window.

Vaswani et al. 2017, arXiv 1706.03762, eq. 1; grouped queries: Ainslie et al. 2023, arXiv
2305.13245; window: Beltagy et al. 2020, arXiv 2004.05150, section 3.1; QK-norm as in Qwen3.

    q, k, v = W_qkv x + b;   y = W_o softmax(q k^T / sqrt(K) + mask) v

Query head h reads key head h // (H / G). RoPE (Su et al. 2021, arXiv 2104.09864) turns the pair of
channels (i, i + N/2) at position p by the angle p * theta^(-2i/N), for the first N = `rotary` K
channels of a head; the others carry no position (GPT-NeoX, arXiv 2204.06745, section 2.1.1).

Shapes: B batch, T query time, S key time, D model width, H query heads, G key heads, K head width,
R = H / G.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archsearch.block import Block, Ctx, Role, State, divisors, ones, require, zeros
from archsearch.cost import Cost
from archsearch.dims import choice, real, whole
from archsearch.kernels.rope import rope
from archsearch.kernels.softmax_attention import attend, pairs, recall, recall_all


class Attention(Block, name="attention", kind="mixer", paper="1706.03762"):
    """Softmax attention, full or in a sliding window, with RoPE and grouped queries."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        heads: int = whole(1, 256, default=4)
        """Query heads; they share the model width."""
        kv_heads: int | None = whole(1, 256, default=None, default_from="heads")
        """Key and value heads; 1 is multi-query, none is one for each query head."""
        pos: str = choice("rope", "none", default="rope")
        """Position encoding."""
        theta: float = real(1.0, 1e7, default=10_000.0, log=True, when=("pos", "rope"))
        """Base of the RoPE wavelengths."""
        rotary: float = choice(0.25, 0.5, 1.0, default=1.0, when=("pos", "rope"))
        """Share of the channels of a head that RoPE turns."""
        qk_norm: bool = choice(False, True, default=False)
        """RMSNorm over each query and key before RoPE."""
        qkv_bias: bool = choice(False, True, default=False)
        """Bias on queries, keys and values."""
        window: int | None = whole(1, 2**20, default=None, optional=True)
        """Tokens that a query sees, itself included; none is all before it."""

    grows = ("heads", "kv_heads")
    roles = {
        "qkv.weight": Role.hidden("heads", "model"),
        "qkv.bias": Role.vector("heads", init=zeros),
        "q_norm.weight": Role.vector("head", init=ones),
        "k_norm.weight": Role.vector("head", init=ones),
        "out.weight": Role.hidden("model", "heads"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.head_width = width // config.heads
        rows = (self.heads + 2 * self.kv_heads) * self.head_width
        self.qkv = nn.Linear(width, rows, bias=config.qkv_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_width, eps=1e-6)
            self.k_norm = nn.RMSNorm(self.head_width, eps=1e-6)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        q_BTHK, k_BTGK, v_BTGK = self._project(x_BTD, ctx.position)
        y_BTHK = attend(q_BTHK, k_BTGK, v_BTGK, self.config.window)
        return self.out(y_BTHK.flatten(-2))

    def init_state(self, batch: int, context: int) -> State:
        slots = min(context, self.config.window or context)
        shape = batch, self.kv_heads, slots, self.head_width
        return {name: self.out.weight.new_zeros(shape) for name in ("k", "v")}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        q_BTHK, k_BTGK, v_BTGK = self._project(x_BD[:, None], ctx.position)
        y_BHK = recall(q_BTHK[:, 0], k_BTGK[:, 0], v_BTGK[:, 0], state, ctx.seen)
        return self.out(y_BHK.flatten(-2)), state

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        y_BTHK = recall_all(*self._project(x_BTD, ctx.position), state, ctx.seen)
        return self.out(y_BTHK.flatten(-2)), state

    def _project(self, x_BTD: Tensor, position: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x_BTD).unflatten(-1, (-1, self.head_width))
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], -2)
        if self.config.qk_norm:
            q, k = qk.split([self.heads, self.kv_heads], -2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), -2)
        if self.config.pos == "rope":
            qk = rope(qk, position, self.config.theta, self.config.rotary)
        q, k = qk.split([self.heads, self.kv_heads], -2)
        return q, k, v

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        time, K, R = x_BTD.shape[1], self.head_width, self.heads // self.kv_heads
        index_T = torch.arange(time, device=x_BTD.device)
        position_T = ctx.position if isinstance(ctx.position, Tensor) else index_T + ctx.position
        qkv = x_BTD @ self.qkv.weight.T
        if self.config.qkv_bias:
            qkv = qkv + self.qkv.bias
        mixed = []
        for h in range(self.heads):
            g = h // R
            k_at, v_at = self.heads + g, self.heads + self.kv_heads + g
            q_BTK, k_BSK, v_BSK = (qkv[..., i * K : (i + 1) * K] for i in (h, k_at, v_at))
            if self.config.qk_norm:
                q_BTK = q_BTK / (q_BTK**2).mean(-1, keepdim=True).add(1e-6).sqrt()
                k_BSK = k_BSK / (k_BSK**2).mean(-1, keepdim=True).add(1e-6).sqrt()
                q_BTK, k_BSK = q_BTK * self.q_norm.weight, k_BSK * self.k_norm.weight
            if self.config.pos == "rope":
                N = round(self.config.rotary * K)
                rate_I = self.config.theta ** (-2 * torch.arange(N // 2).to(x_BTD) / N)
                turn_TI = torch.exp(1j * position_T[..., None] * rate_I)
                q_BTI = torch.complex(q_BTK[..., : N // 2], q_BTK[..., N // 2 : N]) * turn_TI
                k_BSI = torch.complex(k_BSK[..., : N // 2], k_BSK[..., N // 2 : N]) * turn_TI
                q_BTK = torch.cat((q_BTI.real, q_BTI.imag, q_BTK[..., N:]), -1)
                k_BSK = torch.cat((k_BSI.real, k_BSI.imag, k_BSK[..., N:]), -1)
            age_TS = index_T[:, None] - index_T
            seen_TS = (age_TS >= 0) & (age_TS < (self.config.window or time))
            score_BTS = (q_BTK @ k_BSK.mT / math.sqrt(K)).masked_fill(~seen_TS, -math.inf)
            mixed.append(score_BTS.softmax(-1) @ v_BSK)
        return torch.cat(mixed, -1) @ self.out.weight.T

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        head, kv_heads = width // config.heads, config.kv_heads or config.heads
        kv = 2 * kv_heads * head
        matrices = width * (width + kv) + width**2
        vectors = (width + kv) * config.qkv_bias + 2 * head * config.qk_norm
        return Cost(
            params=matrices + vectors,
            active_params=matrices + vectors,
            flops=2 * matrices + 4 * width * pairs(seq_len, config.window) / seq_len,
            state_bytes=4 * kv * min(seq_len, config.window or seq_len),
        )

    @staticmethod
    def channels_per_head(width: int, config: Config) -> int:
        return width // config.heads

    @staticmethod
    def check(width: int, config: Config) -> None:
        info, kv_heads = Attention.info, config.kv_heads or config.heads
        legal, why = divisors(width), f"does not divide width {width}"
        if config.pos == "rope":
            legal = [heads for heads in legal if width // heads * config.rotary % 2 == 0]
            parts = (
                "even parts" if config.rotary == 1 else f"parts of which {config.rotary:g} is even"
            )
            why = f"does not cut width {width} into {parts} (RoPE turns pairs of channels)"
        require(info, "heads", config.heads, legal, why)
        why = f"does not divide the {config.heads} query heads"
        require(info, "kv_heads", kv_heads, divisors(config.heads), why)

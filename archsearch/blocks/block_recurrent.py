"""Block-recurrent attention. Hutchins et al. 2022, arXiv 2203.07852, section 3, "skip" layout.

The sequence is cut into blocks of W tokens. S state vectors s carry what one block leaves to the
next:

    q, q', k, v = W_qkv x                                       tokens
    u = RMSNorm(s) + id;   r, r' = W_r u;   m, n = W_mn u       states at the start of the block
    y = W_o [softmax(q k^T) v ; softmax(q' m^T) n]              the last W tokens; all states
    h = [softmax(r m^T) n ; softmax(r' k^T) v]                  all states; the tokens of the block
    z = W_z h;   s <- g * s + (1 - g) * z,  g = sigmoid(b)      gate "fixed"
                 s <- sigmoid(W_f h + b_f + 1) * s + sigmoid(W_i h + b_i - 1) * z     gate "lstm"

Each side has one set of keys and values and two sets of queries; scores are divided by sqrt(K). The
update comes at the end of a block, so that its tokens see only what finished blocks left. RoPE
turns q and k for attention among tokens alone.

What differs from the authors' code: there queries and keys have unit length and a learned scale;
the states read the window before the block too; a token does not see itself in its window.

Shapes: B batch, T time, D model width, W window, I finished blocks, S states, H
heads, K head width, J keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, divisors, normal, ones, require
from archsearch.cost import Cost
from archsearch.dims import choice, real, whole
from archsearch.kernels.rope import rope
from archsearch.kernels.softmax_attention import attend, pairs

EPS = 1e-6
"""Added to the mean square of a state vector."""


def small_fan_in(w: Tensor, g: Generator) -> Tensor:
    """Draw from N(0, 0.1 / fan_in)."""
    return w.normal_(0.0, (0.1 / w.shape[1]) ** 0.5, generator=g)


class BlockRecurrent(Block, name="block_recurrent", kind="mixer", paper="2203.07852"):
    """Sliding-window attention with state vectors that each block of tokens updates."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        heads: int = whole(1, 256, default=4)
        """Heads of all four attentions; they share the model width."""
        window: int = whole(8, 65_536, default=32)
        """Tokens in a block, and tokens that a token sees, itself included."""
        states: int = whole(1, 4096, default=16)
        """State vectors, each of the model width."""
        gate: str = choice("fixed", "lstm", default="fixed")
        """How an update meets the old states: by learned constants, or LSTM gates."""
        pos: str = choice("rope", "none", default="rope")
        """Position encoding among the tokens of a window."""
        theta: float = real(1.0, 1e7, default=10_000.0, log=True, when=("pos", "rope"))
        """Base of the RoPE wavelengths."""

    grows = ("heads",)
    roles = {
        "qkv.weight": Role.hidden("heads", "model"),
        "out.weight": Role.hidden("model", "heads"),
        "initial": Role.embedding(None, "model", init=normal(0.1)),
        "ids": Role.embedding(None, "model", init=normal(1.0)),
        "norm": Role.vector("model", init=ones),
        "state_q.weight": Role.hidden("heads", "model"),
        "state_kv.weight": Role.hidden("heads", "model"),
        "state_out.weight": Role.hidden("model", "heads"),
        "gate_bias": Role.vector("model", init=normal(0.1)),
        "gates.weight": Role.hidden("model", "heads", init=small_fan_in),
        "gates.bias": Role.vector("model", init=normal(0.1)),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.head_width = width // config.heads
        self.qkv = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(2 * width, width, bias=False)
        self.initial = nn.Parameter(torch.empty(config.states, width))
        self.ids = nn.Parameter(torch.empty(config.states, width))
        self.norm = nn.Parameter(torch.empty(width))
        self.state_q = nn.Linear(width, 2 * width, bias=False)
        self.state_kv = nn.Linear(width, 2 * width, bias=False)
        self.state_out = nn.Linear(2 * width, width, bias=False)
        if config.gate == "fixed":
            self.gate_bias = nn.Parameter(torch.empty(width))
        else:
            self.gates = nn.Linear(2 * width, 2 * width)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        W, finished = self.config.window, (x_BTD.shape[1] - 1) // self.config.window
        q_BTHK, cross_BTHK, k_BTHK, v_BTHK = self._split(self.qkv(x_BTD), 4)
        turned_q, turned_k = (self._turn(x, ctx.position) for x in (q_BTHK, k_BTHK))
        local_BTHK = attend(turned_q, turned_k, v_BTHK, W)
        state_BSD = self._first(len(x_BTD))
        held = [self._keys_values(state_BSD)]
        far_BTHK = cross_BTHK[:, finished * W :]
        if finished:
            cross_BIWHK, k_BIWHK, v_BIWHK = (
                x[:, : finished * W].unflatten(1, (finished, W))
                for x in (cross_BTHK, k_BTHK, v_BTHK)
            )
            for k_BWHK, v_BWHK in zip(k_BIWHK.unbind(1), v_BIWHK.unbind(1), strict=True):
                state_BSD = self._update(state_BSD, held[-1], k_BWHK, v_BWHK)
                held.append(self._keys_values(state_BSD))
            key, value = (torch.stack(x, 1).flatten(0, 1) for x in zip(*held[:-1], strict=True))
            past_BIWHK = softmax_attention(cross_BIWHK.flatten(0, 1), key, value)
            past_BTHK = past_BIWHK.reshape(len(x_BTD), -1, *far_BTHK.shape[2:])
        far_BTHK = softmax_attention(far_BTHK, *held[-1])
        if finished:
            far_BTHK = torch.cat((past_BTHK, far_BTHK), 1)
        return self.out(torch.cat((local_BTHK, far_BTHK), 2).flatten(2))

    def init_state(self, batch: int, context: int) -> State:
        slots, state_BSD = min(context, self.config.window), self._first(batch)
        ring_BJHK = self.out.weight.new_zeros(batch, slots, self.config.heads, self.head_width)
        key_BSHK, value_BSHK = self._keys_values(state_BSD)
        state = {"k": ring_BJHK, "v": ring_BJHK.clone(), "states": state_BSD}
        if self.config.pos == "rope":
            state["position"] = torch.zeros_like(ring_BJHK[:, :, 0, 0], dtype=torch.int32)
        return state | {"state_k": key_BSHK, "state_v": value_BSHK}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        q_B1HK, cross_B1HK, k_B1HK, v_B1HK = self._split(self.qkv(x_BD[:, None]), 4)
        slot, held = ctx.seen % state["k"].shape[1], (state["state_k"], state["state_v"])
        state["k"][:, slot], state["v"][:, slot] = k_B1HK[:, 0], v_B1HK[:, 0]
        k_BJHK, v_BJHK = (state[name][:, : ctx.seen + 1] for name in ("k", "v"))
        turned_BJHK = k_BJHK
        if self.config.pos == "rope":
            position = ctx.position
            state["position"][:, slot] = position if isinstance(position, int) else position[:, 0]
            turned_BJHK = self._turn(k_BJHK, state["position"][:, : ctx.seen + 1])
        local_B1HK = softmax_attention(self._turn(q_B1HK, ctx.position), turned_BJHK, v_BJHK)
        far_B1HK = softmax_attention(cross_B1HK, *held)
        if (ctx.seen + 1) % self.config.window == 0:
            state["states"] = self._update(state["states"], held, k_BJHK, v_BJHK)
            state["state_k"], state["state_v"] = self._keys_values(state["states"])
        return self.out(torch.cat((local_B1HK, far_B1HK), 2).flatten(1)), state

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Parts of equal width along the last axis, each cut into heads."""
        return x.unflatten(-1, (parts, -1, self.head_width)).unbind(-3)

    def _turn(self, x_BTHK: Tensor, position: int | Tensor) -> Tensor:
        if self.config.pos == "none":
            return x_BTHK
        return rope(x_BTHK, position, self.config.theta)

    def _first(self, batch: int) -> Tensor:
        """The states before the first block; like all states at least in float32."""
        dtype = torch.promote_types(self.initial.dtype, torch.float32)
        return self.initial.to(dtype).repeat(batch, 1, 1)

    def _normed(self, state_BSD: Tensor) -> Tensor:
        norm = self.norm.to(state_BSD.dtype)
        normed_BSD = F.rms_norm(state_BSD, norm.shape, norm, EPS) + self.ids
        return normed_BSD.to(self.ids.dtype)

    def _keys_values(self, state_BSD: Tensor) -> tuple[Tensor, Tensor]:
        key_BSHK, value_BSHK = self._split(self.state_kv(self._normed(state_BSD)), 2)
        return key_BSHK, value_BSHK

    def _update(
        self, state_BSD: Tensor, held: tuple[Tensor, Tensor], k_BWHK: Tensor, v_BWHK: Tensor
    ) -> Tensor:
        """The states after a block of tokens; `held` are the keys and values of the old ones."""
        own_BSHK, cross_BSHK = self._split(self.state_q(self._normed(state_BSD)), 2)
        own_BSHK = softmax_attention(own_BSHK, *held)
        cross_BSHK = softmax_attention(cross_BSHK, k_BWHK, v_BWHK)
        h_BSE = torch.cat((own_BSHK, cross_BSHK), 2).flatten(2)
        z_BSD = self.state_out(h_BSE).to(state_BSD.dtype)
        if self.config.gate == "fixed":
            return torch.lerp(z_BSD, state_BSD, self.gate_bias.to(z_BSD.dtype).sigmoid())
        forget_BSD, input_BSD = self.gates(h_BSE).to(z_BSD.dtype).chunk(2, -1)
        return (forget_BSD + 1).sigmoid() * state_BSD + (input_BSD - 1).sigmoid() * z_BSD

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        (B, T, D), W, K = x_BTD.shape, self.config.window, self.head_width
        place_T = ctx.position if isinstance(ctx.position, Tensor) else None

        def heads(x: Tensor, weight: Tensor) -> list[Tensor]:
            return [(x @ w.T).unflatten(-1, (-1, K)) for w in weight.split(D)]

        def turned(x_BHK: Tensor, t: int) -> Tensor:
            if self.config.pos == "none":
                return x_BHK
            p = x_BHK.new_full((1,), int(ctx.position) + t) if place_T is None else place_T[:, t]
            rate_I = self.config.theta ** (-2 * torch.arange(K // 2).to(x_BHK) / K)
            turn_B1I = torch.exp(1j * p[:, None, None] * rate_I)
            c_BHI = torch.complex(x_BHK[..., : K // 2], x_BHK[..., K // 2 :]) * turn_B1I
            return torch.cat((c_BHI.real, c_BHI.imag), -1)

        def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            weight = (torch.einsum("bqhk,bjhk->bhqj", q, k) / math.sqrt(K)).softmax(-1)
            return torch.einsum("bhqj,bjhk->bqhk", weight, v).flatten(2)

        q, cross, k, v = heads(x_BTD, self.qkv.weight)
        query = torch.stack([turned(q[:, t], t) for t in range(T)], 1)
        key = torch.stack([turned(k[:, t], t) for t in range(T)], 1)
        s, outputs = self.initial.expand(B, -1, -1), []
        for t in range(T):
            u = s / ((s**2).mean(-1, keepdim=True) + EPS).sqrt() * self.norm + self.ids
            (r, r_cross), (m, n) = heads(u, self.state_q.weight), heads(u, self.state_kv.weight)
            window = slice(max(0, t + 1 - W), t + 1)
            local = read(query[:, t : t + 1], key[:, window], v[:, window])
            far = read(cross[:, t : t + 1], m, n)
            outputs.append(torch.cat((local, far), -1) @ self.out.weight.T)
            if (t + 1) % W == 0:
                h = torch.cat((read(r, m, n), read(r_cross, k[:, window], v[:, window])), -1)
                z = h @ self.state_out.weight.T
                if self.config.gate == "fixed":
                    g = 1 / (1 + torch.exp(-self.gate_bias))
                    s = s * g + z * (1 - g)
                else:
                    f, i = (h @ self.gates.weight.T + self.gates.bias).split(D, -1)
                    s = s / (1 + torch.exp(-f - 1)) + z / (1 + torch.exp(1 - i))
        return torch.cat(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        lstm, S, square = config.gate == "lstm", config.states, width**2
        params = 12 * square + 2 * S * width + width
        params += (4 * square + 2 * width) if lstm else width
        slots, rope_on = min(seq_len, config.window), config.pos == "rope"
        read = pairs(seq_len, config.window) / seq_len + S
        tokens = 12 * square + 4 * width * read
        updates = (seq_len - 1) // config.window
        update = (8 + 8 * lstm) * S * square + 4 * S * (S + config.window) * width
        states = updates * update + (updates + 1) * 4 * S * square
        return Cost(
            params=params,
            active_params=params,
            flops=tokens + states / seq_len,
            state_bytes=4 * (2 * slots * width + slots * rope_on + 3 * S * width),
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        legal, why = divisors(width), f"does not divide width {width}"
        if config.pos == "rope":
            legal = [heads for heads in legal if width // heads % 2 == 0]
            why = f"does not cut width {width} into even parts (RoPE turns pairs of channels)"
        require(BlockRecurrent.info, "heads", config.heads, legal, why)


def softmax_attention(q_BTHK: Tensor, k_BJHK: Tensor, v_BJHK: Tensor) -> Tensor:
    """Every query reads every key."""
    q_BHTK, k_BHJK, v_BHJK = (x.transpose(1, 2) for x in (q_BTHK, k_BJHK, v_BJHK))
    return F.scaled_dot_product_attention(q_BHTK, k_BHJK, v_BHJK).transpose(1, 2)

"""Attention with shared weights beside the stream. Zamba2: Glorioso et al. 2024, arXiv 2411.15242.

    u = RMSNorm([x ; e])                          x the stream, e the token embeddings
    v = W_o softmax(q k^T / sqrt(K / 2)) v,       q, k, v = W_qkv u + LoRA_j(u)
    t = W_j W_down (gelu(g) * h),                 g | h = W_gate_up RMSNorm(v) + LoRA_j(RMSNorm(v))

There is no residual inside. The next block reads x + t, and t never joins the stream (hence
`joins="next"`). Use j of the shared weights has its own W_j, its own LoRA (Hu et al. 2021, arXiv
2106.09685) and its own key-value cache; everything else is shared.

With both LoRA ranks equal this is the published block with its adapters on. The second factor of a
LoRA starts at 0 as in the LoRA paper, so that every use starts equal; Hugging Face's Zamba2 draws
both factors from N(0, 0.02^2).

Shapes: B batch, T query time, S key time, D model width, U = 2D, H heads, K head width, F hidden
width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, divisors, ones, require, zeros
from archsearch.cost import Cost
from archsearch.dims import choice, real, whole
from archsearch.kernels.rms_norm import RMSNorm
from archsearch.kernels.rope import rope
from archsearch.kernels.softmax_attention import attend, recall, recall_all


class LoRA(nn.Module):
    """A matrix of low rank: y = b(a(x))."""

    def __init__(self, inputs: int, rank: int, outputs: int) -> None:
        super().__init__()
        self.a = nn.Linear(inputs, rank, bias=False)
        self.b = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Project down and up again."""
        return self.b(self.a(x))


class SharedAttention(
    Block, name="shared_attention", kind="mixer", paper="2411.15242", joins="next"
):
    """Attention and gated feed-forward over stream and embeddings, with shared weights (Zamba2)."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        heads: int = whole(1, 256, default=4)
        """Attention heads; they share twice the model width."""
        mult: int = whole(1, 16, default=2)
        """Hidden width of the feed-forward over model width."""
        pos: str = choice("rope", "none", default="none")
        """Position encoding."""
        theta: float = real(1.0, 1e7, default=10_000.0, log=True, when=("pos", "rope"))
        """Base of the RoPE wavelengths."""
        lora_rank: int = whole(0, 256, default=0)
        """Rank of the LoRA that each use has on gate and up; 0 is none."""
        qkv_lora_rank: int = whole(0, 256, default=0)
        """Rank of the LoRA that each use has on queries, keys and values; 0 is none."""

    grows = ("heads",)
    roles = {
        "norm.weight": Role.vector("pair", init=ones),
        "qkv.weight": Role.hidden("heads", "pair"),
        "out.weight": Role.hidden("model", "heads"),
        "mlp_norm.weight": Role.vector("model", init=ones),
        "gate_up.weight": Role.hidden("hidden", "model"),
        "down.weight": Role.hidden("model", "hidden"),
        "linears.*.weight": Role.hidden("model", "model"),
        "mlp_loras.*.a.weight": Role.hidden(None, "model"),
        "mlp_loras.*.b.weight": Role.embedding("hidden", None, init=zeros),
        "qkv_loras.*.a.weight": Role.hidden(None, "pair"),
        "qkv_loras.*.b.weight": Role.embedding("heads", None, init=zeros),
    }
    prenorm = False
    per_use = True

    def __init__(self, width: int, config: Config, uses: int = 1) -> None:
        super().__init__()
        self.config = config
        pair, hidden = 2 * width, config.mult * width
        self.head_width = pair // config.heads
        self.scale = (self.head_width / 2) ** -0.5
        self.norm = RMSNorm(pair, eps=1e-5)
        self.qkv = nn.Linear(pair, 3 * pair, bias=False)
        self.out = nn.Linear(pair, width, bias=False)
        self.mlp_norm = RMSNorm(width, eps=1e-5)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.linears = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(uses))
        if rank := config.lora_rank:
            self.mlp_loras = nn.ModuleList(LoRA(width, rank, 2 * hidden) for _ in range(uses))
        if rank := config.qkv_lora_rank:
            self.qkv_loras = nn.ModuleList(LoRA(pair, rank, pair) for _ in range(3 * uses))

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        q_BTHK, k_BTHK, v_BTHK = self._project(x_BTD, ctx.embedding, ctx.position, ctx.use)
        y_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, scale=self.scale)
        return self._feed_forward(y_BTHK.flatten(-2), ctx.use)

    def init_state(self, batch: int, context: int) -> State:
        shape = batch, self.config.heads, context, self.head_width
        return {name: self.out.weight.new_zeros(shape) for name in ("k", "v")}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        embedding_BTD = ctx.embedding[:, None]
        q, k, v = self._project(x_BD[:, None], embedding_BTD, ctx.position, ctx.use)
        y_BHK = recall(q[:, 0], k[:, 0], v[:, 0], state, ctx.seen, scale=self.scale)
        return self._feed_forward(y_BHK.flatten(-2), ctx.use), state

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        q, k, v = self._project(x_BTD, ctx.embedding, ctx.position, ctx.use)
        y_BTHK = recall_all(q, k, v, state, ctx.seen, scale=self.scale)
        return self._feed_forward(y_BTHK.flatten(-2), ctx.use), state

    def _project(
        self, x_BTD: Tensor, embedding_BTD: Tensor, position: int | Tensor, use: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        u_BTU = self.norm(torch.cat((x_BTD, embedding_BTD), -1))
        projected = self.qkv(u_BTU)
        if self.config.qkv_lora_rank:
            loras = self.qkv_loras[3 * use : 3 * use + 3]
            projected = projected + torch.cat([lora(u_BTU) for lora in loras], -1)
        q, k, v = projected.unflatten(-1, (-1, self.head_width)).chunk(3, -2)
        if self.config.pos == "rope":
            q, k = (rope(x, position, self.config.theta) for x in (q, k))
        return q, k, v

    def _feed_forward(self, y: Tensor, use: int) -> Tensor:
        y = self.mlp_norm(self.out(y))
        gate_up = self.gate_up(y)
        if self.config.lora_rank:
            gate_up = gate_up + self.mlp_loras[use](y)
        gate, up = gate_up.chunk(2, -1)
        return self.linears[use](self.down(F.gelu(gate) * up))

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        time, width, K, j = *x_BTD.shape[1:], self.head_width, ctx.use
        index_T = torch.arange(time, device=x_BTD.device)
        position_T = ctx.position if isinstance(ctx.position, Tensor) else index_T + ctx.position
        future_TS = index_T[:, None] < index_T

        def rms(x: Tensor) -> Tensor:
            return ((x**2).mean(-1, keepdim=True) + 1e-5).sqrt()

        def product(lora: nn.Module) -> Tensor:
            return lora.get_parameter("b.weight") @ lora.get_parameter("a.weight")

        u_BTU = torch.cat((x_BTD, ctx.embedding), -1)
        u_BTU = u_BTU / rms(u_BTU) * self.norm.weight
        qkv = []
        for i, weight_UU in enumerate(self.qkv.weight.split(2 * width)):
            if self.config.qkv_lora_rank:
                weight_UU = weight_UU + product(self.qkv_loras[3 * j + i])
            qkv.append(u_BTU @ weight_UU.T)
        mixed = []
        for h in range(self.config.heads):
            q_BTK, k_BSK, v_BSK = (x[..., h * K : (h + 1) * K] for x in qkv)
            if self.config.pos == "rope":
                turn_TKK = x_BTD.new_zeros(*position_T.shape, K, K)
                for i in range(K // 2):
                    angle_T = position_T.to(x_BTD.dtype) * self.config.theta ** (-2 * i / K)
                    turn_TKK[..., i, i] = turn_TKK[..., K // 2 + i, K // 2 + i] = angle_T.cos()
                    turn_TKK[..., K // 2 + i, i] = angle_T.sin()
                    turn_TKK[..., i, K // 2 + i] = -angle_T.sin()
                q_BTK = torch.einsum("...tij,...tj->...ti", turn_TKK, q_BTK)
                k_BSK = torch.einsum("...sij,...sj->...si", turn_TKK, k_BSK)
            score_BTS = (q_BTK @ k_BSK.mT / math.sqrt(K / 2)).masked_fill(future_TS, -math.inf)
            mixed.append(score_BTS.softmax(-1) @ v_BSK)
        y_BTD = torch.cat(mixed, -1) @ self.out.weight.T
        y_BTD = y_BTD / rms(y_BTD) * self.mlp_norm.weight
        weight_FD = self.gate_up.weight
        if self.config.lora_rank:
            weight_FD = weight_FD + product(self.mlp_loras[j])
        gate_BTF, up_BTF = (y_BTD @ weight_FD.T).chunk(2, -1)
        gelu_BTF = gate_BTF * (1 + torch.erf(gate_BTF / math.sqrt(2))) / 2
        last_DD = self.linears[j].get_parameter("weight")
        return (gelu_BTF * up_BTF) @ self.down.weight.T @ last_DD.T

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        shared = 14 * width**2 + 3 * config.mult * width**2
        matrices = shared + SharedAttention.params_per_use(width, config)
        return Cost(
            params=matrices + 3 * width,
            active_params=matrices + 3 * width,
            flops=2 * matrices + 8 * width * seq_len,
            state_bytes=16 * width * seq_len,
        )

    @staticmethod
    def params_per_use(width: int, config: Config) -> int:
        qkv = 12 * width * config.qkv_lora_rank
        return width**2 + qkv + (1 + 2 * config.mult) * width * config.lora_rank

    @staticmethod
    def channels_per_head(width: int, config: Config) -> int:
        return 2 * width // config.heads

    @staticmethod
    def check(width: int, config: Config) -> None:
        pair = 2 * width
        legal, why = divisors(pair), f"does not divide {pair} (twice the width)"
        if config.pos == "rope":
            legal = [heads for heads in legal if pair // heads % 2 == 0]
            why = f"does not cut {pair} (twice the width) into even parts (RoPE turns pairs)"
        require(SharedAttention.info, "heads", config.heads, legal, why)

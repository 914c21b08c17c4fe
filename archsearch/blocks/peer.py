"""Mixture of a million experts: one hidden unit each, found by product keys. He 2024, 2407.04153.

    q_h = norm(W_h x), in two halves        score of expert (i, j) = q_h1 . K_h1i + q_h2 . K_h2j
    y = sum_h sum_(e in the best k of head h) softmax_k(score)_e * act(x . u_e) v_e

All heads share the experts, keys^2 of them; one that two heads choose counts twice. The paper
normalises queries over the batch, which mixes tokens; here each half is normalised by itself.

Shapes: B batch, T time, D model width, N tokens, H heads, S the two sides, K keys of a side,
Q width of a half key, E chosen experts of a head, R all experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from archsearch.block import Block, Ctx, Role, State, normal
from archsearch.cost import Cost
from archsearch.dims import choice, whole
from archsearch.kernels.peer import experts
from archsearch.layers.retrieval import ROLES, Retrieval, best_of_all, check_count, routing_cost


class PEER(Block, name="peer", kind="ffn", paper="2407.04153"):
    """Mixture of up to a million one-unit experts, retrieved by product keys."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        keys: int = whole(2, 1024, default=32)
        """Half keys of a side; there are keys^2 experts, 1024 for a million."""
        heads: int = whole(1, 64, default=4)
        """Retrievals of a token; all share the experts."""
        top_k: int = whole(1, 64, default=8)
        """Experts that a head retrieves; at most `keys`."""
        key_width: int = whole(4, 256, default=16)
        """Width of a half key; the query of a head is twice as wide."""
        query_norm: str = choice("layer", "rms", "none", default="layer")
        """Normalisation of each half of a query."""
        act: str = choice("gelu", "silu", "relu", default="gelu")
        """Nonlinearity of an expert."""

    roles = ROLES | {
        "down.weight": Role.hidden(None, "model"),
        "up.weight": Role.embedding(None, "model", init=normal(0.1)),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.act = config.act
        self.retrieval = Retrieval(width, config)
        self.down = self.retrieval.table(width)
        self.up = self.retrieval.table(width)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        gate_NE, picks = self.retrieval(x_BTD)
        x_ND, down, up = x_BTD.flatten(0, -2), self.down.weight, self.up.weight
        return experts(x_ND, down, up, gate_NE, picks, self.act).view_as(x_BTD)

    def init_state(self, batch: int, context: int) -> State:
        return {}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        return self.forward(x_BD, ctx), state

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        a_BTR = x_BTD @ self.down.weight.T
        if self.act == "gelu":
            hidden_BTR = a_BTR * (1 + torch.erf(a_BTR / 2**0.5)) / 2
        elif self.act == "silu":
            hidden_BTR = a_BTR / (1 + (-a_BTR).exp())
        else:
            hidden_BTR = torch.where(a_BTR > 0, a_BTR, 0.0)
        gate_BTR = best_of_all(self.retrieval, x_BTD)
        return (gate_BTR * hidden_BTR) @ self.up.weight

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        routing, picked = routing_cost(width, config), config.heads * config.top_k
        rows = min(picked, config.keys**2)
        return routing + Cost(
            params=2 * config.keys**2 * width,
            active_params=2 * rows * width,
            flops=4 * picked * width,
            state_bytes=0,
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        check_count(PEER.info, config)

"""Product key memory: a table of values, read by product keys. Lample et al. 2019, 1907.05242.

    q_h = norm(W_h x), in two halves        score of value (i, j) = q_h1 . K_h1i + q_h2 . K_h2j
    y = sum_h sum_(e in the best k of head h) softmax_k(score)_e V_e

All heads share the values, keys^2 of them. The paper normalises queries over the batch, which mixes
tokens; here each half is normalised by itself.

Shapes: B batch, T time, D model width, N tokens, E chosen values of all heads, R all values.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from archsearch.block import Block, Ctx, Role, State, normal
from archsearch.cost import Cost
from archsearch.dims import choice, whole
from archsearch.layers.retrieval import ROLES, Retrieval, best_of_all, check_count, routing_cost


class PKM(Block, name="pkm", kind="ffn", paper="1907.05242"):
    """Memory of up to a million values, retrieved by product keys."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        keys: int = whole(2, 1024, default=32)
        """Half keys of a side; there are keys^2 values (512 in the paper)."""
        heads: int = whole(1, 64, default=4)
        """Retrievals of a token; all share the values."""
        top_k: int = whole(1, 64, default=16)
        """Values that a head retrieves (32 in the paper); at most `keys`."""
        key_width: int = whole(4, 256, default=16)
        """Width of a half key; the query of a head is twice as wide."""
        query_norm: str = choice("layer", "rms", "none", default="layer")
        """Normalisation of each half of a query."""

    roles = ROLES | {"values.weight": Role.embedding(None, "model", init=normal(0.1))}

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.retrieval = Retrieval(width, config)
        self.values = self.retrieval.table(width)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        gate_NE, picks = self.retrieval(x_BTD)
        return picks.sum(self.values.weight, gate_NE).view_as(x_BTD)

    def init_state(self, batch: int, context: int) -> State:
        return {}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        return self.forward(x_BD, ctx), state

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        return best_of_all(self.retrieval, x_BTD) @ self.values.weight

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        routing, picked = routing_cost(width, config), config.heads * config.top_k
        rows = min(picked, config.keys**2)
        return routing + Cost(
            params=config.keys**2 * width,
            active_params=rows * width,
            flops=2 * picked * width,
            state_bytes=0,
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        check_count(PKM.info, config)

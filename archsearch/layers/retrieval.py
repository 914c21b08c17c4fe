"""Retrieval by product keys, which PEER and product key memory share. 1907.05242, section 3.1.

Shapes: ... any, N tokens, D model width, H heads, S the two sides, K keys of a side, Q width of a
half key, E chosen of a head (of all heads in picks), R = K * K rows of a table.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Role, fan_in, ones, require, zeros
from archsearch.catalogue import BlockInfo
from archsearch.cost import Cost
from archsearch.kernels.product_keys import route
from archsearch.kernels.table_rows import Picks

SPARSE_FROM = 1 << 16
"""Rows of a table from which on its gradient is sparse: it holds the rows that were picked alone.

A training step of PEER at width 128 with 1,024 tokens and 32 picks each took, dense and sparse, 59
and 49 ms with 2^14 rows, 137 and 65 with 2^16, 285 and 48 with 2^18 (one core). Below, the usual
optimizer is worth more than the time.
"""
EPS = 1e-5
"""Added to the variance of queries."""


class Settings(Protocol):
    """The parameters of retrieval."""

    @property
    def keys(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def key_width(self) -> int: ...
    @property
    def query_norm(self) -> str: ...


def unit_scores(w: Tensor, g: Generator) -> Tensor:
    """Draw keys so that the scores of a normalised query have variance 1."""
    return w.normal_(0.0, w.shape[-1] ** -0.5, generator=g)


ROLES = {
    "retrieval.query.weight": Role.hidden(None, "model", init=fan_in),
    "retrieval.keys": Role.small(None, None, None, None, init=unit_scores),
    "retrieval.norm.weight": Role.small(None, init=ones),
    "retrieval.norm.bias": Role.small(None, init=zeros),
}


class Retrieval(nn.Module):
    """For each token and head the rows of the best scores, and a softmax over these scores."""

    def __init__(self, width: int, config: Settings) -> None:
        super().__init__()
        self.top_k, half = config.top_k, config.key_width
        self.sparse = config.keys**2 >= SPARSE_FROM
        self.query = nn.Linear(width, config.heads * 2 * half, bias=False)
        self.keys = nn.Parameter(torch.empty(config.heads, 2, config.keys, half))
        self.norm: nn.LayerNorm | nn.RMSNorm | None = None
        if config.query_norm == "layer":
            self.norm = nn.LayerNorm(half)
        elif config.query_norm == "rms":
            self.norm = nn.RMSNorm(half)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Picks]:
        """Gates, shape (N, H * E), in the precision of x, and the rows that they weigh."""
        x_ND = x_BTD.flatten(0, -2)
        found = route(self.scores(x_ND).transpose(0, 1), self.top_k)
        gate_NHE, row_NHE = (x_HNE.transpose(0, 1) for x_HNE in found)
        return (
            gate_NHE.flatten(1).to(x_ND.dtype),
            Picks(row_NHE.flatten(1), sparse=self.sparse),
        )

    def scores(self, x_ND: Tensor) -> Tensor:
        """Scores of all half keys, shape (H, S, N, K), in float32 or better."""
        dtype = torch.promote_types(x_ND.dtype, torch.float32)
        heads, _, _, half = self.keys.shape
        q_ND = F.linear(x_ND.to(dtype), self.query.weight.to(dtype))
        q_HSNQ = self._norm(q_ND.view(-1, heads, 2, half)).permute(1, 2, 0, 3)
        return q_HSNQ @ self.keys.to(dtype).mT

    def _norm(self, q_Q: Tensor) -> Tensor:
        if self.norm is None:
            return q_Q
        gain_Q = self.norm.weight.to(q_Q.dtype)
        if isinstance(self.norm, nn.RMSNorm):
            return F.rms_norm(q_Q, gain_Q.shape, gain_Q, EPS)
        return F.layer_norm(q_Q, gain_Q.shape, gain_Q, self.norm.bias.to(q_Q.dtype), EPS)

    def table(self, width: int) -> nn.Embedding:
        """A table with one row for each pair of keys."""
        return nn.Embedding(self.keys.shape[2] ** 2, width, sparse=self.sparse)


def best_of_all(retrieval: Retrieval, x_BTD: Tensor) -> Tensor:
    """What `Retrieval` must find: gates of all rows, shape (B, T, R), by a search through all."""
    heads, _, _, half = retrieval.keys.shape
    q_BTD = x_BTD @ retrieval.query.weight.T
    gate_BTR: Any = 0
    for h, q_BTSQ in enumerate(q_BTD.unflatten(-1, (heads, 2, half)).unbind(-3)):
        if retrieval.norm is not None:
            shift = isinstance(retrieval.norm, nn.LayerNorm)
            c_BTSQ = q_BTSQ - q_BTSQ.mean(-1, keepdim=True) if shift else q_BTSQ
            scale = (c_BTSQ.square().mean(-1, keepdim=True) + EPS).sqrt()
            q_BTSQ = c_BTSQ / scale * retrieval.norm.weight
            if isinstance(retrieval.norm, nn.LayerNorm):
                q_BTSQ = q_BTSQ + retrieval.norm.bias
        one, two = (q_BTSQ[..., s, :] @ retrieval.keys[h, s].T for s in (0, 1))
        score_BTR = (one[..., :, None] + two[..., None, :]).flatten(-2)
        chosen_BTE = score_BTR.argsort(-1, descending=True)[..., : retrieval.top_k]
        masked_BTR = torch.full_like(score_BTR, -torch.inf).scatter(-1, chosen_BTE, 0.0)
        gate_BTR = gate_BTR + (score_BTR + masked_BTR).softmax(-1)
    return gate_BTR


def routing_cost(width: int, config: Settings) -> Cost:
    """Cost of finding the rows."""
    queries = config.heads * 2 * config.key_width
    norm = {"layer": 2, "rms": 1, "none": 0}[config.query_norm] * config.key_width
    matrices = queries * (width + config.keys)
    return Cost(
        params=matrices + norm, active_params=matrices + norm, flops=2 * matrices, state_bytes=0
    )


def check_count(info: BlockInfo, config: Settings) -> None:
    """Refuse to retrieve more than a side has keys.

    Raises:
        BlockError: saying what was given and what is legal.
    """
    because = f"is more than the {config.keys} keys of a side"
    require(info, "top_k", config.top_k, range(1, config.keys + 1), because)

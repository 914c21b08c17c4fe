"""Kernels of flash-linear-attention (fla-core), for the arguments of ours.

Its tensor cores multiply in the precision of the inputs, fp32 as TF32; `backends` says where that
may be. Importing it takes seconds, so this module is imported only when it was chosen.

Shapes: those of the functions that these stand for.
"""

from __future__ import annotations

from typing import Any

from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from fla.ops.gla import chunk_gla
from fla.ops.rwkv7 import chunk_rwkv7
from fla.ops.simple_gla import chunk_simple_gla
from torch import Tensor

from archsearch.kernels.precision import in_full

FORGOTTEN = 1e-30
"""Decay below which the past is gone: the least whose logarithm and its gradient are safe."""


@in_full
def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_BTH: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor,
    positive: bool = True,
) -> Tensor:
    """`kernels.ssd.ssd` as simple gated linear attention: queries C, keys B, values dt x."""
    shared = x_BTHP.shape[2] // B_BTGN.shape[2]
    k_BTHN, q_BTHN = (t.to(x_BTHP.dtype).repeat_interleave(shared, 2) for t in (B_BTGN, C_BTGN))
    v_BTHP = (dt_BTH[..., None] * x_BTHP).to(x_BTHP.dtype)
    log_a_BTH = a_BTH.float().clamp(min=FORGOTTEN).log()
    y_BTHP = chunk_simple_gla(q_BTHN, k_BTHN, v_BTHP, g=log_a_BTH, scale=1.0)[0]
    return y_BTHP + (D_H[:, None] * x_BTHP).to(x_BTHP.dtype)


@in_full
def gla(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_a_BTHK: Tensor) -> Tensor:
    """`gated_linear_attention` of the block `gla`."""
    return chunk_gla(q_BTHK, k_BTHK, v_BTHV, log_a_BTHK, scale=1.0)[0]


@in_full
def gated_deltanet(
    q_BTGK: Tensor, k_BTGK: Tensor, v_BTHV: Tensor, log_a_BTH: Tensor, beta_BTH: Tensor
) -> Tensor:
    """`gated_delta_rule` of the block `gated_deltanet`."""
    return chunk_gated_delta_rule(q_BTGK, k_BTGK, v_BTHV, log_a_BTH, beta_BTH, scale=1.0)[0]


@in_full
def rwkv7(heads: Any) -> Tensor:
    """`weighted_delta_rule` of the block `rwkv7`."""
    h = heads
    return chunk_rwkv7(h.r, h.log_w, h.k, h.v, a=-h.kap, b=h.gone, scale=1.0)[0]

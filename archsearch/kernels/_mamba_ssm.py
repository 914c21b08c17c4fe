"""The SSD kernels of mamba-ssm, for the arguments of ours.

Shapes: those of `kernels.ssd`.
"""

from __future__ import annotations

from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from torch import Tensor

from archsearch.kernels.precision import in_full

FORGOTTEN = 1e-30
"""Decay below which the past is gone: the least whose logarithm and its gradient are safe."""
SLOWEST = 1e-7
"""Least rate of decay, the rounding error of an fp32 decay near 1."""
CHUNK = 256
"""Time in a chunk; it has no effect on values."""


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
    """`kernels.ssd.ssd`, of which theirs is the case a = exp(A dt).

    With rates r = -log a for their dt, A = -1 and dt / r x for their x, both say the same.
    """
    rate_BTH = -a_BTH.float().clamp(min=FORGOTTEN).log()
    rate_BTH = rate_BTH.clamp(min=SLOWEST)
    u_BTHP = (x_BTHP * (dt_BTH / rate_BTH)[..., None]).to(x_BTHP.dtype)
    B_BTGN, C_BTGN = (t.to(x_BTHP.dtype) for t in (B_BTGN, C_BTGN))
    minus_H = -D_H.new_ones(len(D_H)).float()
    y_BTHP = mamba_chunk_scan_combined(u_BTHP, rate_BTH, minus_H, B_BTGN, C_BTGN, CHUNK)
    return y_BTHP + (D_H[:, None] * x_BTHP).to(x_BTHP.dtype)

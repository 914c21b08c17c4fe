"""The selective scan of mamba-ssm, for the arguments of ours.

It is CUDA code, which an installation may lack that has the Triton kernels of `_mamba_ssm`. A
package that looks for it only when it is called would fail too late, so it is imported here.

Shapes: those of `kernels.selective_scan`.
"""

from __future__ import annotations

import selective_scan_cuda  # noqa: F401
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from archsearch.kernels.precision import in_full


@in_full
def selective_scan(
    x_TBE: Tensor, dt_TBE: Tensor, A_log_EN: Tensor, B_TBN: Tensor, C_TBN: Tensor
) -> Tensor:
    """`kernels.selective_scan.selective_scan`; theirs has time last, and A = -exp(A_log)."""
    time_last = (t.float().permute(1, 2, 0) for t in (x_TBE, dt_TBE, B_TBN, C_TBN))
    x_BET, dt_BET, B_BNT, C_BNT = time_last
    y_BET = selective_scan_fn(x_BET, dt_BET, -A_log_EN.float().exp(), B_BNT, C_BNT)
    return y_BET.permute(2, 0, 1).to(x_TBE.dtype)

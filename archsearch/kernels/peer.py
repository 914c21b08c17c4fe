"""The experts of PEER: each one hidden unit, whose weights are a row of two tables.

    y_n = sum_e g_ne act(x_n . down_[i_ne]) up_[i_ne]

He 2024, arXiv 2407.04153. Shapes: N tokens, D width, E picks of a token, R experts.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from archsearch.kernels.dispatch import op
from archsearch.kernels.table_rows import Picks

ACT: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


@op("peer")
def experts(
    x_ND: Tensor, down_RD: Tensor, up_RD: Tensor, gate_NE: Tensor, picks: Picks, act: str
) -> Tensor:
    """y_ND. Gradients of tables are sparse where `picks` says so."""
    hidden_NE = ACT[act](picks.dot(down_RD, x_ND))
    return picks.sum(up_RD, gate_NE * hidden_NE)

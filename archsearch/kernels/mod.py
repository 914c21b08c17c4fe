"""Tokens on their way around a block: scored, taken out, and put back with a weight.

Shapes: R rows, of which N are taken; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.kernels.dispatch import op


def route(
    x: Tensor, router_1D: Tensor, predictor_1D: Tensor, bias_1: Tensor
) -> tuple[Tensor, Tensor]:
    """Inner products with both rows, for any leading axes of x_D; the second has the bias.

    In fp32 at least: rounding must not choose. The predictor alone gets a gradient.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    weight_2D = torch.cat((router_1D.detach(), predictor_1D)).to(exact)
    score, logit = F.linear(x.detach().to(exact), weight_2D).unbind(-1)
    return score, logit + bias_1.to(exact)


def take(x_RD: Tensor, row_N: Tensor) -> Tensor:
    """The rows x_ND, each at most once."""
    return x_RD.index_select(0, row_N)


@op("mod")
def put(y_ND: Tensor, x_ND: Tensor, gate_N: Tensor, row_N: Tensor, rows: int) -> Tensor:
    """(y - x) * gate where the rows were taken from, at most one to a row, and 0 elsewhere."""
    change_ND = (y_ND - x_ND) * gate_N[:, None].to(x_ND)
    return x_ND.new_zeros(rows, x_ND.shape[1]).index_add_(0, row_N, change_ND)

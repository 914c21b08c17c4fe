"""Products with a few rows of a large table, at the cost of these rows alone.

Each of N tokens picks E rows of a table, and either takes their weighted sum (`Picks.sum`) or their
inner products with its own vector (`Picks.dot`). Each is the gradient of the other:

    s_nd = sum_e w_ne T_[i_ne]d     dL/dw_ne = sum_d g_nd T_[i_ne]d     dL/dT_r = sum w_ne g_n
    p_ne = sum_d x_nd T_[i_ne]d     dL/dx_nd = sum_e g_ne T_[i_ne]d     dL/dT_r = sum g_ne x_n

with the last sums over all (n, e) that picked row r. No picked row is ever copied: sums are an
`embedding_bag`, inner products its gradient to the weights, and the gradient of the table is a bag
over tokens, sorted by the row that they picked.

The other way is to multiply with the whole table, then gather or scatter. On one core, forward and
backward of both products at width 128 and 2,048 tokens, milliseconds of this and of the other way:

    picks of a token    256 rows      1,024 rows     4,096 rows
    8                   4 and 9       5 and 33       7 and 179
    128                 25 and 11     28 and 50      33 and 195

Shapes: N tokens, E picks of a token, D width, R rows of the table, P = N * E picks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula


class Picks:
    """The rows that each token picked.

    Args:
        row_NE: Indices of rows.
        sparse: Whether gradients of tables are sparse tensors that hold the picked rows alone.
    """

    def __init__(self, row_NE: Tensor, *, sparse: bool = False) -> None:
        self.row_NE, self.sparse = row_NE, sparse
        self._sorted: tuple[Tensor, Tensor] | None = None

    def sum(self, table_RD: Tensor, weight_NE: Tensor) -> Tensor:
        """The weighted sum of the rows of each token, shape (N, D)."""
        return _Sum.apply(table_RD, weight_NE, self)  # type: ignore[no-untyped-call]

    def dot(self, table_RD: Tensor, x_ND: Tensor) -> Tensor:
        """The inner products of x with the rows of each token, shape (N, E)."""
        return _Dot.apply(table_RD, x_ND, self)  # type: ignore[no-untyped-call]

    def _by_row(self) -> tuple[Tensor, Tensor]:
        """Picks in the order of their rows: the rows, and which picks they are. Sorted once."""
        if self._sorted is not None:
            return self._sorted
        row_P, pick_P = self.row_NE.flatten().int().sort(stable=True)
        if not torch.compiler.is_compiling():  # what is compiled keeps nothing, and sorts once
            self._sorted = row_P, pick_P
        return row_P, pick_P

    def table_gradient(self, weight_NE: Tensor, x_ND: Tensor, table_RD: Tensor) -> Tensor:
        """For each row of the table the sum of weight * x over the tokens that picked it."""
        row_P, pick_P = self._by_row()
        if self.sparse:
            row_R, count_R = row_P.unique_consecutive(return_counts=True)
            begin_R = count_R.cumsum(0) - count_R
        else:
            begin_R = torch.searchsorted(
                row_P, torch.arange(len(table_RD), dtype=row_P.dtype, device=row_P.device)
            )
        gradient_RD = F.embedding_bag(
            pick_P // self.row_NE.shape[1],
            x_ND,
            begin_R,
            mode="sum",
            per_sample_weights=weight_NE.flatten().index_select(0, pick_P),
        )
        if not self.sparse:
            return gradient_RD
        return torch.sparse_coo_tensor(
            row_R[None].long(),
            gradient_RD,
            table_RD.shape,
            is_coalesced=True,
            check_invariants=False,
        )


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_RD: Tensor, weight_NE: Tensor, picks: Picks) -> Tensor:
        ctx.save_for_backward(table_RD, weight_NE)
        ctx.picks = picks
        return bag(table_RD, picks.row_NE, weight_NE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (table_RD, weight_NE), picks = ctx.saved_tensors, ctx.picks
        of_table, of_weight = ctx.needs_input_grad[:2]
        grad_ND = grad_ND.contiguous()
        return (
            picks.table_gradient(weight_NE, grad_ND, table_RD) if of_table else None,
            dots(table_RD, picks.row_NE, grad_ND) if of_weight else None,
            None,
        )


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_RD: Tensor, x_ND: Tensor, picks: Picks) -> Tensor:
        ctx.save_for_backward(table_RD, x_ND)
        ctx.picks = picks
        return dots(table_RD, picks.row_NE, x_ND)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (table_RD, x_ND), picks = ctx.saved_tensors, ctx.picks
        of_table, of_x = ctx.needs_input_grad[:2]
        grad_NE = grad_NE.contiguous()
        return (
            picks.table_gradient(grad_NE, x_ND, table_RD) if of_table else None,
            bag(table_RD, picks.row_NE, grad_NE) if of_x else None,
            None,
        )


@torch.library.custom_op("archsearch::bag", mutates_args=())
def bag(table_RD: Tensor, row_NE: Tensor, weight_NE: Tensor) -> Tensor:
    """Weighted sums of rows, shape (N, D); without a gradient."""
    return F.embedding_bag(row_NE, table_RD, mode="sum", per_sample_weights=weight_NE)


@torch.library.custom_op("archsearch::dots", mutates_args=())
def dots(table_RD: Tensor, row_NE: Tensor, x_ND: Tensor) -> Tensor:
    """Inner products with rows, shape (N, E); without a gradient."""
    count, picks = row_NE.shape
    token_P = torch.arange(count, device=row_NE.device).repeat_interleave(picks)
    begin_N = torch.arange(0, count * picks, picks, device=row_NE.device)
    product_P = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x_ND, table_RD, row_NE.flatten(), begin_N, token_P, 0
    )
    return product_P.view(count, picks)


@bag.register_fake
def _bag_shape(table_RD: Tensor, row_NE: Tensor, weight_NE: Tensor) -> Tensor:
    return table_RD.new_empty(len(row_NE), table_RD.shape[1])


@dots.register_fake
def _dots_shape(table_RD: Tensor, row_NE: Tensor, x_ND: Tensor) -> Tensor:
    return x_ND.new_empty(row_NE.shape)


@register_flop_formula([torch.ops.archsearch.bag, torch.ops.archsearch.dots])
def _flops(table_RD: Size, row_NE: Size, other: Size, *rest: object, **named: object) -> int:
    """Both multiply and add once for every number of every picked row."""
    return 2 * row_NE[0] * row_NE[1] * table_RD[1]

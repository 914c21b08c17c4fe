"""Parts of a linear recurrence that is computed in chunks.

Shapes: B batch, I chunks, H heads, Q time in a chunk, K key width, V value width, F any width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from archsearch.kernels.precision import in_full

FORGOTTEN = -30.0
"""Log decay in one step below which the past is gone (1e-13): keeps the sums over a chunk exact."""


def border_states(M_BIHKK: Tensor, N_BIHKV: Tensor) -> Tensor:
    """S_0 = 0 and S_(i+1) = M_i S_i + N_i: all states S_BIHKV from all matrices, one more of them.

    The backward pass is written by hand: it needs one product per chunk in sequence, and gets the
    gradients of all M from one more.
    """
    states: Tensor = _Borders.apply(M_BIHKK, N_BIHKV)  # type: ignore[no-untyped-call]
    return states


def states_after(M_BIHKK: Tensor, N_BIHKV: Tensor, S_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """The same from a state other than 0: the states S_BIHKV before each step, and the last one.

    For decoding: the gradient is left to autograd.
    """
    states = [S_BHKV]
    for M_BHKK, N_BHKV in zip(M_BIHKK.unbind(1), N_BIHKV.unbind(1), strict=True):
        states.append(N_BHKV + M_BHKK @ states[-1])
    return torch.stack(states[:-1], 1), states[-1]


def unit_solve(below_QQ: Tensor, x_QF: Tensor) -> Tensor:
    """(1 + the part of `below` under its diagonal)^-1 x, for any leading axes.

    By substitution: products of powers of `below` lose all digits where keys resemble each other.
    The transposed system is the one that needs no copy in column order.
    """
    return torch.linalg.solve_triangular(
        below_QQ.mT, x_QF.mT, upper=True, left=False, unitriangular=True
    ).mT


class _Borders(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, M_BIHKK: Tensor, N_BIHKV: Tensor) -> Tensor:
        rows_BH = M_BIHKK.shape[0], M_BIHKK.shape[2]
        states = [N_BIHKV.new_zeros(N_BIHKV[:, 0].shape).flatten(0, 1)]
        for M, N in zip(M_BIHKK.unbind(1), N_BIHKV.unbind(1), strict=True):
            states.append(torch.baddbmm(N.flatten(0, 1), M.flatten(0, 1), states[-1]))
        S_BIHKV = torch.stack([S.unflatten(0, rows_BH) for S in states], 1)
        ctx.save_for_backward(M_BIHKK, S_BIHKV)
        return S_BIHKV

    @staticmethod
    @in_full
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        M_BIHKK, S_BIHKV = ctx.saved_tensors
        own = [g.flatten(0, 1) for g in grads[0].unbind(1)]
        sums = [own.pop()]
        for M in M_BIHKK[:, 1:].unbind(1)[::-1]:
            sums.append(torch.baddbmm(own.pop(), M.flatten(0, 1).mT, sums[-1]))
        grad_N = torch.stack([g.view_as(S_BIHKV[:, 0]) for g in sums[::-1]], 1)
        return grad_N @ S_BIHKV[:, :-1].mT, grad_N

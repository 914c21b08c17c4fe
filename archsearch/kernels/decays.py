"""Products of decays over every span of a chunk, and their gradient.

They are built by doubling. The products inside two neighbouring spans of width M are known; for t
in the later span and s in the earlier one, a_(s+1) ... a_t is the product from the border through
t times the product from behind s to the border. There is no logarithm, so a decay may be 0 or
negative; and no division, so the gradient is as exact as the value. With |a| <= 1 nothing
overflows.

Shapes: X chunks, Q time in a chunk (a power of 2), M width of a span, J pairs of spans in a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Products(NamedTuple):
    """What `products` returns; also the gradient of each."""

    inside: Tensor
    """XQQ: a_(s+1) ... a_t for each t and s <= t; 0 for s > t."""
    before: Tensor
    """XQ: the product from the start of the chunk through t."""
    after: Tensor
    """XQ: the product of all behind t, to the end of the chunk."""


Levels = list[tuple[Tensor, Tensor]]
"""For each width, before and after inside spans of that width: each XJ2M."""


def products(a_XQ: Tensor) -> tuple[Products, Levels]:
    """All products, and what `products_grad` needs."""
    before_XQ, after_XQ = a_XQ, torch.ones_like(a_XQ)
    inside_XQQ = a_XQ.new_zeros(*a_XQ.shape, a_XQ.shape[1])
    inside_XQQ.diagonal(dim1=1, dim2=2).fill_(1.0)
    levels: Levels = []
    for level in range(a_XQ.shape[1].bit_length() - 1):
        before, after = (x.reshape(len(x), -1, 2, 1 << level) for x in (before_XQ, after_XQ))
        levels.append((before, after))
        torch.mul(before[:, :, 1, :, None], after[:, :, :1], out=_pairs(inside_XQQ, level))
        before_XQ, after_XQ = before.clone(), after.clone()
        before_XQ[:, :, 1] *= before[:, :, 0, -1:]
        after_XQ[:, :, 0] *= before[:, :, 1, -1:]
    size = a_XQ.shape
    return Products(inside_XQQ, before_XQ.view(size), after_XQ.view(size)), levels


def products_grad(levels: Levels, grad: Products) -> Tensor:
    """The gradient of a_XQ from that of the products; entries for s > t have no effect."""
    inside_XQQ, dbefore_XQ, dafter_XQ = grad
    for level, (before, after) in reversed(list(enumerate(levels))):
        pairs_XJMM = _pairs(inside_XQQ, level)
        dbefore, dafter = dbefore_XQ.view(before.shape), dafter_XQ.view(before.shape)
        later, earlier = before[:, :, 1], after[:, :, 0]
        dlater, dearlier = dbefore[:, :, 1], dafter[:, :, 0]
        dbefore_XQ, dafter_XQ = dbefore.clone(), dafter.clone()
        dbefore_XQ[:, :, 0, -1] += (dlater * later).sum(-1)
        dbefore_XQ[:, :, 1] = dlater * before[:, :, 0, -1:]
        dbefore_XQ[:, :, 1] += (pairs_XJMM * earlier[:, :, None]).sum(-1)
        dbefore_XQ[:, :, 1, -1] += (dearlier * earlier).sum(-1)
        dafter_XQ[:, :, 0] = dearlier * later[..., -1:]
        dafter_XQ[:, :, 0] += (pairs_XJMM * later[..., None]).sum(-2)
    return dbefore_XQ.view(len(inside_XQQ), -1)


def _pairs(x_XQQ: Tensor, level: int) -> Tensor:
    """x_XJMM: for each pair of neighbouring spans, rows of the later, columns of the earlier."""
    count, width = x_XQQ.shape[-1] >> (level + 1), 1 << level
    x_XJ2MJ2M = x_XQQ.view(-1, count, 2, width, count, 2, width)
    return x_XJ2MJ2M[:, :, 1, :, :, 0].diagonal(dim1=1, dim2=3).movedim(-1, 1)

"""The loops over mini-batches of the `ttt` block, with their backward passes written by hand.

A loop fits the inner models of all heads to one mini-batch after another. It yields the weights W
that each mini-batch starts from and the gradient G of the loss by the output of each layer; the
gradient by W is then inputs^T G. A row of ones in the inputs carries the bias.

Shapes: I mini-batches, N batch x heads, M tokens in a mini-batch, K head width, E = K + 1, F hidden
width of the MLP, J = F + 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.kernels.dispatch import op
from archsearch.kernels.precision import in_full

EPS = 1e-6
"""Added to the variance in every LN."""
CUBIC = 0.044715
"""Of the tanh approximation of GELU."""


def gelu(x: Tensor) -> Tensor:
    """GELU, tanh approximation."""
    return F.gelu(x, approximate="tanh")


def gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """`grad` times the first derivative."""
    found: Tensor = torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    return found


def gelu_second(z: Tensor) -> Tensor:
    """The second derivative; beyond 20 it is 0 in floating point, and the cube might overflow."""
    z, scale = z.clamp(-20, 20), math.sqrt(2 / math.pi)
    square = z * z
    t = torch.tanh((square * (CUBIC * scale)).add_(scale).mul_(z))
    slope = square.mul_(3 * CUBIC * scale).add_(scale)
    bend = (t * slope).mul_(slope).neg_().add_(z, alpha=3 * CUBIC * scale).mul_(z)
    return slope.add_(bend).mul_(t.mul_(t).neg_().add_(1))


def with_one(x: Tensor) -> Tensor:
    """With a column of ones."""
    return F.pad(x, (0, 1), value=1.0)


def eta_of(tok_M: Tensor, lr_INM1: Tensor) -> Tensor:
    """What the gradient of token j counts for at token i: eta_INMM, negative, 0 for j > i."""
    return -tok_M[:, None].expand(-1, len(tok_M)).tril() * lr_INM1.mT


def offset_of(gain: Tensor, bias: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The gradient of 1/2 |gain x + bias - (v - k)|^2 by x, less gain^2 x."""
    return torch.addcmul(gain * bias, gain, k - v)


def weigh(q: Tensor, k: Tensor, eta: Tensor) -> Tensor:
    """(q k + 1) eta for every pair of tokens in a mini-batch; the 1 is the bias."""
    product = torch.baddbmm(q.new_ones(1, 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT)
    return product.view_as(eta) * eta


def read(x: Tensor, W: Tensor, weight: Tensor, G: Tensor) -> Tensor:
    """A layer with the weights of each token: x W + weight G."""
    shape = *x.shape[:-1], W.shape[-1]
    x, W, weight, G = (t.flatten(0, 1) for t in (x, W, weight, G))
    return torch.baddbmm(torch.bmm(x, W), weight, G).view(*shape)


class Fit:
    """G, the gradient of the loss by the output z of the inner model, and its derivatives.

    x = LN(z) without gain, p = gain^2 x + offset, G = r (p - mean p - x mean(p x)), 1 / r being the
    standard deviation: the backward pass of LN.
    """

    def __init__(self, z: Tensor, offset: Tensor, square: Tensor) -> None:
        self.x, self.mean, self.r = torch.native_layer_norm(z, z.shape[-1:], None, None, EPS)
        self.z, self.square = z, square
        self.p = torch.addcmul(offset, self.x, square)
        self.G = self._through_norm(self.p)

    def _through_norm(self, grad: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            grad, self.z, self.z.shape[-1:], self.mean, self.r, None, None, [True, False, False]
        )[0]
        return found

    def backward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient u by G those by `offset` and by z."""
        by_p, mean_K1 = self._through_norm(u), u.new_full((u.shape[-1], 1), 1 / u.shape[-1])
        # a product with a column is far quicker than a mean over the last axis
        ra, rb, re = (self.r * ((a * b) @ mean_K1) for a, b in self._pairs(u))
        by_x = (self.square * by_p).addcmul_(u, ra, value=-1).addcmul_(self.p, rb, value=-1)
        return by_p, self._through_norm(by_x).addcmul_(self.x, re, value=-1)

    def _pairs(self, u: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return (self.p, self.x), (u, self.x), (u, self.G)


class LinearLoop(torch.autograd.Function):
    """W_INEK and G_INMK of the linear model.

    Args: the keys with their column of ones, tok_M lr, `offset` and `square` of `Fit`, the first W.
    """

    @staticmethod
    def forward(
        ctx: Any, key: Tensor, rate: Tensor, offset: Tensor, square: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        W, G = start.new_empty(len(key), *start.shape), torch.empty_like(offset)
        W[0], ctx.fits = start, []
        for i in range(len(key)):
            fit = Fit(torch.bmm(key[i], W[i]), offset[i], square)
            G[i] = fit.G
            ctx.fits.append(fit)
            if i + 1 < len(key):
                step = key[i] * rate[i]
                torch.baddbmm(W[i], step.mT, fit.G, alpha=-1, out=W[i + 1])
        ctx.save_for_backward(key, rate, W)
        return W, G

    @staticmethod
    @once_differentiable
    @in_full
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        (key, rate, W), (from_W, from_G) = ctx.saved_tensors, grads
        by_key, by_rate = torch.empty_like(key), torch.zeros_like(rate)
        by_offset, by_W = torch.empty_like(from_G), torch.zeros_like(from_W[0])
        for i in reversed(range(len(key))):
            fit, u = ctx.fits[i], from_G[i]
            if i + 1 < len(key):
                by_step = torch.bmm(fit.G, by_W.mT)
                by_rate[i] = (by_step * key[i]).sum(-1, keepdim=True)
                u = torch.baddbmm(u, key[i] * rate[i], by_W, alpha=-1)
            by_offset[i], by_z = fit.backward(u)
            torch.bmm(by_z, W[i].mT, out=by_key[i])
            if i + 1 < len(key):
                by_key[i].addcmul_(by_step, rate[i], value=-1)
            by_W = by_W.add_(from_W[i]).baddbmm_(key[i].mT, by_z)
        return by_key, by_rate.neg_(), by_offset, _by_square(ctx.fits, by_offset), by_W


@op("ttt_linear")
def fit_linear(
    k: Tensor, rate: Tensor, offset: Tensor, square: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit the linear model to one mini-batch after another.

    Args:
        k: The keys, k_INMK.
        rate: What the gradient of a token counts for at the end of its mini-batch, rate_INM1.
        offset: As for `Fit`, offset_INMK.
        square: gain^2, square_N1K.
        start: The weights before the first token, start_NEK; the last row is the bias.

    Returns:
        W_INEK, the weights that each mini-batch starts from, and G_INMK.
    """
    given = with_one(k), rate, offset, square, start
    found: tuple[Tensor, Tensor] = LinearLoop.apply(*given)  # type: ignore[no-untyped-call]
    return found


class MLPLoop(torch.autograd.Function):
    """W1_INEF, G1_INMF, W2_INJK, G2_INMK of the MLP, and A_INMJ, gelu of the keys' hidden layer.

    Args: as for `LinearLoop`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        key: Tensor,
        rate: Tensor,
        offset: Tensor,
        square: Tensor,
        start1: Tensor,
        start2: Tensor,
    ) -> tuple[Tensor, ...]:
        W1, W2 = (w.new_empty(len(key), *w.shape) for w in (start1, start2))
        G1, G2 = key.new_empty(*key.shape[:3], W1.shape[-1]), torch.empty_like(offset)
        A, one = key.new_ones(*key.shape[:3], W2.shape[-2]), torch.ones_like(G1[0])
        W1[0], W2[0], ctx.fits, ctx.hidden = start1, start2, [], []
        for i in range(len(key)):
            z = torch.bmm(key[i], W1[i])
            A[i, ..., :-1] = gelu(z)
            fit = Fit(torch.bmm(A[i], W2[i]), offset[i], square)
            back, slope = torch.bmm(fit.G, W2[i, :, :-1].mT), gelu_backward(one, z)
            torch.mul(back, slope, out=G1[i])
            G2[i] = fit.G
            ctx.fits.append(fit)
            ctx.hidden.append((z, back, slope))
            if i + 1 < len(key):
                step = key[i] * rate[i]
                torch.baddbmm(W1[i], step.mT, G1[i], alpha=-1, out=W1[i + 1])
                torch.baddbmm(W2[i], A[i].mT, rate[i] * fit.G, alpha=-1, out=W2[i + 1])
        ctx.save_for_backward(key, rate, W1, G1, W2, A)
        return W1, G1, W2, G2, A

    @staticmethod
    @once_differentiable
    @in_full
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        key, rate, W1, G1, W2, A = ctx.saved_tensors
        from_W1, from_G1, from_W2, from_G2, from_A = grads
        by_key, by_rate = torch.empty_like(key), torch.zeros_like(rate)
        by_offset = torch.empty_like(from_G2)
        by_W1, by_W2 = torch.zeros_like(from_W1[0]), torch.zeros_like(from_W2[0])
        for i in reversed(range(len(key))):
            fit, (z, back, slope) = ctx.fits[i], ctx.hidden[i]
            by_G1, by_G2, by_A = from_G1[i], from_G2[i], from_A[i]
            if i + 1 < len(key):
                by_step = torch.bmm(G1[i], by_W1.mT)
                by_G1 = torch.baddbmm(by_G1, key[i] * rate[i], by_W1, alpha=-1)
                moved = torch.bmm(A[i], by_W2)
                by_rate[i] = (by_step * key[i]).sum(-1, keepdim=True)
                by_rate[i] += (moved * fit.G).sum(-1, keepdim=True)
                by_G2 = torch.addcmul(by_G2, moved, rate[i], value=-1)
                by_A = torch.baddbmm(by_A, rate[i] * fit.G, by_W2.mT, alpha=-1)
            by_back = by_G1 * slope
            by_offset[i], by_out = fit.backward(torch.baddbmm(by_G2, by_back, W2[i, :, :-1]))
            by_W2 = by_W2.add_(from_W2[i]).baddbmm_(A[i].mT, by_out)
            by_W2[:, :-1] += torch.bmm(by_back.mT, fit.G)
            by_a = torch.baddbmm(by_A[..., :-1], by_out, W2[i, :, :-1].mT)
            by_z = gelu_second(z).mul_(back).mul_(by_G1).addcmul_(by_a, slope)
            torch.bmm(by_z, W1[i].mT, out=by_key[i])
            if i + 1 < len(key):
                by_key[i].addcmul_(by_step, rate[i], value=-1)
            by_W1 = by_W1.add_(from_W1[i]).baddbmm_(key[i].mT, by_z)
        by_square = _by_square(ctx.fits, by_offset)
        return by_key, by_rate.neg_(), by_offset, by_square, by_W1, by_W2


def _by_square(fits: list[Fit], by_offset: Tensor) -> Tensor:
    x = torch.stack([fit.x for fit in fits])
    return (x * by_offset).sum((0, 2)).unsqueeze(1)

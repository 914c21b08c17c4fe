"""RMSNorm, g * x / sqrt(mean(x^2) + eps), its gradients written out on pieces that stay cached.

Zhang and Sennrich 2019, arXiv 1910.07467. On a CPU torch takes the gradient apart into a dozen
passes over memory.

Shapes: ... any, R rows, K channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from archsearch.kernels.blocking import row_pieces


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last axis, faster to train on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not (x.is_cpu and torch.is_grad_enabled()):
            return super().forward(x)
        apply: Any = _RMSNorm.apply
        exact = torch.promote_types(x.dtype, torch.float32)
        y: Tensor = apply(x.reshape(-1, x.shape[-1]).to(exact), self.weight.to(exact), self.eps)
        return y.view(x.shape).to(x.dtype)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x_RK: Tensor, g_K: Tensor, eps: float) -> Tensor:
        y_RK = torch.empty_like(x_RK)
        scale_R1 = torch.empty_like(x_RK[:, :1])
        for rows in row_pieces(x_RK):
            x = x_RK[rows]
            square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
            scale = torch.rsqrt(square.div_(x.shape[-1]).add_(eps), out=scale_R1[rows])
            torch.mul(x, scale, out=y_RK[rows]).mul_(g_K)
        ctx.save_for_backward(x_RK, g_K, scale_R1)
        return y_RK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_RK: Tensor) -> tuple[Tensor | None, ...]:
        x_RK, g_K, scale_R1 = ctx.saved_tensors
        dx_RK, dg_K = torch.empty_like(x_RK), torch.zeros_like(g_K)
        mean_K1 = g_K[:, None] / len(g_K)
        for rows in row_pieces(x_RK):
            dy, scale, dx = dy_RK[rows], scale_R1[rows], dx_RK[rows]
            n = x_RK[rows] * scale
            both = torch.mul(dy, n, out=dx)
            dg_K += both.sum(0)
            n.mul_(both @ mean_K1)
            torch.mul(dy, g_K, out=dx).sub_(n).mul_(scale)
        return dx_RK, dg_K, None

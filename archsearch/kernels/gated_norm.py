"""Gate, then RMSNorm: v = y * silu(z), out = v / sqrt(mean(v^2) + eps), the mean over each group.

The gradient is written out by hand, on pieces that stay in the cache.

Shapes: R rows, G groups, K channels of a group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archsearch.kernels.blocking import row_pieces

EPS = 1e-5
_silu, _silu_grad = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input


def gated_norm(y: Tensor, z: Tensor, groups: int) -> Tensor:
    """The gated and normalised channels, without a gain; `y` and `z` have the same shape."""
    shape_RGK = -1, groups, y.shape[-1] // groups
    out_RGK: Tensor = _GatedNorm.apply(  # type: ignore[no-untyped-call]
        y.reshape(shape_RGK), z.reshape(shape_RGK)
    )
    return out_RGK.view(y.shape)


def gated_norm_ref(y: Tensor, z: Tensor, groups: int) -> Tensor:
    """The same, step by step."""
    v = (y * F.silu(z)).unflatten(-1, (groups, -1))
    return (v * torch.rsqrt(v.square().mean(-1, keepdim=True) + EPS)).flatten(-2)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RGK: Tensor, z_RGK: Tensor) -> Tensor:
        out_RGK = torch.empty(y_RGK.shape, dtype=y_RGK.dtype, device=y_RGK.device)
        scale_RG1 = torch.empty_like(out_RGK[..., :1])
        for rows in row_pieces(y_RGK):
            out = _silu(z_RGK[rows], out=out_RGK[rows]).mul_(y_RGK[rows])
            square = torch.linalg.vector_norm(out, dim=-1, keepdim=True).square_()
            torch.rsqrt(square.div_(out.shape[-1]).add_(EPS), out=scale_RG1[rows])
            out.mul_(scale_RG1[rows])
        ctx.save_for_backward(y_RGK, z_RGK, out_RGK, scale_RG1)
        return out_RGK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_RGK: Tensor) -> tuple[Tensor, Tensor]:
        y_RGK, z_RGK, out_RGK, scale_RG1 = ctx.saved_tensors
        dy_RGK, dz_RGK = torch.empty_like(out_RGK), torch.empty_like(out_RGK)
        for rows in row_pieces(y_RGK):
            y, z, out, dout = (t[rows] for t in (y_RGK, z_RGK, out_RGK, dout_RGK))
            dy, dz = dy_RGK[rows], dz_RGK[rows]
            along = torch.mul(out, dout, out=dy).mean(-1, keepdim=True)
            dv = torch.addcmul(dout, out, along, value=-1).mul_(scale_RG1[rows])
            _silu(z, out=dy).mul_(dv)
            _silu_grad(dv.mul_(y), z, grad_input=dz)
        return dy_RGK, dz_RGK

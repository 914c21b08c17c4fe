"""The gated feed-forward y = W_down (act(W_gate x) * W_up x) with its gradients written out.

The same products and the same rounding as under autograd. Three passes over the hidden layer are
saved: the gradient of the gate is made in place, and both gradients of x are added by the product.

Shapes: ... any, N tokens, D model width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ACT: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}
_SLOPE: dict[str, Callable[..., Tensor]] = {
    "silu": torch.ops.aten.silu_backward.grad_input,
    "gelu": torch.ops.aten.gelu_backward.grad_input,
}


def gated_ffn(x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, act: str) -> Tensor:
    """x_D to y_D, any leading axes; `act` is a key of `ACT`. Differentiable once."""
    apply: Any = _GatedFFN.apply
    y_ND: Tensor = apply(x.flatten(0, -2), gate_FD, up_FD, down_DF, act)
    return y_ND.view_as(x)


class _GatedFFN(Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, act: str
    ) -> Tensor:
        g_NF, u_NF = x_ND @ gate_FD.T, x_ND @ up_FD.T
        a_NF = ACT[act](g_NF)
        h_NF = a_NF * u_NF
        ctx.save_for_backward(x_ND, gate_FD, up_FD, down_DF, g_NF, u_NF, a_NF, h_NF)
        ctx.act = act
        return h_NF @ down_DF.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, gate_FD, up_FD, down_DF, g_NF, u_NF, a_NF, h_NF = ctx.saved_tensors
        dh_NF = dy_ND @ down_DF
        du_NF = dh_NF * a_NF
        dg_NF = dh_NF.mul_(u_NF)
        _SLOPE[ctx.act](dg_NF, g_NF, grad_input=dg_NF)
        dx_ND = (du_NF @ up_FD).addmm_(dg_NF, gate_FD)
        return dx_ND, dg_NF.T @ x_ND, du_NF.T @ x_ND, dy_ND.T @ h_NF, None

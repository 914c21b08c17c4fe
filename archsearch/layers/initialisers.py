"""How parameters start that several blocks have."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor


def draw_conv(w: Tensor, g: Generator) -> Tensor:
    """Draw from U(-k^-1/2, k^-1/2) for a filter of length k."""
    bound = w.shape[-1] ** -0.5
    return w.uniform_(-bound, bound, generator=g)


def draw_dt_bias(w: Tensor, g: Generator) -> Tensor:
    """Let softplus(w) be log-uniform in [0.001, 0.1]."""
    dt = w.uniform_(math.log(1e-3), math.log(1e-1), generator=g).exp_().clamp_(min=1e-4)
    return w.copy_(dt + torch.log(-torch.expm1(-dt)))

"""Values and gradients of one and the same layer from two packages."""

import torch


def with_gradients(y_BTD, leaves):
    """The output, and the gradients of a random projection of it, by name."""
    generator = torch.Generator().manual_seed(1)
    weight_BTD = torch.randn(y_BTD.shape, generator=generator, dtype=y_BTD.dtype)
    grads = torch.autograd.grad((y_BTD * weight_BTD).sum(), list(leaves.values()))
    return {"output": y_BTD.detach(), **dict(zip(leaves, grads, strict=True))}


def distance(got, want):
    """The largest error of output and gradients, each relative to its norm."""
    assert got.keys() == want.keys()
    return max(float((got[n] - want[n]).norm() / want[n].norm()) for n in want)

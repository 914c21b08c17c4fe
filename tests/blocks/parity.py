"""Values and gradients of one and the same layer from two packages."""

import importlib.util
from pathlib import Path

import pytest
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


def between(rule, other, given):
    """How far two functions of the tensors `given` are from each other, see `distance`."""
    leaves = {str(i): x.detach().requires_grad_() for i, x in enumerate(given)}
    got, want = (with_gradients(f(*leaves.values()), leaves) for f in (rule, other))
    return distance(got, want)


def naive_of_fla(name):
    """The plain file of one of its `ops` alone: the package needs a compiler for GPUs."""
    pytest.importorskip("einops", reason="einops needs the extra oracles")
    found = importlib.util.find_spec("fla")
    if found is None:
        pytest.skip("fla-core needs the extra oracles")
    file = Path(next(iter(found.submodule_search_locations))) / "ops" / name / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_naive_{file.parent.name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

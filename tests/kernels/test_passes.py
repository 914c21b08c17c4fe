"""The convolution and the gated norm against their references, on both sides of a piece's size."""

import pytest
import torch

from archsearch.kernels import blocking
from archsearch.kernels.conv_silu import conv_silu, conv_silu_ref
from archsearch.kernels.gated_norm import gated_norm, gated_norm_ref


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).double()


def assert_same(run, reference, *inputs):
    inputs = [v.requires_grad_() for v in inputs]
    outputs = [torch.cat(f(*inputs), -1) for f in (run, reference)]
    weight = normal(*outputs[0].shape)
    grads = [torch.autograd.grad((y * weight).sum(), inputs) for y in outputs]
    for got, want in zip((outputs[0], *grads[0]), (outputs[1], *grads[1]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cached", [1, 150, 10**6])
@pytest.mark.parametrize("time", [1, 2, 5, 40])
@pytest.mark.parametrize("kernel", [1, 2, 4, 16])
def test_convolution_equals_torchs(monkeypatch, cached, time, kernel):
    monkeypatch.setattr(blocking, "CACHED", cached)
    sizes = [4, 3, 1]
    x, filters, bias = normal(3, time, 8), normal(8, kernel), normal(8)
    assert_same(
        lambda *given: conv_silu(*given, sizes),
        lambda *given: conv_silu_ref(*given, sizes),
        x, filters, bias,
    )  # fmt: skip


@pytest.mark.parametrize("cached", [1, 150, 10**6])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_gated_norm_equals_its_steps(monkeypatch, cached, groups):
    monkeypatch.setattr(blocking, "CACHED", cached)
    assert_same(
        lambda *given: (gated_norm(*given, groups),),
        lambda *given: (gated_norm_ref(*given, groups),),
        normal(3, 7, 16), normal(3, 7, 16) + 1,
    )  # fmt: skip

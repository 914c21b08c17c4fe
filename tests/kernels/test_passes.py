"""Hand-written gradients against autograd: convolution, gated norm, gated feed-forward."""

import pytest
import torch

from archsearch.kernels import blocking
from archsearch.kernels.conv_silu import conv_silu, conv_silu_ref
from archsearch.kernels.gated_ffn import ACT, gated_ffn
from archsearch.kernels.gated_norm import gated_norm, gated_norm_ref
from archsearch.kernels.rms_norm import RMSNorm


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
    assert_same(
        lambda *given: conv_silu(*given, None, sizes),
        lambda *given: conv_silu_ref(*given, None, sizes),
        x, filters,
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


@pytest.mark.parametrize("act", ACT)
def test_gated_feed_forward_equals_autograd(act):
    assert_same(
        lambda *given: (gated_ffn(*given, act),),
        lambda x, gate, up, down: ((ACT[act](x @ gate.T) * (x @ up.T)) @ down.T,),
        normal(2, 5, 6), normal(9, 6), normal(9, 6) + 1, normal(6, 9),
    )  # fmt: skip


@pytest.mark.parametrize("cached", [1, 50, 10**6])
def test_rms_norm_equals_torchs(monkeypatch, cached):
    monkeypatch.setattr(blocking, "CACHED", cached)
    ours, torchs = RMSNorm(16, eps=1e-5), torch.nn.RMSNorm(16, eps=1e-5)
    assert_same(
        lambda x, gain: (torch.func.functional_call(ours, {"weight": gain}, (x,)),),
        lambda x, gain: (torch.func.functional_call(torchs, {"weight": gain}, (x,)),),
        normal(3, 7, 16), normal(16),
    )  # fmt: skip

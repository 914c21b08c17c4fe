import math

import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.hyena import Hyena, causal_convolution
from archsearch.testing.blocks import Case


def case(width=32, **given):
    return Case(Hyena, width, Hyena.Config(**dict(Hyena.info.fill(given))))


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def direct(u_BDT, h_DT):
    """The sum itself, as a product with a Toeplitz matrix for each channel."""
    time = u_BDT.shape[-1]
    lag_TT = torch.arange(time)[:, None] - torch.arange(time)
    toeplitz_DTT = h_DT[:, lag_TT.clamp(min=0)] * (lag_TT >= 0)
    return torch.einsum("dts,bds->bdt", toeplitz_DTT, u_BDT)


@pytest.mark.parametrize("time", [1, 2, 3, 64, 65, 257])
def test_convolution_by_fft_is_the_sum(time):
    u_BDT, h_DT = draw(2, 5, time), draw(5, time, seed=1)
    want = direct(u_BDT, h_DT)
    torch.testing.assert_close(causal_convolution(u_BDT, h_DT), want, rtol=1e-12, atol=1e-12)
    got = causal_convolution(u_BDT.float(), h_DT.float())
    assert (got - want).abs().max() < 1e-6 * want.abs().max()


def test_without_padding_the_circle_of_the_fft_would_show():
    """Must fail: a transform of the length of the sequence brings the end back to the start."""
    u_BDT, h_DT = draw(2, 5, 64), draw(5, 64, seed=1)
    wrapped = torch.fft.irfft(torch.fft.rfft(u_BDT) * torch.fft.rfft(h_DT), 64)
    assert (wrapped - direct(u_BDT, h_DT)).abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_is_computed_in_float32_or_finer(dtype):
    u_BDT, h_DT = draw(2, 5, 33).to(dtype), draw(5, 33, seed=1).to(dtype)
    got, want = causal_convolution(u_BDT, h_DT), direct(u_BDT.double(), h_DT.double())
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 1e-6 * want.abs().max()


def test_filter_does_not_depend_on_how_far_it_is_asked_for():
    filters = case(bands=4, span=64).build(torch.float64).filter
    assert torch.equal(filters(500)[:100], filters(100))


def test_window_decays_over_the_span():
    """A constant network leaves the window: slowest in the first channel, fastest in the last."""
    filters = case(span=128, filter_depth=0).build(torch.float64).filter
    with torch.no_grad():
        filters.layers[0].weight.zero_()
        filters.layers[0].bias.fill_(math.pi / 2)
        filters.out.weight.fill_(1 / 64)
    h_TD = filters(129)
    assert torch.allclose(h_TD[0], torch.ones(32, dtype=torch.float64))
    ends = torch.tensor([100 ** -(1 / 1.5), 100 ** -(1 / 0.3)], dtype=torch.float64)
    torch.testing.assert_close(h_TD[128, [0, -1]], ends)
    assert (h_TD[128].diff() < 0).all()


def test_reach_is_the_whole_sequence():
    block = case(conv=1).build(torch.float64, drawn=True)
    x_BTD = draw(1, 200, 32).requires_grad_()
    block(x_BTD, Ctx(x_BTD))[:, -1].sum().backward()
    assert (x_BTD.grad[0].abs().sum(-1) > 0).all()


def test_output_is_cubic_in_the_input_without_biases():
    block = case().build(torch.float64, drawn=True)
    with torch.no_grad():
        block.short_filter.bias.zero_()
    x_BTD = draw(2, 9, 32)
    torch.testing.assert_close(block(2 * x_BTD, Ctx(x_BTD)), 8 * block(x_BTD, Ctx(x_BTD)))


def test_state_is_the_inputs_of_the_long_convolution():
    for context in (1, 70):
        state = case().build().init_state(3, context)
        assert state["inputs"].shape == (3, context, 32)
        assert state["conv"].shape == (3, 96, 2)

import math

import torch

from archsearch.block import Ctx
from archsearch.blocks.hyena import Hyena
from archsearch.testing.blocks import Case


def case(width=32, **given):
    return Case(Hyena, width, Hyena.Config(**dict(Hyena.info.fill(given))))


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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

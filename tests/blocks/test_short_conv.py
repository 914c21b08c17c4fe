import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.short_conv import ShortConv
from archsearch.testing.blocks import Case


def case(width=32, **given):
    return Case(ShortConv, width, ShortConv.Config(**dict(ShortConv.info.fill(given))))


def tokens(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("conv", [1, 3, 8])
def test_reach_is_the_length_of_the_filter(conv):
    block = case(conv=conv).build(torch.float64, drawn=True)
    x_BTD = tokens(1, 20, 32).requires_grad_()
    block(x_BTD, Ctx(x_BTD))[:, 15].sum().backward()
    met = x_BTD.grad[0].abs().sum(-1) > 0
    assert met.nonzero().flatten().tolist() == list(range(16 - conv, 16))


def test_output_is_cubic_in_the_input():
    block = case().build(torch.float64, drawn=True)
    x_BTD = tokens(2, 9, 32)
    torch.testing.assert_close(block(2 * x_BTD, Ctx(x_BTD)), 8 * block(x_BTD, Ctx(x_BTD)))


def test_equals_the_layer_of_lfm2():
    lfm2 = pytest.importorskip(
        "transformers.models.lfm2.modeling_lfm2", reason="transformers needs the extra oracles"
    )
    config = lfm2.Lfm2Config(hidden_size=32, conv_L_cache=4, conv_bias=False)
    theirs = lfm2.Lfm2ShortConv(config, 0).double()
    ours = case(conv=4).build(torch.float64, drawn=True)
    theirs.load_state_dict(ours.state_dict())
    x_BTD = tokens(2, 17, 32)
    torch.testing.assert_close(ours(x_BTD, Ctx(x_BTD)), theirs(x_BTD))

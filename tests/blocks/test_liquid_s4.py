import math

import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.liquid_s4 import LiquidS4
from archsearch.testing.blocks import Case


def case(width=32, **given):
    return Case(LiquidS4, width, LiquidS4.Config(**dict(LiquidS4.info.fill(given))))


@pytest.fixture
def bare(monkeypatch):
    """Builds a random block whose output is the y of its state space, halved by an idle gate."""
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda y: y)

    def build(width, **given):
        block = case(width, **given).build(torch.float64, drawn=True)
        with torch.no_grad():
            block.D.zero_()
            block.out_proj.weight.copy_(torch.eye(2 * width, width))
        return block

    return build


def response(block, x_BTD):
    with torch.no_grad():
        return 2 * block(x_BTD, Ctx(x_BTD))


def complex_parameters(block):
    A = -block.log_A_real.exp() + 1j * block.A_imag
    return tuple(v.detach() for v in (A, *map(torch.view_as_complex, (block.B, block.C))))


def gains(block):
    A, B, C = complex_parameters(block)
    B = (torch.exp(block.log_dt.detach().exp()[:, None] * A) - 1) / A * B
    return {p: 2 * (C * B**p).sum(-1).real for p in range(2, block.degree + 1)}


def test_start_is_s4d_lin():
    block = case(d_state=4).build()
    assert torch.allclose(block.log_A_real.exp(), torch.full((32, 4), 0.5))
    assert torch.allclose(block.A_imag, torch.arange(4) * math.pi)
    assert (torch.view_as_complex(block.B) == 1).all()
    assert 1e-3 <= block.log_dt.exp().min() < block.log_dt.exp().max() <= 0.1


def test_linear_part_samples_the_continuous_system(bare):
    """To a constant input: the integral of 2 Re(C exp(tA) B), exact for a held input."""
    block = bare(3, d_state=5)
    A, B, C = complex_parameters(block)
    time_TD1 = (torch.arange(1, 51)[:, None] * block.log_dt.detach().exp())[..., None]
    linear_TD = 2 * (C * B * (torch.exp(time_TD1 * A) - 1) / A).sum(-1).real
    ones = torch.ones(1, 50, 3, dtype=torch.float64)
    products_TD = torch.where(torch.arange(50)[:, None] > 0, gains(block)[2], 0.0)
    torch.testing.assert_close(response(block, ones)[0], linear_TD + products_TD)


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_liquid_part_is_what_neighbours_do_together(bare, degree):
    """A run of impulses against the sum of their responses, one by one."""
    block = bare(4, degree=degree)
    single = torch.eye(12, dtype=torch.float64)[:, :, None].expand(-1, -1, 4)
    places = [2, 3, 4, 5, 6, 9, 11]
    together = response(block, single[places].sum(0, keepdim=True))[0]
    extra_TD = together - response(block, single)[places].sum(0)
    want_TD = torch.zeros(12, 4, dtype=torch.float64)
    for run, t in enumerate([3, 4, 5, 6], 2):
        want_TD[t] = sum(gains(block)[p] for p in range(2, min(run, degree) + 1))
    torch.testing.assert_close(extra_TD, want_TD)


def test_products_fade_before_the_linear_part_does(bare):
    block = bare(8, degree=4)
    x_BTD = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small, smaller = (response(block, s * x_BTD) / s for s in (1e-5, 1e-7))
    torch.testing.assert_close(small, smaller, rtol=1e-3, atol=1e-3)
    assert (response(block, x_BTD) - smaller).abs().max() > 0.1


@pytest.mark.parametrize("time", [1, 2, 3, 100, 1000])
def test_start_is_exact_in_fp32(time):
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(2, time, 32, generator=generator)
    block = case(d_state=64).build()
    got = block(x_BTD, Ctx(x_BTD))
    want = block.double()(x_BTD.double(), Ctx(x_BTD.double()))
    assert (got - want).abs().max() < 1e-5 * want.abs().max()

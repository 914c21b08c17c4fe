import math

import pytest
import torch
from torch.nn import functional as F

from archsearch.block import Ctx
from archsearch.blocks.kan import KAN, KANLayer
from archsearch.kernels.spline import cox_de_boor
from archsearch.kernels.spline_features import features
from archsearch.testing.blocks import Case

GRIDS = [
    (1, 1, 1.0),
    (6, 1, 3.0),
    (4, 2, 2.0),
    (5, 3, 3.0),
    (7, 4, 0.5),
    (3, 5, 20.0),
    (64, 3, 3.0),
]


def drawn_layer(inputs, outputs, grid, order, reach, dtype=torch.float64):
    layer = KANLayer(inputs, outputs, grid, order, reach).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 1.0, generator=generator)
    return layer


def points(grid, order, reach, number=401):
    """A column of points from well before the first knot to well behind the last one."""
    past = 1.5 * (reach + 2 * reach / grid * order)
    return torch.linspace(-past, past, number, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(("grid", "order", "reach"), GRIDS)
def test_basis_equals_scipy(grid, order, reach):
    interpolate = pytest.importorskip("scipy.interpolate", reason="needs the extra oracles")
    x_N1, h = points(grid, order, reach), 2 * reach / grid
    knots = [h * j - reach for j in range(-order, grid + order + 1)]
    f_NC = features(x_N1, grid, order, reach)[..., 0]
    for c in range(grid + order):
        spline = interpolate.BSpline.basis_element(knots[c : c + order + 2], extrapolate=False)
        want = torch.from_numpy(spline(x_N1[:, 0].numpy())).nan_to_num()
        assert torch.allclose(f_NC[:, 1 + c], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_layer_equals_pykan(order):
    pykan = pytest.importorskip("kan.KANLayer", reason="needs the extra oracles")
    # pykan draws its start from the global stream and fits coefficients to it
    with torch.random.fork_rng(devices=[]):
        theirs = pykan.KANLayer(4, 3, num=5, k=order, grid_range=[-3, 3]).double()
    ours = drawn_layer(4, 3, 5, order, 3.0)
    with torch.no_grad():
        theirs.coef.copy_(ours.weight[:, 1:].permute(2, 0, 1))
        theirs.scale_base.copy_(ours.weight[:, 0].T)
        theirs.scale_sp.fill_(1)
        theirs.mask.fill_(1)
        theirs.grid.copy_(torch.arange(-order, 6 + order).double().mul(6 / 5).sub(3).expand(4, -1))
    x_NI = points(5, order, 3.0).expand(-1, 4) + torch.tensor([0, 0.1, 0.2, 0.3]).double()
    assert torch.allclose(ours(x_NI), theirs(x_NI)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("grid", "order", "reach"), GRIDS)
def test_float32_stays_at_its_precision_near_and_far(grid, order, reach):
    x_N1 = torch.cat((points(grid, order, reach), torch.tensor([[1e3], [-1e3]]).double()))
    x_N1 = x_N1.float().double()
    want = torch.stack(cox_de_boor(x_N1, grid, order, reach), -2)
    got = features(x_N1.float(), grid, order, reach)[:, 1:]
    # x itself is a number of cells with this rounding
    rounding = 2.0**-24 * (grid + 2 * order)
    assert (got - want).abs().max() < 3e-7 + rounding


@pytest.mark.parametrize(("grid", "order", "reach"), GRIDS)
def test_splines_sum_to_one_on_the_grid_and_are_zero_beyond(grid, order, reach):
    x_N1 = points(grid, order, reach)
    splines_NC = features(x_N1, grid, order, reach)[:, 1:, 0]
    x_N, past = x_N1[:, 0].abs(), reach + 2 * reach / grid * order
    total_N = splines_NC.sum(-1)
    assert torch.allclose(total_N[x_N <= reach], torch.ones(()).double(), rtol=0, atol=1e-12)
    assert (splines_NC[x_N >= past] == 0).all()
    between = (x_N > reach) & (x_N < 0.99 * past)
    assert ((total_N[between] > 0) & (total_N[between] < 1)).all()


def test_silu_alone_is_left_beyond_the_grid():
    layer = drawn_layer(3, 2, 5, 3, 3.0)
    x_NI = torch.tensor([[7.0, -8.0, 100.0], [-1e4, 9.0, -50.0]]).double()
    assert torch.equal(layer(x_NI), F.linear(features(x_NI, 5, 3, 3.0)[:, 0], layer.weight[:, 0]))
    assert torch.allclose(layer(x_NI), F.linear(F.silu(x_NI), layer.weight[:, 0]))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_gradcheck(order):
    layer = drawn_layer(3, 2, 4, order, 2.0)
    x_NI = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_NI.mul_(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x_NI, *layer.parameters()), atol=1e-7)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_gradient_at_a_knot_is_the_mean_of_both_slopes(order):
    knots = torch.arange(-8.0, 9.0, dtype=torch.float64)[:, None]  # h = 1: knots on whole numbers
    w_C = torch.randn(6 + order, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def slope(x_N1):
        x_N1 = x_N1.clone().requires_grad_()
        (features(x_N1, 6, order, 3.0)[:, 1:, 0] @ w_C).sum().backward()
        return x_N1.grad

    mean = (slope(knots - 1e-7) + slope(knots + 1e-7)) / 2
    assert torch.allclose(slope(knots), mean, rtol=0, atol=1e-5)


def test_any_function_of_one_input_can_be_learned():
    # a cubic with h = 3/8 leaves less than h^4 max|f''''| / 384 (de Boor 2001, chapter XII)
    x_N1 = torch.linspace(-3, 3, 501, dtype=torch.float64)[:, None]
    f_NC, want = features(x_N1, 16, 3, 3.0)[..., 0], torch.sin(2 * x_N1)
    fit = torch.linalg.lstsq(f_NC, want).solution
    assert (f_NC @ fit - want).abs().max() < 2 * (3 / 8) ** 4 * 16 / 384


def test_tiles_do_not_show(monkeypatch):
    layer = drawn_layer(4, 3, 5, 3, 3.0)
    x_NI = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_NI.requires_grad_()
    whole = [y := layer(x_NI), *torch.autograd.grad(y.sum(), x_NI)]
    monkeypatch.setattr("archsearch.kernels.spline_features.TILE", 7 * 9 * 4)
    tiled = [y := layer(x_NI), *torch.autograd.grad(y.sum(), x_NI)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(whole, tiled, strict=True))


def test_gradients_can_be_taken_twice_from_one_graph():
    layer = drawn_layer(4, 3, 5, 3, 3.0)
    x_NI = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    y_NO = layer(x_NI)
    (first,) = torch.autograd.grad(y_NO.sum(), x_NI, retain_graph=True)
    (again,) = torch.autograd.grad(y_NO.sum(), x_NI)
    assert torch.equal(first, again)


def test_a_nan_is_not_hidden():
    assert features(torch.tensor([[math.nan]]), 5, 3, 3.0).isnan().all()


def test_size_is_that_of_the_paper():
    # section 2.3: N^2 L (G + k) coefficients, here with the base weight of each edge
    assert KAN.cost(128, KAN.Config(mult=1), 1).params == 2 * 128**2 * (5 + 3 + 1)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_start_keeps_the_scale_of_the_stream(order):
    block = Case(KAN, 64, KAN.Config(order=order)).build()
    x_BTD = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(1))
    std = float(block(x_BTD, Ctx(x_BTD)).detach().std())
    assert 0.1 < std < 1.5


def test_no_tokens_give_no_outputs():
    layer = drawn_layer(4, 3, 5, 3, 3.0)
    x_NI = torch.empty(0, 4, dtype=torch.float64, requires_grad=True)
    layer(x_NI).sum().backward()
    assert x_NI.grad.shape == (0, 4)
    assert (layer.weight.grad == 0).all()

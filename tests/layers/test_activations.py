import math

import pytest
import torch
from torch.nn import functional as F

from archsearch.block import BlockError, init_weights
from archsearch.blocks.swiglu import SwiGLU
from archsearch.kernels.spline import cox_de_boor
from archsearch.layers.activations import (
    Rational,
    Spline,
    activation,
    activation_params,
    learnable_roles,
)
from archsearch.testing.blocks import Case

NAMES = ("spline", "rational")


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def started(name, channels=16, start="silu", **sizes):
    module = torch.nn.Module()
    module.act = activation(name, channels, **sizes)
    init_weights(module, learnable_roles("act", start), stream())
    return module.act


def drawn(name, channels=16, scale=1.0, dtype=torch.float64, **sizes):
    act = activation(name, channels, **sizes).to(dtype)
    with torch.no_grad():
        for parameter in act.parameters():
            parameter.normal_(0.0, scale, generator=stream())
    return act


@pytest.mark.parametrize(
    ("name", "start", "most"),
    [
        ("spline", "silu", 2e-3), ("spline", "gelu", 5e-3),
        ("rational", "silu", 1e-5), ("rational", "gelu", 3e-3),
    ],
)  # fmt: skip
def test_starts_as_what_it_replaces(name, start, most):
    x_N = torch.linspace(-3, 3, 1201)[:, None].expand(-1, 16)
    want = {"silu": F.silu, "gelu": F.gelu}[start](x_N)
    error = (started(name, start=start)(x_N) - want).abs().max()
    assert error < most
    other = {"silu": F.gelu, "gelu": F.silu}[start](x_N)
    assert (started(name, start=start)(x_N) - other).abs().max() > 0.1


@pytest.mark.parametrize(("grid", "most"), [(2, 0.1), (4, 0.02), (16, 5e-4), (64, 3e-6)])
def test_a_finer_spline_starts_closer(grid, most):
    x_N = torch.linspace(-3, 3, 1201)[:, None].expand(-1, 16)
    assert (started("spline", grid=grid)(x_N) - F.silu(x_N)).abs().max() < most


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [{}, {"grid": 3, "groups": 1}, {"grid": 64, "groups": 16}])
def test_equals_oracle_in_value_and_every_gradient(name, sizes):
    act = drawn(name, **sizes)
    x_NF = torch.randn(200, 16, generator=stream(1), dtype=torch.float64).mul_(3).requires_grad_()
    g_NF = torch.randn(200, 16, generator=stream(2), dtype=torch.float64)
    leaves = (x_NF, *act.parameters())
    got, want = act(x_NF), act.oracle(x_NF)
    pairs = [(got, want)]
    pairs += zip(*(torch.autograd.grad(y, leaves, g_NF) for y in (got, want)), strict=True)
    for a, b in pairs:
        assert (a - b).abs().max() <= 1e-11 * b.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    act = drawn(name, 4, groups=2)
    x_NF = torch.randn(6, 4, generator=stream(1), dtype=torch.float64).mul_(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: act(x), (x_NF, *act.parameters()), atol=1e-6)


def test_spline_equals_scipy():
    interpolate = pytest.importorskip("scipy.interpolate", reason="needs the extra oracles")
    act = drawn("spline", 3, grid=12)
    x_N = torch.linspace(-12, 12, 333, dtype=torch.float64)
    y_NF = act(x_N[:, None].expand(-1, 3))
    knots = [j - 6.0 for j in range(-6, 19)]  # three more on each side: 0 beyond, not extrapolated
    for f in range(3):
        w = F.pad(act.coefficients[f].detach(), (3, 3)).numpy()
        spline = interpolate.BSpline(knots, w, 3, extrapolate=False)
        want = torch.from_numpy(spline(x_N.numpy())).nan_to_num()
        assert torch.allclose(y_NF[:, f], want, rtol=0, atol=1e-12)


def test_spline_reproduces_a_constant_on_its_grid_and_is_zero_far_away():
    act = drawn("spline", 1)
    with torch.no_grad():
        act.coefficients.fill_(2.5)
    inside = torch.linspace(-6, 6, 99, dtype=torch.float64)[:, None]
    assert torch.allclose(act(inside), torch.full_like(inside, 2.5), rtol=0, atol=1e-12)
    far = torch.tensor([[9.0], [-9.0], [10.0], [-1e6], [math.inf]], dtype=torch.float64)
    assert act(far).abs().max() < 1e-12


def test_the_bars_of_rational_are_around_the_whole_polynomial():
    act = started("rational", 2, groups=2)
    with torch.no_grad():
        act.numerator.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0]))
        act.denominators.copy_(torch.tensor([[1.0, -1, 0, 0], [1, 1, 0, 0]]))
    # A(1) = 1 - 1 and A(-1) = -1 + 1 vanish; a sum of bars would give 1 + 2
    assert act(torch.tensor([1.0, -1.0])).tolist() == [1, 1]
    assert act(torch.tensor([-1.0, 1.0])).tolist() == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 100.0, 1000.0])
def test_stays_finite(name, scale, spread):
    act = drawn(name, scale=scale, dtype=torch.float32)
    x_NF = torch.randn(500, 16, generator=stream(1)).mul_(spread).requires_grad_()
    y_NF = act(x_NF)
    grads = torch.autograd.grad(y_NF.sum(), (x_NF, *act.parameters()))
    assert all(v.isfinite().all() for v in (y_NF, *grads))


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_is_not_hidden(name):
    assert started(name)(torch.full((2, 16), math.nan)).isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_computed_in_float32(name):
    act = started(name)
    x_NF = torch.randn(300, 16, generator=stream(1)).bfloat16()
    with torch.no_grad():
        for parameter in act.parameters():
            parameter.copy_(parameter.bfloat16())
        want, got = act(x_NF.float()), act.bfloat16()(x_NF)
    assert torch.equal(got, want.bfloat16())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [{"grid": 5, "groups": 4}, {}])
def test_parameters_are_counted(name, sizes):
    act = activation(name, 16, **sizes)
    assert sum(p.numel() for p in act.parameters()) == activation_params(name, 16, **sizes)


def test_rational_has_the_published_size():
    # arXiv 2409.10594, section 4.3: one numerator of 6, 8 denominators of 4
    assert activation_params("rational", 512) == 38


def test_de_boor_sums_to_one():
    x_N = torch.linspace(-2, 1.99, 100, dtype=torch.float64)
    for order in (1, 2, 3, 4):
        total = sum(cox_de_boor(x_N, 5, order, 2.0))
        assert torch.allclose(total, torch.ones_like(x_N), rtol=0, atol=1e-12)


def test_swiglu_keeps_names_and_values_of_its_fixed_nonlinearities():
    for act, function in {"silu": F.silu, "gelu": F.gelu}.items():
        block = Case(SwiGLU, 16, SwiGLU.Config(act=act)).build()
        assert list(block.state_dict()) == ["gate.weight", "up.weight", "down.weight"]
        x_BTD = torch.randn(2, 5, 16, generator=stream())
        want = block.down(function(block.gate(x_BTD)) * block.up(x_BTD))
        assert torch.equal(block(x_BTD, None), want)
        assert SwiGLU.cost(16, SwiGLU.Config(act=act), 1).params == 3 * 2 * 16**2


@pytest.mark.parametrize(("name", "module"), [("spline", Spline), ("rational", Rational)])
def test_swiglu_starts_alike_with_a_learnable_nonlinearity(name, module):
    fixed = Case(SwiGLU, 16, SwiGLU.Config()).build()
    learned = Case(SwiGLU, 16, SwiGLU.Config(act=name)).build()
    assert isinstance(learned.act, module)
    learned.load_state_dict(fixed.state_dict(), strict=False)
    x_BTD = torch.randn(2, 50, 16, generator=stream())
    assert torch.allclose(learned(x_BTD, None), fixed(x_BTD, None), rtol=0, atol=1e-2)


def test_swiglu_says_which_groups_fit():
    with pytest.raises(BlockError, match="groups 5 does not divide the hidden width 32; legal: 1"):
        SwiGLU.check(16, SwiGLU.Config(act="rational", groups=5))
    SwiGLU.check(16, SwiGLU.Config(act="silu", groups=5))


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_give_no_outputs(name):
    assert started(name)(torch.empty(0, 16)).shape == (0, 16)

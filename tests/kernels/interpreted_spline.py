"""What is special to splines, in Triton's interpreter; run by `test_triton.py`."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels import _spline_triton, spline, spline_features
from archsearch.testing.kernel_cases import CASES, error, plain_of
from tests.kernels.test_spline import drawn, gradients


def wrong_by(op, given):
    ours = {"spline": _spline_triton.spline, "kan_features": _spline_triton.features}[op]
    return error(CASES[op], ours, plain_of(CASES[op]), given)


def test_a_wrong_coefficient_is_caught():
    given = drawn(70, 7, scale=3), drawn(7, 15), 6.0

    def wrong(x, w_FC, reach):
        return _spline_triton.spline(x, w_FC.roll(1, 0), reach)

    assert error(CASES["spline"], wrong, plain_of(CASES["spline"]), given) > 1e-2


def test_leading_axes_are_kept():
    given = drawn(2, 3, 5, scale=3), drawn(5, 15), 6.0
    assert wrong_by("spline", given) < 1e-12
    assert wrong_by("kan_features", (drawn(2, 3, 5, scale=3), 5, 3, 3.0)) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 4, 5])
def test_features_of_every_order_are_those_of_torch(order):
    x_NI = drawn(6, 9, scale=3)
    with torch.no_grad():
        x_NI[0] = torch.arange(9) - 4  # knots
    assert wrong_by("kan_features", (x_NI, 6, order, 3.0)) < 1e-12


@pytest.mark.parametrize("grid", [1, 2, 26, 27, 60])
def test_the_spline_is_right_on_either_side_of_the_size_of_a_warp(grid):
    assert wrong_by("spline", (drawn(9, 3, scale=4), drawn(3, grid + 3), 6.0)) < 1e-12


def test_what_is_far_away_or_no_number_is_treated_as_torch_does():
    numbers = torch.tensor([[math.nan, math.inf, -math.inf, 1e30, -9.0, 9.0, 6.0, -6.0]])
    x_N1, w_FC = numbers.T.contiguous(), drawn(1, 15, dtype=torch.float32)
    got, want = (run(x_N1, w_FC, 6.0) for run in (_spline_triton.spline, spline.spline))
    torch.testing.assert_close(got, want, equal_nan=True)
    x_N1 = x_N1[x_N1 > -100][:, None]
    got, want = (
        run(x_N1, 5, 3, 3.0) for run in (_spline_triton.features, spline_features.features)
    )
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.filterwarnings("error")
def test_no_tokens_give_no_outputs_and_no_gradient():
    x_NF, w_FC = drawn(0, 5), drawn(5, 15)
    y_NF = _spline_triton.spline(x_NF, w_FC, 6.0)
    slopes = gradients(y_NF, x_NF, w_FC)
    assert y_NF.shape == slopes[0].shape == (0, 5)
    assert (slopes[1] == 0).all()
    assert _spline_triton.features(x_NF, 5, 3, 3.0).shape == (0, 9, 5)


def test_the_operators_keep_what_they_promise_to_torch():
    """Schema, shapes, gradients and their tracing: `opcheck`."""
    x_BNF, w_FC, ops = drawn(2, 3, 5), drawn(5, 15), torch.ops.archsearch
    dy_BNF, df_BNCF = drawn(2, 3, 5).detach(), drawn(2, 3, 9, 5).detach()
    torch.library.opcheck(ops.spline_triton, (x_BNF, w_FC, 6.0))
    plain = x_BNF.detach(), w_FC.detach()
    torch.library.opcheck(ops.spline_triton_backward, (dy_BNF, *plain, 6.0))
    torch.library.opcheck(ops.spline_features_triton, (x_BNF, 5, 3, 3.0))
    torch.library.opcheck(ops.spline_features_triton_backward, (df_BNCF, plain[0], 5, 3, 3.0))


def test_gradients_are_those_of_finite_differences():
    x_NF, w_FC = drawn(3, 4, scale=2), drawn(4, 9)
    run = _spline_triton.spline
    assert torch.autograd.gradcheck(
        lambda x, w: run(x, w, 2.0), (x_NF, w_FC), atol=1e-6, fast_mode=True
    )
    run = _spline_triton.features
    assert torch.autograd.gradcheck(lambda x: run(x, 4, 3, 2.0), x_NF, fast_mode=True)


def test_no_flops_are_counted():
    with FlopCounterMode(display=False) as counter:
        _spline_triton.spline(drawn(5, 3), drawn(3, 15), 6.0).sum().backward()
    assert counter.get_total_flops() == 0

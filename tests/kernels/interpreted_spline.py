"""Splines in Triton's interpreter; run by `test_spline.py` in a process of its own."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels import _spline_triton, spline, spline_features
from tests.kernels.test_spline import drawn, gradients

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest error, as a norm relative to that of the result, against torch in fp64."""
GIVEN = {
    "spline": lambda dtype: (
        drawn(35, 2, 70, dtype=dtype, scale=4), drawn(70, 15, dtype=dtype), 6.0
    ),
    "wide": lambda dtype: (drawn(3, 70, dtype=dtype, scale=4), drawn(70, 63, dtype=dtype), 6.0),
    "features": lambda dtype: (drawn(2, 5, 130, dtype=dtype, scale=2), 5, 3, 3.0),
}  # fmt: skip
PLAIN = {
    "spline": spline.spline,
    "wide": spline.spline,
    "features": spline_features.features,
}
OURS = {
    "spline": _spline_triton.spline,
    "wide": _spline_triton.spline,
    "features": _spline_triton.features,
}


def found(function, given):
    y = function(*given)
    slopes = gradients(y, *(x for x in given if isinstance(x, torch.Tensor)))
    return [y.detach(), *slopes]


def exact(given):
    return [
        x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) else x for x in given
    ]


def error(function, plain, given):
    pairs = zip(found(function, given), found(plain, exact(given)), strict=True)
    return max(float((one.double() - two).norm() / two.norm()) for one, two in pairs)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("op", GIVEN)
def test_values_and_all_gradients_are_those_of_torch(op, dtype):
    assert error(OURS[op], PLAIN[op], GIVEN[op](dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("op", ["wide", "features"])
def test_results_and_gradients_have_the_types_of_their_inputs(op):
    results = found(OURS[op], GIVEN[op](torch.bfloat16))
    assert {x.dtype for x in results} == {torch.bfloat16}


def test_a_wrong_coefficient_is_caught():
    x, w_FC, reach = GIVEN["spline"](torch.float32)

    def wrong(x, w_FC, reach):
        return _spline_triton.spline(x, w_FC.roll(1, 0), reach)

    assert error(wrong, spline.spline, (x, w_FC, reach)) > TOLERANCE[torch.float32]


@pytest.mark.parametrize("op", GIVEN)
def test_it_is_compiled_without_a_break(op):
    run = torch.compile(OURS[op], backend="aot_eager", fullgraph=True)
    assert error(run, PLAIN[op], GIVEN[op](torch.float32)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("order", [1, 2, 4, 5])
def test_features_of_every_order_are_those_of_torch(order):
    x_NI = drawn(6, 9, scale=3)
    with torch.no_grad():
        x_NI[0] = torch.arange(9) - 4  # knots
    given = x_NI, 6, order, 3.0
    assert error(_spline_triton.features, spline_features.features, given) < 1e-12


@pytest.mark.parametrize("grid", [1, 2, 26, 27])
def test_the_spline_is_right_on_either_side_of_the_size_of_a_warp(grid):
    given = drawn(9, 3, scale=4), drawn(3, grid + 3), 6.0
    assert error(_spline_triton.spline, spline.spline, given) < 1e-12


def test_what_is_far_away_or_no_number_is_treated_as_torch_does():
    numbers = torch.tensor([[math.nan, math.inf, -math.inf, 1e30, -9.0, 9.0, 6.0, -6.0]])
    x_N1, w_FC = numbers.T.contiguous(), drawn(1, 15, dtype=torch.float32)
    got, want = (run(x_N1, w_FC, 6.0) for run in (_spline_triton.spline, spline.spline))
    torch.testing.assert_close(got, want, equal_nan=True)
    x_N1 = x_N1[x_N1 > -100][:, None]
    got, want = (run(x_N1, 5, 3, 3.0) for run in (_spline_triton.features, PLAIN["features"]))
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.filterwarnings("error")
def test_no_tokens_give_no_outputs_and_no_gradient():
    x_NF, w_FC = drawn(0, 5), drawn(5, 15)
    y_NF, *slopes = found(_spline_triton.spline, (x_NF, w_FC, 6.0))
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


def test_equal_runs_give_equal_bits_and_no_flops_are_counted():
    given = GIVEN["spline"](torch.float32)
    with FlopCounterMode(display=False) as counter:
        once = found(_spline_triton.spline, given)
    again = found(_spline_triton.spline, given)
    assert all(torch.equal(one, two) for one, two in zip(once, again, strict=True))
    assert counter.get_total_flops() == 0

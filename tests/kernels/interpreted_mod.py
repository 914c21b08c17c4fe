"""Mixture-of-Depths in Triton's interpreter; run by `test_mod.py` in a process of its own."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels import _mod_triton, mod
from tests.kernels.test_mod import rows
from tests.kernels.test_spline import drawn

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest error, as a norm relative to that of the result, against torch in fp64."""
ROW_N = rows(40, 20)
GIVEN = {
    "route": lambda dtype: tuple(
        drawn(*shape, dtype=dtype) for shape in ((4, 5, 130), (1, 130), (1, 130), (1,))
    ),
    "take": lambda dtype: (drawn(40, 130, dtype=dtype), ROW_N),
    "put": lambda dtype: (
        drawn(20, 130, dtype=dtype), drawn(20, 130, dtype=dtype),
        drawn(20, dtype=torch.promote_types(dtype, torch.float32)), ROW_N, 40,
    ),
}  # fmt: skip


def real(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def found(function, given):
    """What is returned, and all gradients, 0 where there is none."""
    results = function(*given)
    results = results if isinstance(results, tuple) else (results,)
    total = sum((x.double() * drawn(*x.shape)).sum() for x in results)
    inputs = [x for x in given if real(x)]
    return [
        *(x.detach() for x in results),
        *torch.autograd.grad(total, inputs, materialize_grads=True),
    ]


def error(function, plain, given):
    exact = [x.detach().double().requires_grad_() if real(x) else x for x in given]
    pairs = zip(found(function, given), found(plain, exact), strict=True)
    return max(
        float((one.double() - two).norm() / two.norm().clamp(min=1e-30)) for one, two in pairs
    )


def ours_and_plain(op):
    return getattr(_mod_triton, op), getattr(mod, op)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("op", GIVEN)
def test_values_and_all_gradients_are_those_of_torch(op, dtype):
    (ours, plain), given = ours_and_plain(op), GIVEN[op](dtype)
    assert error(ours, plain, given) < TOLERANCE[dtype]
    assert [x.dtype for x in found(ours, given)] == [x.dtype for x in found(plain, given)]


def test_a_wrong_gate_is_caught():
    given = GIVEN["put"](torch.float32)

    def wrong(y_ND, x_ND, gate_N, *rest):
        return _mod_triton.put(y_ND, x_ND, gate_N * 1.001, *rest)

    assert error(wrong, mod.put, given) > TOLERANCE[torch.float32]


@pytest.mark.parametrize("op", GIVEN)
def test_it_is_compiled_without_a_break(op):
    ours, plain = ours_and_plain(op)
    run = torch.compile(ours, backend="aot_eager", fullgraph=True)
    assert error(run, plain, GIVEN[op](torch.float32)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("op", GIVEN)
def test_equal_runs_give_equal_bits(op):
    ours, given = getattr(_mod_triton, op), GIVEN[op](torch.float32)
    for one, two in zip(found(ours, given), found(ours, given), strict=True):
        assert torch.equal(one, two)


def test_only_the_predictor_learns_from_scores():
    given = GIVEN["route"](torch.float32)
    score_BT, logit_BT = _mod_triton.route(*given)
    slopes = torch.autograd.grad((score_BT + logit_BT).sum(), given, allow_unused=True)
    assert slopes[0] is slopes[1] is None


def test_what_does_not_lie_in_order_is_read_rightly():
    x_RD, row_N = drawn(5, 6).T, rows(6, 2)
    x_ND = _mod_triton.take(x_RD, row_N)
    assert torch.equal(x_ND, x_RD[row_N])
    y_ND, gate_N = drawn(5, 2).T, drawn(4)[::2]
    got, want = (run.put(y_ND, x_ND, gate_N, row_N, 6) for run in (_mod_triton, mod))
    torch.testing.assert_close(got, want)


def test_no_tokens_change_nothing():
    none = torch.empty(0, dtype=torch.int64)
    assert _mod_triton.take(drawn(4, 3), none).shape == (0, 3)
    assert (_mod_triton.put(drawn(0, 3), drawn(0, 3), drawn(0), none, 4) == 0).all()


def test_the_operators_keep_what_they_promise_to_torch():
    """Schema, shapes, gradients and their tracing: `opcheck`."""
    ops, row_N = torch.ops.archsearch, rows(6, 3)
    x_BTD, one_1D, other_1D = drawn(2, 3, 5), drawn(1, 5), drawn(1, 5)
    torch.library.opcheck(ops.mod_route, (x_BTD, one_1D.detach(), other_1D))
    torch.library.opcheck(ops.mod_route_backward, (drawn(2, 3).detach(), x_BTD.detach()))
    torch.library.opcheck(ops.mod_take, (drawn(6, 5), row_N))
    torch.library.opcheck(ops.mod_take_backward, (drawn(3, 5).detach(), row_N, 6))
    given = drawn(3, 5), drawn(3, 5), drawn(3)
    torch.library.opcheck(ops.mod_put, (*given, row_N, 6))
    plain = (t.detach() for t in (drawn(6, 5), *given))
    torch.library.opcheck(ops.mod_put_backward, (*plain, row_N))


def test_gradients_are_those_of_finite_differences():
    row_N = rows(6, 3)
    given = drawn(3, 5), drawn(3, 5), drawn(3)
    assert torch.autograd.gradcheck(lambda *t: _mod_triton.put(*t, row_N, 6), given, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: _mod_triton.take(x, row_N), drawn(6, 5))


def test_flops_are_counted_as_those_of_torch():
    for op in GIVEN:
        counts = []
        for run in ours_and_plain(op):
            with FlopCounterMode(display=False) as counter:
                run(*GIVEN[op](torch.float32))
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1], op

import pytest
import torch

from archsearch.kernels.mod import put, route, take
from tests.kernels.test_spline import drawn, gradients


def rows(total, taken):
    generator = torch.Generator().manual_seed(total)
    return torch.randperm(total, generator=generator)[:taken].sort().values


@pytest.mark.parametrize(("total", "taken"), [(1, 1), (9, 4), (12, 12)])
def test_rows_are_taken_and_put_back_one_by_one(total, taken):
    row_N = rows(total, taken)
    x_RD, y_ND, gate_N = drawn(total, 5), drawn(taken, 5), drawn(taken)
    x_ND = take(x_RD, row_N)
    got = put(y_ND, x_ND, gate_N, row_N, total)
    one_by_one = [torch.zeros(5, dtype=torch.float64)] * total
    for n, r in enumerate(row_N.tolist()):
        assert torch.equal(x_ND[n], x_RD[r])
        one_by_one[r] = gate_N[n] * (y_ND[n] - x_RD[r])
    want = torch.stack(one_by_one)
    assert torch.equal(got, want)
    leaves = x_RD, y_ND, gate_N
    torch.testing.assert_close(gradients(got, *leaves), gradients(want, *leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_scores_are_inner_products_that_are_not_rounded_to_the_type_of_x(dtype):
    x_BTD, router_1D, predictor_1D, bias_1 = (
        drawn(*shape, dtype=dtype) for shape in ((2, 3, 40), (1, 40), (1, 40), (1,))
    )
    score_BT, logit_BT = route(x_BTD, router_1D, predictor_1D, bias_1)
    x, r, p, b = (t.detach().double() for t in (x_BTD, router_1D, predictor_1D, bias_1))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for got, want in ((score_BT, (x * r[0]).sum(-1)), (logit_BT, (x * p[0]).sum(-1) + b)):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_only_the_predictor_learns_from_scores():
    given = drawn(2, 3, 5), drawn(1, 5), drawn(1, 5), drawn(1)
    _, logit_BT = route(*given)
    x, router, predictor, bias = torch.autograd.grad(logit_BT.sum(), given, allow_unused=True)
    assert x is router is None
    torch.testing.assert_close(predictor, given[0].detach().sum((0, 1))[None])
    assert bias.tolist() == [6]


def test_gradients_are_those_of_finite_differences():
    row_N = rows(6, 3)
    given = drawn(3, 5), drawn(3, 5), drawn(3)
    assert torch.autograd.gradcheck(lambda *t: put(*t, row_N, 6), given)
    assert torch.autograd.gradcheck(lambda x: take(x, row_N), drawn(6, 5))

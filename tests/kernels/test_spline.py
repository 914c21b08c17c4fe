import pytest
import torch

from archsearch.kernels.spline import spline, spline_ref
from archsearch.kernels.spline_features import features, features_ref


def drawn(*shape, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(scale)
    return x.to(dtype).requires_grad_()


def gradients(y, *inputs):
    return torch.autograd.grad(y, inputs, drawn(*y.shape, dtype=y.dtype).detach())


@pytest.mark.parametrize("grid", [1, 2, 12, 64])
@pytest.mark.parametrize("reach", [0.7, 6.0])
def test_a_spline_is_the_sum_of_de_boors_basis_in_value_and_every_gradient(grid, reach):
    x_NF, w_FC = drawn(150, 7, scale=reach), drawn(7, grid + 3)
    got, want = spline(x_NF, w_FC, reach), spline_ref(x_NF, w_FC, reach)
    pairs = zip(
        (got, *gradients(got, x_NF, w_FC)), (want, *gradients(want, x_NF, w_FC)), strict=True
    )
    for one, two in pairs:
        torch.testing.assert_close(
            one, two, rtol=1e-11, atol=1e-11 * two.detach().abs().max().item()
        )


def test_a_wrong_coefficient_is_noticed():
    x_NF, w_FC = drawn(150, 7, scale=3), drawn(7, 15)
    wrong_FC = w_FC.detach().clone()
    wrong_FC[3, 7] += 1e-6
    assert (spline(x_NF, wrong_FC, 6.0) - spline_ref(x_NF, w_FC, 6.0)).abs().max() > 1e-7


@pytest.mark.parametrize(("grid", "order", "reach"), [(1, 1, 1.0), (5, 2, 3.0), (12, 3, 0.7)])
def test_features_are_silu_and_de_boors_basis_in_value_and_gradient(grid, order, reach):
    x_NI = drawn(150, 7, scale=reach)
    got, want = features(x_NI, grid, order, reach), features_ref(x_NI, grid, order, reach)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(got, x_NI), gradients(want, x_NI), rtol=0, atol=1e-9)


def test_gradients_are_those_of_finite_differences():
    x_NF, w_FC = drawn(6, 4, scale=2), drawn(4, 9)
    assert torch.autograd.gradcheck(lambda x, w: spline(x, w, 2.0), (x_NF, w_FC), atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: features(x, 4, 3, 2.0), x_NF, atol=1e-7)

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archsearch.kernels.table_rows import Picks

SIZES = [(1, 1, 1, 1), (1, 3, 2, 5), (7, 5, 4, 3), (40, 6, 8, 1000), (300, 2, 16, 9)]
"""Tokens, picks of each, width, rows."""


def drawn(tokens, picks, width, rows):
    generator = torch.Generator().manual_seed(0)
    row_NE = torch.randint(rows, (tokens, picks), generator=generator)
    shapes = ((rows, width), (tokens, picks), (tokens, width))
    numbers = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return row_NE, [number.requires_grad_() for number in numbers]


def gradients(y, *inputs):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(torch.bfloat16)
    return torch.autograd.grad((y * weight).sum(), inputs)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_products_and_their_gradients_are_those_of_copied_rows(size, sparse):
    row_NE, (table_RD, weight_NE, x_ND) = drawn(*size)
    picks = Picks(row_NE, sparse=sparse)
    for got, want, other in (
        (
            picks.sum(table_RD, weight_NE),
            (weight_NE[..., None] * table_RD[row_NE]).sum(1),
            weight_NE,
        ),
        (picks.dot(table_RD, x_ND), (x_ND[:, None] * table_RD[row_NE]).sum(-1), x_ND),
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        found, wanted = gradients(got, table_RD, other), gradients(want, table_RD, other)
        assert found[0].is_sparse == sparse
        for one, two in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.to_dense(), two, rtol=1e-12, atol=1e-12)


def test_a_sparse_gradient_holds_each_picked_row_once():
    row_NE, (table_RD, weight_NE, _) = drawn(40, 6, 8, 1000)
    y_ND = Picks(row_NE, sparse=True).sum(table_RD, weight_NE)
    gradient, _ = gradients(y_ND, table_RD, weight_NE)
    assert gradient.coalesce().indices()[0].tolist() == sorted(set(row_NE.flatten().tolist()))
    assert gradient._nnz() == len(gradient.coalesce().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_come_close(dtype):
    row_NE, numbers = drawn(40, 6, 8, 100)
    table_RD, weight_NE, x_ND = (n.detach().to(dtype).requires_grad_() for n in numbers)
    picks, rtol = Picks(row_NE), 4 * torch.finfo(dtype).eps
    for got, want in (
        (picks.sum(table_RD, weight_NE), (weight_NE[..., None].double() * table_RD[row_NE]).sum(1)),
        (picks.dot(table_RD, x_ND), (x_ND[:, None].double() * table_RD[row_NE]).sum(-1)),
    ):
        assert got.dtype == dtype
        assert (got - want).norm() < rtol * want.norm()
        one, two = gradients(got, table_RD)[0], gradients(want, table_RD)[0]
        assert (one - two).norm() < rtol * two.norm()


def test_the_counter_of_flops_sees_them():
    row_NE, (table_RD, weight_NE, x_ND) = drawn(40, 6, 8, 100)
    with FlopCounterMode(display=False) as counter:
        Picks(row_NE).sum(table_RD, weight_NE)
        Picks(row_NE).dot(table_RD, x_ND)
    assert counter.get_total_flops() == 2 * (2 * 40 * 6 * 8)


def test_the_compiler_knows_their_shapes():
    row_NE, (table_RD, weight_NE, x_ND) = drawn(40, 6, 8, 100)
    for name, given in (("bag", weight_NE), ("dots", x_ND)):
        operator = getattr(torch.ops.archsearch, name)
        inputs = table_RD.detach(), row_NE, given.detach()
        torch.library.opcheck(operator, inputs)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's
def test_training_with_them_is_compiled_without_a_break():
    row_NE, (table_RD, weight_NE, x_ND) = drawn(40, 6, 8, 100)

    def run(table_RD, weight_NE, x_ND):
        picks = Picks(row_NE)
        return picks.sum(table_RD, weight_NE * picks.dot(table_RD, x_ND))

    whole = torch.compile(run, backend="aot_eager", fullgraph=True)
    given = table_RD, weight_NE, x_ND
    for one, two in zip(
        gradients(whole(*given), *given), gradients(run(*given), *given), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)

"""What is special to TTT-Linear, in Triton's interpreter; run by `test_triton.py`."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archsearch.block import Ctx, block_class
from archsearch.kernels._ttt_triton import fit_linear
from archsearch.kernels.dispatch import recorded, using
from archsearch.kernels.precision import in_full
from archsearch.testing.kernel_cases import CASES, error, found, plain_of

CASE = CASES["ttt_linear"]


def given(count=2, N=2, M=3, K=5):
    generator = torch.Generator().manual_seed(0)
    parts = CASE.make(generator, torch.float64, count, N, M, K)
    return tuple(x.requires_grad_() for x in parts)


def test_the_whole_block_computes_the_same_with_it():
    """Heads of 12, and mini-batches of 5 for 13 tokens."""
    kind = block_class("ttt")
    config = kind.Config(**dict(kind.info.fill({"head_dim": 12, "mini_batch": 5, "lr": 5.0})))
    block, generator = kind(24, config).double(), torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    x_BTD = torch.randn(1, 13, 24, generator=generator, dtype=torch.float64).requires_grad_()

    def run():
        y_BTD = block(x_BTD, Ctx(x_BTD))
        return [y_BTD, *torch.autograd.grad(y_BTD.square().sum(), [x_BTD, *block.parameters()])]

    wanted = run()
    with recorded() as used, using("ttt_linear:triton"):
        got = run()
    assert used == {"ttt_linear": "triton"}
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)
        assert two.abs().max() > 1e-6, "a gradient of nothing would be equal too"


@pytest.mark.parametrize(
    "sizes",
    [
        {"count": 1},
        {"M": 1},
        {"K": 16, "M": 16},
        {"K": 17, "M": 33, "N": 1},
        {"K": 33, "M": 17, "N": 1},
    ],
    ids=["one mini-batch", "one token", "a whole block", "just more than a block", "wide and long"],
)
def test_it_is_right_on_either_side_of_the_size_of_a_block(sizes):
    assert error(CASE, fit_linear, plain_of(CASE), given(**sizes)) < 1e-12


@pytest.mark.parametrize("which", [1, 3], ids=["the rates", "the gains"])
def test_a_wrong_input_is_caught(which):
    def wrong(*parts):
        return fit_linear(*(x * 1.001 if i == which else x for i, x in enumerate(parts)))

    assert error(CASE, wrong, plain_of(CASE), given()) > 1e-6


def test_what_is_not_contiguous_is_read_as_it_is_meant():
    parts = given()
    strided = [x.detach().mT.contiguous().mT.requires_grad_() for x in parts]
    results = (found(CASE, fit_linear, x) for x in (parts, strided))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_inside_autocast_neither_direction_is_rounded():
    parts = [x.detach().float().requires_grad_() for x in given()]

    def everything():
        return found(CASE, in_full(fit_linear), parts)

    outside = everything()
    with torch.autocast("cpu", torch.bfloat16):
        inside = everything()
    assert all(torch.equal(one, two) for one, two in zip(outside, inside, strict=True))


@pytest.mark.parametrize("which", [0, 1])
def test_the_gradient_of_either_result_alone_is_right(which):
    def one(*parts):
        return fit_linear(*parts)[which]

    def plain(*parts):
        return plain_of(CASE)(*parts)[which]

    assert error(CASE, one, plain, given()) < 1e-12


def test_the_operators_keep_what_they_promise_to_torch():
    """Schema, shapes, gradients and their tracing: `opcheck`."""
    parts, ops = given(N=1), torch.ops.archsearch
    torch.library.opcheck(ops.ttt_linear_triton, parts)
    plain = tuple(x.detach() for x in parts)
    W, G, x, r = ops.ttt_linear_triton(*plain)
    backward = torch.randn_like(W), torch.randn_like(G), *plain[:4], W, G, x, r
    tests = "test_schema", "test_faketensor"  # it has no gradient of its own
    torch.library.opcheck(ops.ttt_linear_triton_backward, backward, test_utils=tests)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(fit_linear, given(N=1, M=2), fast_mode=True)


def test_its_flops_are_those_that_torch_counts_of_the_plain_path():
    def counted(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    parts = given(count=3)
    forward = counted(lambda: fit_linear(*parts))
    assert forward == counted(lambda: plain_of(CASE)(*parts)) > 0
    assert counted(lambda: found(CASE, fit_linear, parts)) == 3 * forward

"""What is special to the selective scan, in Triton's interpreter; run by `test_triton.py`."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archsearch.block import Ctx
from archsearch.blocks.mamba1 import Mamba1
from archsearch.kernels import _selective_scan_triton
from archsearch.kernels._selective_scan_triton import CHUNK, selective_scan
from archsearch.kernels.dispatch import recorded, using
from archsearch.testing.kernel_cases import CASES, error, plain_of

CASE = CASES["selective_scan"]
OPS = torch.ops.archsearch


def inputs(dtype=torch.float64, **sizes):
    generator = torch.Generator().manual_seed(0)
    given = CASE.make(generator, dtype, **{"T": 3, "B": 1, "E": 2, "N": 2, **sizes})
    return tuple(x.requires_grad_() for x in given)


def wrong_by(given):
    return error(CASE, selective_scan, plain_of(CASE), given)


@pytest.mark.parametrize("time", [1, CHUNK, 2 * CHUNK + 1])
def test_chunks_of_any_length_are_right(time):
    assert wrong_by(inputs(T=time)) < 1e-12


@pytest.mark.parametrize("state", [1, 16, 17])
def test_states_of_any_size_are_right(state):
    assert wrong_by(inputs(N=state)) < 1e-12


def test_a_state_that_is_large_leaves_fewer_channels_to_a_program(monkeypatch):
    monkeypatch.setattr(_selective_scan_triton, "MAX_STATE", 16)
    assert wrong_by(inputs(E=7, N=5)) < 1e-12


def test_layouts_of_the_inputs_do_not_matter():
    given = inputs(E=5, N=3, B=2)
    strided = tuple(torch.stack((x, x), -1)[..., 0].detach().requires_grad_() for x in given)
    assert not strided[0].is_contiguous()
    assert wrong_by(strided) < 1e-12


@pytest.mark.parametrize("dt", [1e-6, 1e3, 1e20])
def test_it_is_exact_in_fp32_whatever_the_step_size(dt):
    x, _, A_log, B, C = inputs(torch.float32, T=20)
    assert wrong_by((x, torch.full_like(x, dt).requires_grad_(), A_log, B, C)) < 1e-5


def test_a_wrong_decay_is_caught():
    def wrong(x, dt, A_log, B, C):
        return selective_scan(x, dt, A_log + 1e-3, B, C)

    assert error(CASE, wrong, plain_of(CASE), inputs()) > 1e-5


def test_nothing_in_nothing_out():
    given = inputs(T=0)
    y_TBE = selective_scan(*given)
    assert y_TBE.shape == (0, 1, 2)
    assert all((g == 0).all() for g in torch.autograd.grad(y_TBE.sum(), given))


def test_the_operators_keep_what_they_promise_to_torch():
    """Schema, shapes, gradients and their tracing: `opcheck`."""
    given = inputs(torch.float32)
    torch.library.opcheck(OPS.selective_scan_triton, given)
    plain = [x.detach() for x in given]
    y_TBE, h_KBNE = OPS.selective_scan_triton(*plain)
    torch.library.opcheck(OPS.selective_scan_triton_backward, (y_TBE, *plain, h_KBNE))


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(selective_scan, inputs(), fast_mode=True)


def test_the_counter_of_flops_sees_what_it_sees_in_plain_torch():
    counted = []
    for run in (selective_scan, plain_of(CASE)):
        with FlopCounterMode(display=False) as forward:
            y_TBE = run(*inputs())
        with FlopCounterMode(display=False) as backward:
            y_TBE.sum().backward()
        counted.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counted[0] == counted[1]
    assert min(counted[0]) > 0


def test_a_block_computes_the_same_with_it():
    config = Mamba1.Config(**dict(Mamba1.info.fill({"d_state": 3, "expand": 1})))
    block, generator = Mamba1(8, config).double(), torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.data.normal_(generator=generator)
    x_BTD = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)

    def found():
        block.zero_grad()
        y_BTD = block(x_BTD, Ctx(x_BTD))
        y_BTD.square().sum().backward()
        return [y_BTD.detach(), *(p.grad.clone() for p in block.parameters())]

    wanted = found()
    with recorded() as used, using("selective_scan:triton"):
        got = found()
    assert used == {"selective_scan": "triton"}
    torch.testing.assert_close(got, wanted)

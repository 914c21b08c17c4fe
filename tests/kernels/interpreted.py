"""Our Triton kernels in Triton's interpreter; run by `test_triton.py` in a process of its own."""

import pytest
import torch
import triton
import triton.language as tl

from archsearch.block import Ctx, block_class
from archsearch.kernels import _peer_triton
from archsearch.kernels._peer_triton import experts
from archsearch.kernels._product_keys_triton import route
from archsearch.kernels.dispatch import recorded, using
from archsearch.kernels.table_rows import Picks
from archsearch.testing.kernel_cases import (
    CASES,
    TOLERANCE,
    configs,
    error,
    found,
    launched,
    plain_of,
    triton_of,
)
from tests.kernels.test_product_keys import assert_best


def drawn(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@triton.jit
def _dot(a_ptr, b_ptr, c_ptr, UPCAST: tl.constexpr):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    a, b = tl.load(a_ptr + at), tl.load(b_ptr + at)
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    tl.store(c_ptr + at, tl.dot(a, b, input_precision="ieee"))


def test_a_dot_of_bfloat16_is_still_wrong_here_and_right_if_cast_up():
    """A canary: once the first half fails, kernels need no `UPCAST` in the interpreter any more."""
    a, b, c = drawn(16, 16, dtype=torch.bfloat16), drawn(16, 16).bfloat16(), torch.empty(16, 16)
    _dot[1,](a, b, c, UPCAST=False)
    assert not torch.allclose(c, a.float() @ b.float(), rtol=1e-2, atol=1e-2)
    _dot[1,](a, b, c, UPCAST=True)
    torch.testing.assert_close(c, a.float() @ b.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", CASES)
def test_values_and_all_gradients_are_those_of_torch(op, dtype):
    case = CASES[op]
    if dtype not in (*case.dtypes, torch.float64):
        pytest.skip(f"{op} is not computed in {dtype}")
    given = case.given("tiny", dtype)
    assert error(case, triton_of(op), plain_of(case), given) < TOLERANCE[dtype]


@pytest.mark.parametrize("op", CASES)
def test_every_launch_config_gives_the_same(op):
    case = CASES[op]
    given = case.given("tiny", case.dtypes[0])
    for which in range(1, configs(op)):
        with launched(op, which):
            assert error(case, triton_of(op), plain_of(case), given) < TOLERANCE[case.dtypes[0]]


@pytest.mark.parametrize("op", CASES)
def test_equal_runs_give_equal_bits(op):
    case = CASES[op]
    given = case.given("tiny", case.dtypes[0])
    once, again = (found(case, triton_of(op), given) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(once, again, strict=True))


@pytest.mark.parametrize("op", CASES)
def test_it_is_compiled_without_a_break(op):
    case = CASES[op]
    if op == "peer":
        pytest.skip("an object is among its arguments: the compiled block below covers it")
    given = case.given("tiny", case.dtypes[0])
    run = torch.compile(triton_of(op), backend="aot_eager", fullgraph=True)
    assert error(case, run, plain_of(case), given) < TOLERANCE[case.dtypes[0]]


def test_a_wrong_kernel_is_caught():
    case = CASES["peer"]
    given = case.given("tiny", torch.float32)

    def wrong(*given):
        return experts(*given[:3], given[3] * 1.001, *given[4:])

    assert error(case, wrong, plain_of(CASES["peer"]), given) > TOLERANCE[torch.float32]


def test_the_operators_keep_what_they_promise_to_torch():
    """Schema, shapes, gradients and their tracing: `opcheck`."""
    x_ND, down_RD, up_RD, gate_NE, picks, act = CASES["peer"].given("tiny", torch.float32)
    given = x_ND, down_RD, up_RD, gate_NE, picks.row_NE, act, False
    torch.library.opcheck(torch.ops.archsearch.peer_triton, given)
    score, count = CASES["product_keys"].given("tiny", torch.float32)
    torch.library.opcheck(torch.ops.archsearch.product_keys_triton, (score, count))
    given = CASES["mod"].given("tiny", torch.float32)
    torch.library.opcheck(torch.ops.archsearch.mod_put, given)
    d_RD = drawn(given[-1], given[0].shape[1])
    plain = (x.detach() for x in given[:4])
    torch.library.opcheck(torch.ops.archsearch.mod_put_backward, (d_RD, *plain))


def test_gradients_are_those_of_finite_differences():
    x_ND, down_RD, up_RD, gate_NE, _, act = CASES["peer"].given("tiny", torch.float64)
    picks = Picks(torch.tensor([[0, 1, 1], [3, 3, 0], [1, 2, 0]]))

    def run(x, down, up, gate):
        return experts(x, down, up, gate, picks, act)

    given = x_ND[:, :2], down_RD[:, :2], up_RD[:, :2], gate_NE[:, :3]
    given = [t.detach().contiguous().requires_grad_() for t in given]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


def test_gradients_of_routing_and_of_putting_back_are_those_of_finite_differences():
    score_SNK, _ = CASES["product_keys"].given("tiny", torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: route(s, 3)[0],
        score_SNK[:, :1, :2, :5].detach().contiguous().requires_grad_(),
        fast_mode=True,
    )
    *given, row_N, rows = CASES["mod"].given("tiny", torch.float64)
    given = [x[:3].detach().requires_grad_() for x in given]
    put = triton_of("mod")
    assert torch.autograd.gradcheck(lambda *xs: put(*xs, row_N[:3], rows), given, fast_mode=True)


def test_where_rows_are_wide_fewer_are_read_at_once(monkeypatch):
    monkeypatch.setattr(_peer_triton, "MAX_BYTES", 1)
    case = CASES["peer"]
    assert error(case, experts, plain_of(case), case.given("tiny", torch.float64)) < 1e-12


@pytest.mark.parametrize("act", ["gelu", "silu", "relu"])
def test_every_nonlinearity_has_its_slope(act):
    *given, _ = CASES["peer"].given("tiny", torch.float64)
    assert error(CASES["peer"], experts, plain_of(CASES["peer"]), (*given, act)) < 1e-12


def test_sparse_gradients_hold_each_picked_row_once():
    x_ND, down_RD, up_RD, gate_NE, picks, act = CASES["peer"].given("tiny", torch.float64)
    picked = torch.randint(2, picks.row_NE.shape, generator=torch.Generator().manual_seed(0)) * 3
    given = x_ND, down_RD, up_RD, gate_NE, Picks(picked, sparse=True), act
    gradient, *_ = torch.autograd.grad(experts(*given).sum(), [down_RD])
    assert gradient.is_sparse
    assert gradient.coalesce().indices()[0].tolist() == [0, 3]
    assert gradient._nnz() == 2
    assert error(CASES["peer"], experts, plain_of(CASES["peer"]), given) < 1e-12


@pytest.mark.parametrize(("keys", "count"), [(1, 1), (2, 2), (7, 7), (33, 3)])
def test_the_best_pairs_are_found_also_where_scores_tie(keys, count):
    for steps in (2, 1000):
        score_SNK = (drawn(2, 4, keys) * steps / 4).round()
        gate_NE, pair_NE = route(score_SNK, count)
        one_NE, two_NE = (
            score_SNK[s].gather(-1, k) for s, k in ((0, pair_NE // keys), (1, pair_NE % keys))
        )
        assert_best((one_NE + two_NE, pair_NE), score_SNK, count)
        torch.testing.assert_close(gate_NE, (one_NE + two_NE).softmax(-1))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_still_choose_pairs_that_exist(number):
    score_SNK = drawn(2, 3, 8)
    score_SNK[0, 1, 3:] = score_SNK[1, 2, 5] = number
    gate_NE, pair_NE = route(score_SNK, 4)
    assert 0 <= pair_NE.min() <= pair_NE.max() < 64
    assert all(len({*row}) == 4 for row in pair_NE.tolist())
    assert gate_NE.isfinite().all() == (number == -torch.inf)


def test_the_counter_of_flops_sees_them():
    from torch.utils.flop_counter import FlopCounterMode

    given = CASES["peer"].given("tiny", torch.float32)
    with FlopCounterMode(display=False) as counter:
        experts(*given)
    assert counter.get_total_flops() == 4 * 3 * 6 * 12


def test_a_block_computes_the_same_with_them_and_its_training_is_compiled():
    kind = block_class("peer")
    config = kind.Config(
        **dict(kind.info.fill({"keys": 4, "heads": 2, "top_k": 3, "key_width": 4}))
    )
    block = kind(8, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.data.normal_(generator=generator)
    x_BTD = drawn(1, 3, 8)
    ctx = Ctx(embedding=x_BTD)

    def gradients(run):
        block.zero_grad()
        y_BTD = run(x_BTD, ctx)
        y_BTD.square().sum().backward()
        return [y_BTD.detach(), *(p.grad.clone() for p in block.parameters())]

    wanted = gradients(block)
    with recorded() as used, using("peer:triton,product_keys:triton"):
        found = gradients(block)
        whole = gradients(torch.compile(block, backend="aot_eager", fullgraph=True))
    assert used == {"peer": "triton", "product_keys": "triton"}
    for one, two, three in zip(wanted, found, whole, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)

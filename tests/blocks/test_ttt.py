"""TTT: limits, equalities with a second formulation, and mistakes that the laws must catch."""

import math

import pytest
import torch
from torch.nn import functional as F

from archsearch.block import Ctx
from archsearch.blocks.ttt import TTT
from archsearch.errors import BlockError
from archsearch.kernels import ttt as ttt_loops
from archsearch.testing.blocks import Case, equals_oracle

INNER = pytest.mark.parametrize("inner", ["linear", "mlp"])


def case(width=32, **given):
    return Case(TTT, width, TTT.Config(**dict(TTT.info.fill(given))))


def tokens(batch, time, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, time, width, generator=generator, dtype=dtype)


def inner_model(block, x, weights):
    """LN(f(x; weights)) for inputs (B, H, M, K)."""
    z = x @ weights[0] + weights[1]
    if len(weights) == 4:
        z = F.gelu(z, approximate="tanh") @ weights[2] + weights[3]
    z = F.layer_norm(z, z.shape[-1:], eps=1e-6)
    return z * block.gain[:, None] + block.bias[:, None]


def starts(block, batch):
    names = ("W1", "b1", "W2", "b2")[: 4 if block.config.inner == "mlp" else 2]
    given = [block.get_parameter(name) for name in names]
    return [(p if p.dim() == 3 else p[:, None]).expand(batch, -1, -1, -1) for p in given]


def inputs(block, x_BTD):
    """The rows q, k, v, lr of each head, without RoPE."""
    heads = block.heads
    u = (x_BTD @ block.in_proj.weight.T).split([*[x_BTD.shape[-1]] * 3, heads], -1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in u[:3])
    return q, k, v, block.base * torch.sigmoid(u[3] + block.lr_bias).mT


def finished(block, y_BHTK):
    y_BTD = y_BHTK.transpose(1, 2).flatten(2)
    normed = F.layer_norm(y_BTD, y_BTD.shape[-1:], block.norm.weight, block.norm.bias, 1e-6)
    return normed @ block.out_proj.weight.T


@pytest.mark.parametrize(
    ("given", "params"),
    [
        # d = 128, heads of 32: 4 d^2 + d K + d + d H + H + m + 4 d
        ({}, 4 * 128**2 + 128 * 32 + 128 + 128 * 4 + 4 + 16 + 4 * 128),
        ({"gate": True}, 5 * 128**2 + 128 * 32 + 128 + 128 * 4 + 4 + 16 + 4 * 128),
        ({"inner": "mlp"}, 4 * 128**2 + 8 * 128 * 32 + 5 * 128 + 128 * 4 + 4 + 16 + 4 * 128),
        # one projection less, two filters of 4 and their biases more
        ({"conv": 4}, 3 * 128**2 + 10 * 128 + 128 * 32 + 128 + 128 * 4 + 4 + 16 + 4 * 128),
    ],
)
def test_size_is_that_of_the_published_layer(given, params):
    assert TTT.cost(128, case(128, **given).config, 1).params == params


@INNER
def test_a_learning_rate_of_0_leaves_the_static_model(inner):
    block = case(inner=inner, head_dim=8, mini_batch=4, pos="none").build(torch.float64, drawn=True)
    with torch.no_grad():
        block.lr_bias.fill_(-math.inf)
    x_BTD = tokens(2, 11, 32)
    q, *_ = inputs(block, x_BTD)
    want = finished(block, q + inner_model(block, q, starts(block, 2)))
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), want)


@INNER
def test_a_mini_batch_of_1_is_online_gradient_descent(inner):
    """By `torch.optim.SGD`, one head of one row at a time."""
    block = case(inner=inner, head_dim=8, mini_batch=1).build(torch.float64, drawn=True)
    x_BTD = tokens(2, 9, 32)
    q, k, v, lr = (part.detach() for part in inputs(block, x_BTD))
    pace = (1 + block.delta.detach()).clamp(min=0)
    read = torch.empty_like(q)
    for row in range(2):
        for head in range(4):
            gain, bias = block.gain[head].detach(), block.bias[head].detach()
            model = torch.nn.Linear(8, 8) if inner == "linear" else two_layers()
            model = model.double()
            with torch.no_grad():
                for p, given in zip(model.parameters(), starts(block, 1), strict=True):
                    p.copy_(given[0, head].mT if p.dim() == 2 else given[0, head, 0])
            for t in range(9):
                sgd = torch.optim.SGD(model.parameters(), lr=float(pace * lr[row, head, t]))
                target = v[row, head, t] - k[row, head, t]
                made = F.layer_norm(model(k[row, head, t]), (8,), gain, bias, 1e-6)
                loss = F.mse_loss(made, target, reduction="sum") / 2
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                after = model(q[row, head, t]).detach()
                read[row, head, t] = F.layer_norm(after, (8,), gain, bias, 1e-6)
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), finished(block, q + read))


def two_layers():
    gelu = torch.nn.GELU(approximate="tanh")
    return torch.nn.Sequential(torch.nn.Linear(8, 32), gelu, torch.nn.Linear(32, 8))


@INNER
def test_weights_at_the_end_of_a_mini_batch_are_one_step_of_autograd(inner):
    """After M tokens the decode state holds W - tok_M sum_j lr_j grad_j, gradients together."""
    block = case(inner=inner, head_dim=8, mini_batch=5, pos="none").build(torch.float64, drawn=True)
    x_BTD = tokens(2, 5, 32)
    _, k, v, lr = inputs(block, x_BTD)
    weights = [w.clone() for w in starts(block, 2)]
    losses = (inner_model(block, k, weights) - (v - k)).square().sum(-1) / 2
    grads = torch.autograd.grad((lr * losses).sum(), weights)
    pace = (1 / 5 + block.delta[-1]).clamp(min=0)
    want = [w - pace * g for w, g in zip(weights, grads, strict=True)]
    state = block.init_state(2, 5)
    with torch.no_grad():
        for t in range(5):
            _, state = block.step(x_BTD[:, t], state, Ctx(x_BTD[:, t], position=t, seen=t))
    for i in range(len(want) // 2):
        joined = torch.cat(want[2 * i : 2 * i + 2], 2)
        torch.testing.assert_close(state[f"weights{i + 1}"], joined)
        assert not state[f"gradient{i + 1}"].any()


def loops(inner):
    """Loop and random inputs for 3 mini-batches of 4 tokens, 2 heads of 6 channels."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    key, rate, offset, square = draw(3, 2, 4, 7), draw(3, 2, 4, 1), draw(3, 2, 4, 6), draw(2, 1, 6)
    if inner == "linear":
        return ttt_loops.LinearLoop, (key, rate, offset, square, draw(2, 7, 6))
    return ttt_loops.MLPLoop, (key, rate, offset, square, draw(2, 7, 5), draw(2, 6, 6))


@INNER
def test_backward_by_hand_is_that_of_finite_differences(inner):
    loop, given = loops(inner)
    assert torch.autograd.gradcheck(loop.apply, given, atol=1e-5)


def test_second_derivative_of_gelu():
    z = torch.linspace(-30, 30, 2001, dtype=torch.float64).requires_grad_()
    (first,) = torch.autograd.grad(ttt_loops.gelu(z).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    torch.testing.assert_close(ttt_loops.gelu_second(z.detach()), second, atol=1e-12, rtol=1e-9)
    assert ttt_loops.gelu_second(torch.tensor([-1e30, 1e30])).tolist() == [0, 0]


def test_place_is_that_in_the_mini_batch_whatever_the_position():
    block = case(head_dim=8, mini_batch=4).build(torch.float64, drawn=True)
    x_BTD = tokens(2, 10, 32)
    far = torch.arange(10).mul(7).expand(2, 10) + 3
    want = block(x_BTD, Ctx(x_BTD))
    assert torch.equal(block(x_BTD, Ctx(x_BTD, position=far)), want)
    state = block.init_state(2, 10)
    with torch.no_grad():
        for t in range(10):
            ctx = Ctx(x_BTD[:, t], position=far[:, t], seen=t)
            y_BD, state = block.step(x_BTD[:, t], state, ctx)
            torch.testing.assert_close(y_BD, want[:, t])


@INNER
def test_learns_a_map_that_is_shown_over_and_over(inner):
    """The inner loss of later mini-batches is lower: what is read is the target, v - k."""
    block = case(16, inner=inner, head_dim=16, pos="none", lr=4.0).build(torch.float64)
    shown_BTD = tokens(1, 16, 16).repeat(1, 20, 1)
    _, k, v, _ = inputs(block, shown_BTD)
    state, losses = block.init_state(1, 320), []
    with torch.no_grad():
        for t in range(320):
            if t % 16 == 0:
                layers = [state[name] for name in sorted(state) if name.startswith("weights")]
                parts = [part for w in layers for part in (w[:, :, :-1], w[:, :, -1:])]
                error = inner_model(block, k[:, :, :16], parts) - (v - k)[:, :, :16]
                losses.append(float(error.square().mean()))
            _, state = block.step(shown_BTD[:, t], state, Ctx(shown_BTD[:, t], seen=t))
    assert losses[-1] < 0.7 * losses[0]


def strict(tok_M, lr_INM1):
    """The weights of gradients without those of the token itself."""
    return -tok_M[:, None].expand(-1, len(tok_M)).tril(-1) * lr_INM1.mT


@INNER
def test_the_law_sees_a_missing_diagonal(inner, monkeypatch):
    monkeypatch.setattr("archsearch.blocks.ttt.eta_of", strict)
    with pytest.raises(AssertionError, match="output at T=1"):
        equals_oracle(case(inner=inner, head_dim=8))


@INNER
def test_the_law_sees_a_target_that_is_not_the_residual(inner, monkeypatch):
    monkeypatch.setattr(
        "archsearch.blocks.ttt.offset_of", lambda gain, bias, k, v: gain * (bias - v)
    )
    with pytest.raises(AssertionError, match="output at T=1"):
        equals_oracle(case(inner=inner, head_dim=8))


def test_the_law_sees_a_mini_batch_that_goes_on_from_the_first_weights(monkeypatch):
    loop = ttt_loops.LinearLoop

    class Forgetful:
        @staticmethod
        def apply(key, rate, offset, square, start):
            each = [
                loop.apply(*(x[None] for x in one), square, start)
                for one in zip(key, rate, offset, strict=True)
            ]
            return [torch.cat(parts) for parts in zip(*each, strict=True)]

    monkeypatch.setattr(ttt_loops, "LinearLoop", Forgetful)
    with pytest.raises(AssertionError, match="output at T=65"):
        equals_oracle(case(head_dim=8))


def test_heads_that_do_not_fit_are_refused_in_words():
    with pytest.raises(BlockError) as error:
        TTT.check(48, TTT.Config(head_dim=32))
    assert str(error.value) == (
        "ttt.head_dim 32 is odd (for RoPE), or does not divide the width 48; "
        "legal: 4, 6, 8, 12, 16, 24, 48"
    )
    TTT.check(15, TTT.Config(head_dim=5, pos="none"))

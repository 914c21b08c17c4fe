import pytest
import torch
from torch.nn import functional as F

from archsearch.block import Ctx
from archsearch.blocks.gated_deltanet import gated_delta_rule
from archsearch.blocks.gla import gated_linear_attention
from archsearch.blocks.rwkv7 import FASTEST, RWKV7, Heads, weighted_delta_rule
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case
from tests.blocks.parity import between, naive_of_fla


def case(width=32, **given):
    return Case(RWKV7, width, RWKV7.Config(**dict(RWKV7.info.fill(given))))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recurrence(r, log_w, k, v, kap, gone, decayed_first=False):
    S, outputs = r.new_zeros(*r[:, 0].shape, v.shape[-1]), []
    for t in range(r.shape[1]):
        kept = S * log_w[:, t].exp()[..., None]
        read = kept if decayed_first else S
        recalled = torch.einsum("bhk,bhkv->bhv", kap[:, t], read)
        S = kept - gone[:, t, ..., None] * recalled[:, :, None]
        S = S + k[:, t, ..., None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", r[:, t], S))
    return torch.stack(outputs, 1)


def inputs(time=100, K=8, alike=0.0, rate=None, speed=None):
    """`alike` is how much of each removal key is common to all."""
    shape = 2, time, 2, K
    common, own = (
        F.normalize(random(2, 1, 2, K, seed=1), dim=-1),
        F.normalize(random(*shape), dim=-1),
    )
    kap = F.normalize(alike * common + (1 - alike) * own, dim=-1)
    rates = (
        torch.sigmoid(random(*shape, seed=2)) if rate is None else torch.full(shape, rate).double()
    )
    speeds = torch.sigmoid(random(*shape, seed=3) - 2) if speed is None else speed
    log_w = torch.full(shape, FASTEST).double() * speeds
    k = kap * rates + 0.1 * random(*shape, seed=4)
    return Heads(random(*shape, seed=5), log_w, k, random(*shape, seed=6), kap, kap * rates)


def as_type(heads, dtype):
    return Heads(*(x.to(dtype) for x in heads))


@pytest.mark.parametrize("speed", [None, 0.0, 1e-3, 1.0])
@pytest.mark.parametrize("rate", [None, 1.0])
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9, 0.999])
def test_rule_is_stable_in_fp32_however_much_keys_resemble_each_other(alike, rate, speed):
    given = Heads(*(x.requires_grad_() for x in inputs(300, 16, alike, rate, speed)))

    def run(rule, dtype):
        y = rule(as_type(given, dtype))
        grads = torch.autograd.grad((y * random(*y.shape).to(dtype)).sum(), list(given))
        return [y.detach().double(), *grads]

    exact = run(lambda heads: recurrence(*heads), torch.float64)
    for got, want in zip(run(weighted_delta_rule, torch.float32), exact, strict=True):
        assert (got - want).norm() < 2e-5 * want.norm()


def test_removal_reads_the_state_before_it_decays():
    heads = inputs(70)
    got = weighted_delta_rule(heads)
    torch.testing.assert_close(got, recurrence(*heads))
    other = recurrence(*heads, decayed_first=True)
    assert (got - other).norm() > 0.01 * got.norm()


def test_without_decay_and_one_rate_it_is_the_delta_rule():
    heads = inputs(70, rate=0.5, speed=0.0)
    heads = heads._replace(k=heads.gone)
    zero, half = torch.zeros(2, 70, 2).double(), torch.full((2, 70, 2), 0.5).double()
    want = gated_delta_rule(heads.r, heads.kap, heads.v, zero, half)
    torch.testing.assert_close(weighted_delta_rule(heads), want)


def test_without_removal_it_is_gated_linear_attention():
    heads = inputs(70, rate=0.0)
    want = gated_linear_attention(heads.r, heads.k, heads.v, heads.log_w)
    torch.testing.assert_close(weighted_delta_rule(heads), want)


def test_rule_is_that_of_fla():
    naive = naive_of_fla("generalized_delta_rule/dplr")

    def theirs(*heads):
        r, log_w, k, v, kap, gone = (x.transpose(1, 2) for x in heads)
        return naive.dplr_recurrence(r * 8**0.5, k, v, -kap, gone, log_w)[0].transpose(1, 2)

    def ours(*heads):
        return weighted_delta_rule(Heads(*heads))

    assert between(ours, theirs, as_type(inputs(100, alike=0.3), torch.float32)) < 1e-5


def test_start_is_that_of_the_first_published_layer():
    block = case(64).build()
    assert torch.equal(block.shift[:, 0], torch.ones(6))
    torch.testing.assert_close(block.shift[2, 32], torch.tensor(1 - 0.5**0.7))
    assert (block.shift[:, 1:] < block.shift[:, :-1]).all()
    bias = block.decay_high.bias
    assert bias[0] == -6.5
    assert bias[-1] == -1.5
    assert (bias.diff() > 0).all()
    assert not any(getattr(block, f"{n}_low").weight.any() for n in ("decay", "rate", "gate"))
    assert block.receptance.weight.abs().max() <= 0.5 / 8
    assert block.key.weight.abs().max() <= 0.05 / 8
    assert block.norm.eps == 32e-5


@pytest.mark.parametrize("speed", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("rate", [-50.0, 50.0])
def test_extreme_decays_and_rates_in_the_whole_layer(speed, rate):
    block = case().build(drawn=True)
    with torch.no_grad():
        block.decay_high.bias.fill_(speed)
        block.rate_high.bias.fill_(rate)
    x_BTD = random(2, 200, 32).float()
    got = block(x_BTD, Ctx(x_BTD)).double()
    want = block.double().oracle(x_BTD.double(), Ctx(x_BTD.double()))
    assert (got - want).norm() < 1e-4 * want.norm()


def test_state_is_one_token_and_one_matrix_per_head():
    block = case(64, head_dim=16).build().bfloat16()
    state = block.init_state(3, 100)
    shapes = {n: (tuple(s.shape), s.dtype) for n, s in state.items()}
    assert shapes == {
        "before": ((3, 64), torch.bfloat16),
        "memory": ((3, 4, 16, 16), torch.float32),
    }
    x_BD = torch.ones(3, 64).bfloat16()
    _, state = block.step(x_BD, state, Ctx(x_BD))
    assert shapes == {n: (tuple(s.shape), s.dtype) for n, s in state.items()}


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(BlockError) as error:
        RWKV7.check(24, RWKV7.Config(head_dim=16))
    assert str(error.value) == "rwkv7.head_dim 16 does not divide the width 24; legal: 8, 12, 24"

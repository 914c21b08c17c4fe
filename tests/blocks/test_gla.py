import pytest
import torch
from torch.nn import functional as F

from archsearch.block import Ctx
from archsearch.blocks.gla import GLA, gated_linear_attention
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case
from tests.blocks.parity import between, naive_of_fla


def case(width=32, **given):
    return Case(GLA, width, GLA.Config(**dict(GLA.info.fill(given))))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recurrence(q, k, v, log_a):
    S, outputs = 0, []
    for t in range(q.shape[1]):
        S = log_a[:, t].exp()[..., None] * S + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((q[:, t, :, :, None] * S).sum(-2))
    return torch.stack(outputs, 1)


def inputs(time=200, heads=2, K=8, V=6):
    shape = 2, time, heads
    q, k, v = (random(*shape, n, seed=i) for i, n in enumerate((K, K, V)))
    return q, k, v, F.logsigmoid(random(*shape, K, seed=3)) / 16


@pytest.mark.parametrize("slowest", [0.0, -1e-4, -1.0])
@pytest.mark.parametrize("fastest", [-1.0, -8.0, -30.0, -100.0, -1e4])
@pytest.mark.parametrize("often", [-1.0, 0.0, 1.0, 9.0])
def test_scan_is_stable_in_fp32_whatever_the_decays(slowest, fastest, often):
    """Slow and fast decays in turn, so that sums over a chunk mix both."""
    q, k, v, other = inputs()
    log_a = torch.where(random(*other.shape, seed=7) > often, slowest, fastest) * random(
        *other.shape, seed=8
    ).abs().clamp(0.1, 1.0)
    given = [x.requires_grad_() for x in (q, k, v, log_a)]

    def run(scan, dtype):
        y = scan(*(x.to(dtype) for x in given))
        grads = torch.autograd.grad((y * random(*y.shape, seed=9).to(dtype)).sum(), given)
        return [y.detach().double(), *grads[:3]]

    exact = run(recurrence, torch.float64)
    for got, want in zip(run(gated_linear_attention, torch.float32), exact, strict=True):
        assert (got - want).norm() < 1e-5 * want.norm()


def test_one_factor_per_chunk_would_fail_that_test():
    """The form exp(sum_t) exp(-sum_s) without borders overflows."""
    q, k, v, _ = inputs(32)
    total = (-8.0 * random(2, 32, 2, 8, seed=8).abs().clamp(0.1, 1.0)).cumsum(1)
    exact = recurrence(q, k, v, total.diff(dim=1, prepend=torch.zeros(2, 1, 2, 8)))
    q, k, v, total = (x.float().transpose(1, 2) for x in (q, k, v, total))
    got = ((q * total.exp()) @ (k * (-total).exp()).mT).tril() @ v
    error = (got.transpose(1, 2) - exact).norm()
    assert not error < 1e-2 * exact.norm()


@pytest.mark.parametrize("time", [1, 2, 3, 4, 5, 8, 31, 32, 33, 100])
def test_scan_is_the_recurrence_at_every_length(time):
    given = inputs(time)
    torch.testing.assert_close(gated_linear_attention(*given), recurrence(*given))


def test_gradient_of_the_decays_is_that_of_the_recurrence():
    given = [x.requires_grad_() for x in inputs(70)]
    grads = [
        torch.autograd.grad((scan(*given) ** 2).sum(), given)
        for scan in (recurrence, gated_linear_attention)
    ]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)


def test_plain_linear_attention_is_softmax_attention_with_another_kernel():
    """The norm makes the division of 2006.16236 eq. 4 void."""
    block = case(decay="none", feature="elu", gate=False).build(torch.float64, drawn=True)
    x_BTD = random(2, 50, 32)
    heads, K, V = 1, 16, 32
    q, k, v = block.in_proj(x_BTD).split([heads * K, heads * K, heads * V], -1)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    weight = (q @ k.mT).tril()
    y = weight / weight.sum(-1, keepdim=True) @ v
    want = block.out_proj(F.rms_norm(y, (V,), block.norm.weight, 0.0))
    got = block(x_BTD, Ctx(x_BTD))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


def test_fixed_decays_are_those_of_retnet():
    block = case(64, decay="fixed", expand_k=1.0, gate=False).build(torch.float64)
    keep = 1 - torch.exp(
        torch.linspace(*torch.tensor([1 / 32, 1 / 512]).log().tolist(), 4).double()
    )
    q, k, v = block.in_proj(x_BTD := random(1, 40, 64)).split([64, 64, 128], -1)
    far = (torch.arange(40)[:, None] - torch.arange(40)).tril()
    weight = torch.einsum("bthk,bshk->bhts", *(u.unflatten(-1, (4, 16)) for u in (q, k))) / 4
    weight = weight * (keep[:, None, None] ** far).tril()
    y = torch.einsum("bhts,bshv->bthv", weight, v.unflatten(-1, (4, 32)))
    want = block.out_proj(F.rms_norm(y, (32,), block.norm.weight, 1e-5).flatten(-2))
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), want, rtol=1e-5, atol=1e-6)


def test_one_decay_for_all_channels_is_the_decay_of_a_head():
    channel, head = (case(decay=d).build(torch.float64, drawn=True) for d in ("channel", "head"))
    with torch.no_grad():
        channel.channel_decay.weight.zero_()
        channel.channel_decay.bias.fill_(-3.0)
        head.head_decay.weight.zero_()
        head.head_decay.bias.fill_(-3.0)
    same = {n: w for n, w in channel.state_dict().items() if "decay" not in n and "low" not in n}
    head.load_state_dict(head.state_dict() | same)
    x_BTD = random(2, 90, 32)
    torch.testing.assert_close(channel(x_BTD, Ctx(x_BTD)), head(x_BTD, Ctx(x_BTD)))


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(BlockError) as error:
        GLA.check(24, GLA.Config(head_dim=16))
    assert str(error.value) == (
        "gla.head_dim 16 does not divide the key width 12 (0.5 x 24); legal: 4, 6, 12"
    )


def test_scan_is_that_of_fla():
    naive = naive_of_fla("gla")

    def theirs(q, k, v, log_a):
        return naive.naive_recurrent_gla(q * 8**0.5, k, v, log_a)[0]

    given = [x.float() for x in inputs(100)]
    assert between(gated_linear_attention, theirs, given) < 1e-5


def test_memory_stays_in_fp32_and_convolutions_are_remembered_only_where_there_are_any():
    x_BD = torch.ones(3, 32).bfloat16()
    for conv, names in ((None, {"memory"}), (2, {"memory", "conv"}), (5, {"memory", "conv"})):
        block = case(conv=conv).build().bfloat16()
        state = block.init_state(3, 100)
        assert state.keys() == names
        assert state["memory"].shape == (3, 1, 16, 32)
        assert state["memory"].dtype == torch.float32
        if conv:
            assert state["conv"].shape == (3, 2 * 16 + 32, conv - 1)
        _, after = block.step(x_BD, state, Ctx(x_BD))
        assert {n: s.dtype for n, s in after.items()} == {n: s.dtype for n, s in state.items()}


def test_a_convolution_of_the_token_alone_is_no_more_than_silu():
    plain, block = (case(conv=conv).build(torch.float64, drawn=True) for conv in (None, 3))
    block.load_state_dict(block.state_dict() | plain.state_dict())
    with torch.no_grad():
        block.conv1d.weight.zero_()
        block.conv1d.weight[..., -1] = 1.0
    x_BTD = random(2, 40, 32)
    q, k, v = F.silu(plain.in_proj(x_BTD)[..., :64]).split([16, 16, 32], -1)
    log_a = F.logsigmoid(plain.channel_decay(plain.low(x_BTD))) / 16
    y = gated_linear_attention(*(u[:, :, None] for u in (q / 4, k, v, log_a)))
    y = F.rms_norm(y, (32,), plain.norm.weight, 1e-5).flatten(-2)
    want = plain.out_proj(y * F.silu(plain.in_proj(x_BTD)[..., 64:]))
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), want)

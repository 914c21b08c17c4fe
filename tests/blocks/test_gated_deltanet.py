import math

import pytest
import torch
from torch.nn import functional as F

from archsearch.block import Ctx
from archsearch.blocks.gated_deltanet import GatedDeltaNet, gated_delta_rule
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case
from tests.blocks.parity import between, naive_of_fla


def case(width=32, **given):
    return Case(GatedDeltaNet, width, GatedDeltaNet.Config(**dict(GatedDeltaNet.info.fill(given))))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recurrence(q, k, v, log_a, beta):
    """The state decays, then what it recalls for the key is replaced."""
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    S, outputs = q.new_zeros(*q[:, 0].shape, v.shape[-1]), []
    for t in range(q.shape[1]):
        S = S * log_a[:, t].exp()[..., None, None]
        recalled = torch.einsum("bhk,bhkv->bhv", k[:, t], S)
        S = S + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], v[:, t] - recalled)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], S))
    return torch.stack(outputs, 1)


def inputs(time=100, K=8, V=8, heads=2, most=1.0, alike=0.0):
    """Unit keys; `alike` is how much of each is common to all."""
    common, own = random(2, 1, heads, K, seed=1), random(2, time, heads, K, seed=2)
    k = F.normalize(
        alike * F.normalize(common, dim=-1) + (1 - alike) * F.normalize(own, dim=-1), dim=-1
    )
    beta = most * torch.sigmoid(random(2, time, heads, seed=3) + 2)
    log_a = -F.softplus(random(2, time, heads, seed=4) - 4)
    return random(2, time, heads, K), k, random(2, time, heads, V, seed=5), log_a, beta


def neumann(q, k, v, log_a, beta, chunk=32):
    """The first chunk alone, with the inverse as a product of powers."""
    q, k, v, log_a, beta = (x[:, :chunk].transpose(1, 2) for x in (q, k, v, log_a, beta))
    total = log_a.cumsum(-1)
    decay = (total[..., None] - total[..., None, :]).tril().exp().tril()
    power = -(k @ k.mT * decay * beta[..., None]).tril(-1)
    inverse = torch.eye(chunk, dtype=q.dtype) + power
    for _ in range(4):
        power = power @ power
        inverse = inverse + inverse @ power
    return ((q @ k.mT * decay) @ (inverse @ (v * beta[..., None]))).transpose(1, 2)


@pytest.mark.parametrize("most", [1.0, 2.0])
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9, 0.999])
def test_rule_is_stable_in_fp32_however_much_keys_resemble_each_other(alike, most):
    given = [x.requires_grad_() for x in inputs(300, K=16, alike=alike, most=most)]

    def run(rule, dtype):
        y = rule(*(x.to(dtype) for x in given))
        grads = torch.autograd.grad((y * random(*y.shape).to(dtype)).sum(), given)
        return [y.detach().double(), *grads]

    exact = run(recurrence, torch.float64)
    for got, want in zip(run(gated_delta_rule, torch.float32), exact, strict=True):
        assert (got - want).norm() < 2e-5 * want.norm()


def test_powers_in_place_of_substitution_would_fail_that_test():
    q, k, v, log_a, beta = inputs(32, K=16, alike=0.9, most=2.0)
    exact = recurrence(q, k, v, log_a, beta)
    assert (neumann(q, k, v, log_a, beta) - exact).norm() < 1e-4 * exact.norm()
    got = neumann(*(x.float() for x in (q, k, v, log_a, beta))).double()
    assert (got - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.parametrize("fastest", [-1.0, -30.0, -1e4])
def test_rule_is_stable_in_fp32_whatever_the_decays(fastest):
    """Slow and fast decays in turn, so that sums over a chunk mix both."""
    q, k, v, _, beta = inputs(200, alike=0.5)
    log_a = torch.where(random(2, 200, 2, seed=7) > -1, -1e-4, fastest) * beta
    want = recurrence(q, k, v, log_a, beta)
    got = gated_delta_rule(*(x.float() for x in (q, k, v, log_a, beta)))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_the_last_value_written_under_a_key_is_the_one_that_is_recalled():
    k = torch.eye(8, dtype=torch.float64).repeat(3, 1)[None, :, None]
    v, one, zero = (
        random(1, 24, 1, 5),
        torch.ones(1, 24, 1).double(),
        torch.zeros(1, 24, 1).double(),
    )
    asked = k.roll(-3, 1)
    got = gated_delta_rule(asked, k, v, zero, one)
    for t in range(8, 24):
        key = int(asked[0, t, 0].argmax())
        last = max(s for s in range(t + 1) if s % 8 == key)
        torch.testing.assert_close(got[0, t], v[0, last])


def test_strength_2_reflects_so_that_a_bit_can_be_flipped():
    """With negative eigenvalues the state computes parity, 2411.12537."""
    bits = random(1, 200, 1) > 0
    key = torch.ones(1, 201, 1, 1).double()
    v = torch.cat((torch.ones(1, 1, 1, 1), torch.zeros(1, 200, 1, 1)), 1).double()
    beta = torch.cat((torch.ones(1, 1, 1), 2.0 * bits), 1).double()
    y = gated_delta_rule(key, key, v, torch.zeros(1, 201, 1).double(), beta)
    want = 1 - 2 * (bits.cumsum(1) % 2)
    torch.testing.assert_close(y[0, 1:, 0, 0], want[0, :, 0].double())


def test_without_writing_the_memory_never_grows():
    q, k, v, _, beta = inputs(1000, K=16, V=4, alike=0.9, most=2.0)
    v = v * (torch.arange(1000) < 50)[:, None, None]
    k_as_v, zero = torch.eye(16).double(), torch.zeros_like(beta)
    rows = [gated_delta_rule(k_as_v[i].expand(q.shape), k, v, zero, beta) for i in range(16)]
    size = torch.stack(rows).square().sum((0, -1))
    assert (size[:, 51:] <= size[:, 50:-1] + 1e-9).all()


def test_a_decay_of_1_is_the_block_without_decay():
    with_decay, without = (case(decay=d).build(torch.float64, drawn=True) for d in (True, False))
    weights = with_decay.state_dict()
    weights["in_proj.weight"] = weights["in_proj.weight"][:-1]
    without.load_state_dict({n: weights[n] for n in without.state_dict()})
    with torch.no_grad():
        with_decay.A_log.fill_(-60.0)
    x_BTD = random(2, 90, 32)
    torch.testing.assert_close(with_decay(x_BTD, Ctx(x_BTD)), without(x_BTD, Ctx(x_BTD)))


def test_start_is_in_the_published_ranges():
    block = case(64, head_dim=8, value_heads=16).build()
    dt, A = F.softplus(block.dt_bias), block.A_log.exp()
    assert 0.99e-3 < dt.min() < 2e-3
    assert 0.06 < dt.max() < 0.101
    assert A.min() < 1
    assert 15 < A.max() <= 16
    assert abs(A.mean() - 8) < 1.5


def test_memory_stays_in_fp32():
    block = case(conv=3).build().bfloat16()
    state = block.init_state(2, 100)
    assert state["conv"].dtype == torch.bfloat16
    assert state["memory"].dtype == torch.float32
    x_BD = torch.ones(2, 32).bfloat16()
    y_BD, after = block.step(x_BD, state, Ctx(x_BD))
    assert y_BD.dtype == torch.bfloat16
    assert {n: (s.shape, s.dtype) for n, s in after.items()} == {
        n: (s.shape, s.dtype) for n, s in state.items()
    }


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"head_dim": 24}, "gated_deltanet.head_dim 24 does not divide the key width 32 (1 x 32); "
         "legal: 8, 16, 32"),
        ({"head_dim": 32, "expand_k": 0.5}, "gated_deltanet.head_dim 32 does not divide the key "
         "width 16 (0.5 x 32); legal: 8, 16"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(given, text):
    with pytest.raises(BlockError) as error:
        GatedDeltaNet.check(32, GatedDeltaNet.Config(**given))
    assert str(error.value) == text


# they compute in float32, and the two take their arguments in different orders
@pytest.mark.parametrize("form", ["recurrent", "chunk"])
def test_rule_is_that_of_fla(form):
    naive = getattr(naive_of_fla("gated_delta_rule"), f"naive_{form}_gated_delta_rule")

    def theirs(q, k, v, log_a, beta):
        last = (beta, log_a) if form == "recurrent" else (log_a, beta)
        return naive(q * 8**0.5, k, v, *last)[0]

    given = [x.float() for x in inputs(128, most=2.0, alike=0.3)]
    assert between(gated_delta_rule, theirs, given) < 1e-5


def ungated(q, k, v, beta):
    return gated_delta_rule(q, k, v, torch.zeros_like(beta), beta)


@pytest.mark.parametrize("form", ["recurrence", "chunkwise"])
def test_rule_without_decay_is_the_delta_rule_of_fla(form):
    naive = getattr(naive_of_fla("delta_rule"), f"delta_rule_{form}")

    def theirs(q, k, v, beta):
        heads_first = (x.transpose(1, 2) for x in (q * 8**0.5, k, v, beta))
        return naive(*heads_first)[0].transpose(1, 2)

    q, k, v, log_a, beta = (x.float() for x in inputs(128, most=2.0, alike=0.3))
    assert between(ungated, theirs, (q, k, v, beta)) < 1e-5

    def decaying(q, k, v, beta):
        return gated_delta_rule(q, k, v, log_a, beta)

    assert between(decaying, theirs, (q, k, v, beta)) > 1e-2


def test_layer_is_that_of_qwen3_next():
    pytest.importorskip("transformers", reason="transformers needs the extra oracles")
    from transformers.models.qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    block = case(64, head_dim=16, expand_k=0.5, value_heads=2, expand_v=2).build(drawn=True)
    G, R, K, V = 2, 2, 16, 32
    config = Qwen3NextConfig(
        hidden_size=64, linear_num_key_heads=G, linear_num_value_heads=G * R,
        linear_key_head_dim=K, linear_value_head_dim=V, linear_conv_kernel_dim=4,
        num_hidden_layers=1, layer_types=["linear_attention"], hidden_act="silu",
        rms_norm_eps=1e-6,
    )  # fmt: skip
    other = Qwen3NextGatedDeltaNet(config, 0).float()
    weights = block.state_dict()
    rows = weights.pop("in_proj.weight").split([G * K, G * K, G * R * V, G * R * V, G * R, G * R])
    q, k, v, z, b, a = (r.unflatten(0, (G, -1)) for r in rows)
    weights["in_proj_qkvz.weight"] = torch.cat((q, k, v, z), 1).flatten(0, 1)
    weights["in_proj_ba.weight"] = torch.cat((b, a), 1).flatten(0, 1)
    other.load_state_dict(weights)
    x_BTD = random(2, 100, 64).float()
    with torch.no_grad():
        got, want = block(x_BTD, Ctx(x_BTD)), other(x_BTD)
    assert (got - want).norm() < 3e-5 * want.norm()
    assert block.cost(64, block.config, 1).params == sum(p.numel() for p in other.parameters())
    assert math.prod(block.conv1d.weight.shape) == math.prod(other.conv1d.weight.shape)

import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.moe import (
    MoE,
    bias_loss,
    load_probability,
    squared_variation,
    switch_loss,
)
from archsearch.blocks.swiglu import SwiGLU
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case

ROUTERS = ["softmax", "sigmoid", "noisy_top_k"]


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def build(width=16, drawn=True, **given):
    config = MoE.Config(**dict(MoE.info.fill(given)))
    return Case(MoE, width, config).build(torch.float64, drawn=drawn)


def tokens(count=40, width=16, batch=1, seed=1):
    return torch.randn(batch, count, width, generator=stream(seed), dtype=torch.float64)


def router_of(block):
    return block.noisy_gate.weight if block.config.router == "noisy_top_k" else block.gate.weight


def run(block, x_BTD, **ctx):
    """Output, losses, and gradients of the router under a random projection of the output."""
    ctx = Ctx(x_BTD, **ctx)
    y_BTD = block(x_BTD, ctx)
    weight = torch.randn(y_BTD.shape, generator=stream(9), dtype=y_BTD.dtype)
    grad = torch.autograd.grad((y_BTD * weight).sum(), router_of(block), retain_graph=True)[0]
    return y_BTD.detach(), ctx.losses, grad


# --- against the layers of transformers ---


def published(module):
    """The layer in float64 with random weights, its expert loop plain."""
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0.0, p.shape[-1] ** -0.5, generator=stream(2))
    return module.double()


@pytest.mark.parametrize("renormalise", [True, False])
def test_softmax_is_the_layer_of_qwen2_moe(renormalise):
    reason = "needs the extra oracles"
    qwen = pytest.importorskip("transformers.models.qwen2_moe.modeling_qwen2_moe", reason=reason)
    config = qwen.Qwen2MoeConfig(
        hidden_size=16, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=8,
        shared_expert_intermediate_size=16, norm_topk_prob=renormalise,
    )  # fmt: skip
    layer = published(qwen.Qwen2MoeSparseMoeBlock(config))
    with torch.no_grad():
        layer.shared_expert_gate.weight.zero_()
    block = build(top_k=3, mult=0.5, shared=2, renormalise=renormalise)
    weights = {
        name.replace("shared_expert.", "shared_experts."): value
        for name, value in layer.state_dict().items()
        if "shared_expert_gate" not in name
    }
    # a gate of weight 0 halves the shared expert
    weights["shared_experts.down_proj.weight"] = weights["shared_experts.down_proj.weight"] / 2
    block.load_state_dict(weights)
    x_BTD = tokens(batch=2)
    got, want = block(x_BTD, Ctx(x_BTD)), layer(x_BTD)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_softmax_and_its_balance_loss_are_those_of_mixtral():
    reason = "needs the extra oracles"
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral", reason=reason)
    config = mixtral.MixtralConfig(
        hidden_size=16, intermediate_size=32, num_local_experts=8, num_experts_per_tok=2
    )
    layer = published(mixtral.MixtralSparseMoeBlock(config))
    block = build(top_k=2, mult=2.0, aux=0.5, z_loss=0.0)
    block.load_state_dict(layer.state_dict())
    x_BTD, ctx = tokens(batch=2), Ctx(tokens(batch=2))
    torch.testing.assert_close(block(x_BTD, ctx), layer(x_BTD), rtol=1e-6, atol=1e-7)
    logits = x_BTD.flatten(0, 1) @ layer.gate.weight.T
    theirs = mixtral.load_balancing_loss_func((logits,), 8, 2)
    torch.testing.assert_close(
        2 * ctx.losses[0], 0.5 * theirs, rtol=1e-6, atol=0, check_dtype=False
    )


def test_sigmoid_is_the_layer_of_deepseek_v3():
    reason = "needs the extra oracles"
    v3 = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3", reason=reason)
    config = v3.DeepseekV3Config(
        hidden_size=16, moe_intermediate_size=8, n_routed_experts=8, num_experts_per_tok=3,
        n_shared_experts=2, n_group=1, topk_group=1, routed_scaling_factor=1.0, norm_topk_prob=True,
    )  # fmt: skip
    layer = published(v3.DeepseekV3MoE(config))
    bias = torch.linspace(-0.3, 0.3, 8, dtype=torch.float64)
    layer.gate.e_score_correction_bias = bias
    weights = {n: v for n, v in layer.state_dict().items() if "correction" not in n}
    block = build(router="sigmoid", top_k=3, mult=0.5, shared=2)
    block.load_state_dict({**weights, "bias": bias})
    x_BTD = tokens(batch=2)
    # its router computes in float32
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), layer(x_BTD), rtol=1e-5, atol=1e-5)


# --- what any router keeps to ---


def test_one_expert_is_a_plain_swiglu():
    block = build(experts=1, top_k=1, mult=2.0)
    plain = Case(SwiGLU, 16, SwiGLU.Config(mult=2)).build(torch.float64)
    gate, up = block.experts.gate_up_proj[0].chunk(2)
    plain.load_state_dict(
        {"gate.weight": gate, "up.weight": up, "down.weight": block.experts.down_proj[0]}
    )
    x_BTD = tokens()
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), plain(x_BTD, Ctx(x_BTD)))


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("collapsed", [False, True])
def test_no_token_is_dropped(router, collapsed):
    """Where all experts are alike, gates that sum to 1 leave that expert, wherever tokens go."""
    block = build(router=router, top_k=3)
    with torch.no_grad():
        for stacked in block.experts.parameters():
            stacked.copy_(stacked[:1].expand_as(stacked))
        if collapsed:
            router_of(block).zero_()
    one = build(experts=1, top_k=1)
    one.experts.load_state_dict({n: p[:1] for n, p in block.experts.named_parameters()})
    x_BTD = tokens(200)
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), one(x_BTD, Ctx(x_BTD)))


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("top_k", [1, 3])
def test_the_order_of_experts_has_no_meaning(router, top_k):
    block, other = (build(router=router, top_k=top_k, shared=1) for _ in "ab")
    order_E = torch.randperm(8, generator=stream(3))
    own = [n for n, _ in block.named_parameters() if "shared" not in n]
    weights = {n: p[order_E] if n in own else p for n, p in block.state_dict().items()}
    other.load_state_dict(weights)
    x_BTD = tokens()
    (y, losses, grad), (same_y, same, same_grad) = run(block, x_BTD), run(other, x_BTD)
    torch.testing.assert_close(same_y, y)
    torch.testing.assert_close(sum(same), sum(losses))
    torch.testing.assert_close(same_grad, grad[order_E])
    other.load_state_dict({**weights, "experts.down_proj": block.experts.down_proj})
    assert not torch.allclose(run(other, x_BTD)[0], y)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_task_trains_the_router_even_of_one_expert_per_token(router, top_k):
    assert run(build(router=router, top_k=top_k), tokens())[2].abs().max() > 1e-3


@pytest.mark.parametrize("router", ROUTERS)
def test_gate_of_the_only_expert_is_its_probability(router):
    block, x_BTD = build(router=router, top_k=1), tokens()
    logits_NE = x_BTD[0] @ router_of(block).T
    bias = block.bias if router == "sigmoid" else 0.0
    p_NE = logits_NE.sigmoid() if router == "sigmoid" else logits_NE.softmax(-1)
    for x_D, p_E, y_D in zip(x_BTD[0], p_NE, block(x_BTD, Ctx(x_BTD))[0], strict=True):
        i = int((p_E + bias).argmax())
        gate_F, up_F = (block.experts.gate_up_proj[i] @ x_D).chunk(2)
        expert_D = block.experts.down_proj[i] @ (gate_F * gate_F.sigmoid() * up_F)
        torch.testing.assert_close(y_D, p_E[i] * expert_D)


@pytest.mark.parametrize("router", ROUTERS)
def test_losses_and_noise_belong_to_training(router):
    block, x_BTD = build(router=router), tokens()
    noise = stream(4)
    before = noise.get_state()
    y, losses, _ = run(block.eval(), x_BTD, noise=noise)
    assert not losses
    assert torch.equal(noise.get_state(), before)
    torch.testing.assert_close(run(block.train(), x_BTD)[0], y)
    assert len(run(block, x_BTD)[1]) == 2
    assert not run(build(router=router, aux=0.0, z_loss=0.0), x_BTD)[1]


# --- noisy top-k ---


@pytest.mark.parametrize("top_k", [1, 2, 7])
def test_noise_is_that_of_the_equations(top_k):
    block, x_BTD = build(router="noisy_top_k", top_k=top_k), tokens()
    want, got = Ctx(x_BTD, noise=stream(5)), Ctx(x_BTD, noise=stream(5))
    y = block(x_BTD, got)
    torch.testing.assert_close(y, block.oracle(x_BTD, want))
    torch.testing.assert_close(got.losses, want.losses)
    assert not torch.allclose(block(x_BTD, Ctx(x_BTD)), y)
    loss = y.square().sum() + sum(got.losses)
    assert torch.autograd.grad(loss, block.noise.weight)[0].abs().max() > 1e-6


def test_zero_start_ties_go_to_the_first_experts_and_noise_breaks_them():
    block = build(router="noisy_top_k", drawn=False)
    assert not block.noisy_gate.weight.any()
    assert not block.noise.weight.any()
    x_BTD = tokens(200)

    def used(ctx):
        grad = torch.autograd.grad(block(x_BTD, ctx).sum(), block.experts.down_proj)[0]
        return grad.abs().amax((1, 2)) > 0

    assert used(Ctx(x_BTD)).tolist() == [True] * 2 + [False] * 6
    assert used(Ctx(x_BTD, noise=stream(6))).all()


@pytest.mark.parametrize("top_k", [1, 3, 7])
def test_load_probability_is_what_happens_when_one_noise_is_drawn_again(top_k):
    clean_NE, eps_NE = torch.randn(2, 4, 8, generator=stream(7), dtype=torch.float64)
    std_NE = torch.rand(4, 8, generator=stream(8), dtype=torch.float64) + 0.2
    noisy_NE = clean_NE + eps_NE * std_NE
    draws = 20_000
    want_NE = torch.empty(4, 8, dtype=torch.float64)
    for i in range(8):
        again = noisy_NE.expand(draws, 4, 8).clone()
        fresh = torch.randn(draws, 4, generator=stream(10 + i), dtype=torch.float64)
        again[:, :, i] = clean_NE[:, i] + fresh * std_NE[:, i]
        want_NE[:, i] = (again.topk(top_k).indices == i).any(-1).double().mean(0)
    got_NE = load_probability(clean_NE, noisy_NE, std_NE, top_k)
    assert (got_NE - want_NE).abs().max() < 0.02
    # the K-th largest of all logits, one's own among them, is another number
    threshold_N1 = noisy_NE.topk(top_k).values[:, -1:]
    wrong_NE = torch.special.ndtr((clean_NE - threshold_N1) / std_NE)
    assert (wrong_NE - want_NE).abs().max() > 0.05


# --- balance ---


def test_balance_losses_are_least_where_the_load_is_even():
    assert squared_variation(torch.full((8,), 3.0)) == 0
    collapsed_E = torch.tensor([8.0] + [0.0] * 7)
    assert squared_variation(collapsed_E) == pytest.approx(7)
    even_NK = torch.arange(16).remainder(8).view(8, 2)
    uniform_NE = torch.full((8, 8), 1 / 8)
    assert switch_loss(uniform_NE, even_NK) == pytest.approx(1)
    certain_NE = torch.eye(8)[:1].expand(8, 8)
    assert switch_loss(certain_NE, torch.zeros(8, 1, dtype=torch.long)) == pytest.approx(8)


def test_gradient_of_the_switch_loss_lowers_the_crowded_expert():
    logits_NE = torch.randn(64, 8, generator=stream(1)).requires_grad_()
    chosen_NK = (logits_NE.detach() + torch.tensor([2.0] + [0.0] * 7)).topk(2).indices
    switch_loss(logits_NE.softmax(-1), chosen_NK).backward()
    assert logits_NE.grad.sum(0).argmax() == 0
    assert logits_NE.grad.sum(0)[0] > 0


def test_bias_loss_is_zero_and_its_gradient_the_sign_of_the_overload():
    bias_E = torch.tensor([0.5, -1.0, 0.0], requires_grad=True)
    chosen_NK = torch.tensor([[0, 1], [0, 1], [0, 2]])
    loss = bias_loss(bias_E, chosen_NK)
    loss.backward()
    assert loss == 0
    assert bias_E.grad.tolist() == [1.0, 0.0, -1.0]


def test_descent_on_the_bias_alone_evens_the_load_and_leaves_the_gates():
    block, x_BTD = build(router="sigmoid", aux=1.0, z_loss=0.0), tokens(400)
    logits_NE = x_BTD[0] @ block.gate.weight.T

    def load():
        chosen_NK = (logits_NE.sigmoid() + block.bias).topk(2).indices
        return torch.bincount(chosen_NK.flatten(), minlength=8).double()

    with torch.no_grad():
        block.bias.copy_(torch.tensor([2.0, 2.0] + [0.0] * 6))
    assert load().tolist() == [400, 400, 0, 0, 0, 0, 0, 0]
    optimizer = torch.optim.SGD([block.bias], lr=0.01)
    for _ in range(300):
        ctx = Ctx(x_BTD)
        block(x_BTD, ctx)
        optimizer.zero_grad()
        sum(ctx.losses).backward()
        optimizer.step()
    assert load().max() < 1.2 * load().mean()
    assert load().min() > 0.8 * load().mean()


# --- sizes ---


def test_size_of_mixtral_8x7b_layer():
    config = MoE.Config(experts=8, top_k=2, mult=3.5)
    cost = MoE.cost(4096, config, 1)
    expert = 3 * 4096 * 14336
    assert cost.params == 8 * expert + 8 * 4096
    assert cost.active_params == 2 * expert + 8 * 4096


@pytest.mark.parametrize(
    ("width", "given", "text"),
    [
        (16, {"experts": 3, "top_k": 4}, "moe.top_k 4 is more than the 3 experts; legal: 1, 2, 3"),
        (16, {"experts": 2, "router": "noisy_top_k"},
         "moe.top_k 2 leaves nothing to choose among 2 experts, which noisy_top_k needs; legal: 1"),
        (6, {"mult": 0.25}, "moe.mult 0.25 x 6 is not whole; legal: multiples of 1/6"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(width, given, text):
    with pytest.raises(BlockError) as error:
        MoE.check(width, MoE.Config(**given))
    assert str(error.value) == text

import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.shared_attention import SharedAttention
from archsearch.errors import BlockError
from archsearch.genome import Gene, Genome
from archsearch.stack import Stack
from archsearch.testing.blocks import Case
from archsearch.testing.cases import draw
from tests.blocks.parity import distance, with_gradients


def case(width=32, **given):
    config = SharedAttention.Config(**dict(SharedAttention.info.fill(given)))
    return Case(SharedAttention, width, config)


def tokens(seed=0):
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(seed))


def test_size_is_that_of_the_published_block():
    # counted on Zamba2 of transformers at d=128, f=4d, rank 16: block with adapters, and the linear
    config = case(128, mult=4, lora_rank=16, qkv_lora_rank=16).config
    assert SharedAttention.cost(128, config, 1).params == 469_376 + 128**2
    further = 128**2 + 12 * 128 * 16 + 128 * 16 + 2 * 16 * 512
    assert SharedAttention.params_per_use(128, config) == further


def test_output_is_meant_for_the_next_block_and_the_input_comes_unnormalised():
    assert SharedAttention.info.joins == "next"
    assert not SharedAttention.prenorm


def test_nothing_bypasses_attention():
    block, x, e = case().build(drawn=True), tokens(), tokens(1)
    with torch.no_grad():
        block.out.weight.zero_()
    assert (block(x, Ctx(e)) == 0).all()


def test_the_scale_of_stream_and_embedding_together_is_immaterial():
    block, x, e = case().build(drawn=True), 10 * tokens(), 10 * tokens(1)
    torch.testing.assert_close(block(7 * x, Ctx(7 * e)), block(x, Ctx(e)), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(block(7 * x, Ctx(e)), block(x, Ctx(e)), rtol=1e-2)


def test_uses_start_equal_but_for_their_linear():
    block, x, e = case(lora_rank=2, qkv_lora_rank=2).build(), tokens(), tokens(1)
    first, second = (block(x, Ctx(e, use=use)) for use in (0, 1))
    assert not torch.allclose(first, second)
    with torch.no_grad():
        block.linears[1].weight.copy_(block.linears[0].weight)
    torch.testing.assert_close(block(x, Ctx(e, use=1)), first)


@pytest.mark.parametrize("part", ["linears", "mlp_loras", "qkv_loras"])
def test_weights_of_one_use_do_not_touch_another(part):
    block, x, e = case(lora_rank=2, qkv_lora_rank=2).build(drawn=True), tokens(), tokens(1)
    before = [block(x, Ctx(e, use=use)) for use in range(3)]
    each = len(getattr(block, part)) // 3
    with torch.no_grad():
        for module in getattr(block, part)[each : 2 * each]:
            for parameter in module.parameters():
                parameter.add_(1.0)
    same = [torch.equal(block(x, Ctx(e, use=use)), before[use]) for use in range(3)]
    assert same == [True, False, True]


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(BlockError) as error:
        SharedAttention.check(16, SharedAttention.Config(heads=3))
    expected = "does not divide 32 (twice the width); legal: 1, 2, 4, 8, 16, 32"
    assert str(error.value) == f"shared_attention.heads 3 {expected}"


def zamba2(**given):
    """Mamba, then twice the shared block and a Mamba that reads its output."""
    mamba = Gene.of("mamba2", d_state=8, head_dim=16)
    shared = Gene.of("shared_attention", share="A", heads=4, lora_rank=3, **given)
    genome = Genome(32, (mamba, shared, mamba, shared, mamba))
    stack = Stack(genome, genome.genes).double()
    draw(stack, 1.0)
    return stack


def names_in_transformers(uses, adapters):
    """For each weight of `zamba2()`, those of Zamba2 that it is made of."""
    shared, ours = "layers.1.shared_transformer", "branches.A.block"
    attention, mlp = f"{shared}.self_attn", f"{shared}.feed_forward"
    names = {
        f"{ours}.norm.weight": [f"{shared}.input_layernorm.weight"],
        f"{ours}.qkv.weight": [f"{attention}.{n}_proj.weight" for n in "qkv"],
        f"{ours}.out.weight": [f"{attention}.o_proj.weight"],
        f"{ours}.mlp_norm.weight": [f"{shared}.pre_ff_layernorm.weight"],
        f"{ours}.gate_up.weight": [f"{mlp}.gate_up_proj.weight"],
        f"{ours}.down.weight": [f"{mlp}.down_proj.weight"],
    }
    for j in range(uses):
        names[f"{ours}.linears.{j}.weight"] = [f"layers.{j + 1}.linear.weight"]
        for i, factor in enumerate("ab"):
            lora = f"{mlp}.gate_up_proj_adapter_list.{j}.{i}.weight"
            names[f"{ours}.mlp_loras.{j}.{factor}.weight"] = [lora]
            for n, head in enumerate("qkv" if adapters else ""):
                lora = f"{attention}.linear_{head}_adapter_list.{j}.{i}.weight"
                names[f"{ours}.qkv_loras.{3 * j + n}.{factor}.weight"] = [lora]
    for index, layer in enumerate(("layers.0", "layers.1.mamba_decoder", "layers.2.mamba_decoder")):
        branch = f"branches.{2 * index}"
        names[f"{branch}.norm.weight"] = [f"{layer}.input_layernorm.weight"]
        parts = ("in_proj", "conv1d", "norm", "out_proj")
        every = [f"{part}.weight" for part in parts] + ["conv1d.bias", "dt_bias", "A_log", "D"]
        names |= {f"{branch}.block.{n}": [f"{layer}.mamba.{n}"] for n in every}
    return names


def of_transformers(stack, x_BTD, change=None, **given):
    """Output and gradients of Zamba2 with the weights of `stack`, after `change(model)`."""
    reason = "transformers needs the extra oracles"
    package = pytest.importorskip("transformers.models.zamba2.modeling_zamba2", reason=reason)
    config = package.Zamba2Config(
        hidden_size=32, vocab_size=3, pad_token_id=None, num_attention_heads=4,
        num_hidden_layers=3, layers_block_type=["linear_attention", "hybrid", "hybrid"],
        intermediate_size=64, mamba_d_state=8, n_mamba_heads=4, chunk_size=16, adapter_rank=3,
        time_step_min=1e-9, **given,
    )  # fmt: skip
    model = package.Zamba2Model(config).double()
    model.layers[2].shared_transformer = model.layers[1].shared_transformer
    model.final_layernorm = torch.nn.Identity()
    names = names_in_transformers(2, config.use_shared_attention_adapter)
    weights, theirs = dict(stack.named_parameters()), dict(model.named_parameters())
    assert weights.keys() == names.keys()
    with torch.no_grad():
        for name, parts in names.items():
            for part, weight in zip(parts, weights[name].chunk(len(parts)), strict=True):
                assert theirs[part].shape == weight.shape
                theirs[part].copy_(weight)
    if change:
        change(model)
    y_BTD = model(inputs_embeds=x_BTD, use_cache=False).last_hidden_state
    leaves = {"x": x_BTD, **{part: theirs[part] for parts in names.values() for part in parts}}
    found = with_gradients(y_BTD, leaves)
    return {"output": y_BTD.detach(), "x": found["x"]} | {
        name: torch.cat([found[part] for part in parts]) for name, parts in names.items()
    }


def off(stack, change=None, **given):
    """How far `stack` is from Zamba2, see `distance`."""
    x_BTD = tokens().double().requires_grad_()
    want = of_transformers(stack, x_BTD, change, **given)
    leaves = {"x": x_BTD, **dict(stack.named_parameters())}
    return distance(with_gradients(stack(x_BTD, Ctx(x_BTD)), leaves), want)


# its norms and angles are rounded to float32
@pytest.mark.parametrize("pos", ["none", "rope"])
@pytest.mark.parametrize("adapters", [False, True])
def test_equals_zamba2_of_transformers(pos, adapters):
    stack = zamba2(pos=pos, qkv_lora_rank=3 * adapters)
    flags = {"use_mem_rope": pos == "rope", "use_shared_attention_adapter": adapters}
    assert off(stack, **flags) < 3e-5


def joins_the_stream(model):
    def add(module, args, named):
        return (args[0] + named.pop("transformer_hidden_states"), *args[1:]), named

    for layer in model.layers[1:]:
        layer.mamba_decoder.register_forward_pre_hook(add, with_kwargs=True)


def scales_by_the_whole_head(model):
    attention = model.layers[1].shared_transformer.self_attn
    attention.scaling = attention.head_dim**-0.5


def swaps_the_uses(model):
    first, second = (model.layers[i].linear.weight for i in (1, 2))
    with torch.no_grad():
        first.copy_(second)


@pytest.mark.parametrize("change", [joins_the_stream, scales_by_the_whole_head, swaps_the_uses])
def test_another_wiring_is_noticed(change):
    assert off(zamba2(), change) > 1e-2

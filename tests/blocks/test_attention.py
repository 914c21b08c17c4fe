import dataclasses

import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.attention import Attention
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case
from tests.blocks.parity import distance, with_gradients

DOUBLE = torch.float64


def built(width=32, **given):
    config = Attention.Config(**dict(Attention.info.fill(given)))
    return Case(Attention, width, config).build(DOUBLE, drawn=True)


def tokens(time, width=32, batch=2):
    return torch.randn(batch, time, width, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def decoded(block, x_BTD, context, start=0):
    state, outputs = block.init_state(len(x_BTD), context), []
    for position, x_BD in enumerate(x_BTD.unbind(1), start):
        y_BD, state = block.step(x_BD, state, Ctx(x_BD, position=position, seen=position))
        outputs.append(y_BD)
    return torch.stack(outputs, 1)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def of_transformers(name, block, x_BTD, scale=1.0, **given):
    """The attention of a model of transformers with the weights of `block`, inside that model.

    Its positions and masks are then its own. Nothing comes before the attention but the embeddings.
    Its softmax scale is multiplied by `scale`.
    """
    transformers = pytest.importorskip("transformers", reason="needs the extra oracles")
    config = transformers.AutoConfig.for_model(
        name, hidden_size=x_BTD.shape[-1], intermediate_size=8, vocab_size=3, pad_token_id=None,
        num_hidden_layers=1, num_attention_heads=block.heads, num_key_value_heads=block.kv_heads,
        head_dim=block.head_width, attn_implementation="sdpa", **given,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config).double()
    model.layers[0].input_layernorm = torch.nn.Identity()
    theirs, seen = model.layers[0].self_attn, []
    theirs.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    rows = [n * block.head_width for n in (block.heads, block.kv_heads, block.kv_heads)]
    weights = {}
    for part in (n.removeprefix("qkv.") for n in block.state_dict() if n.startswith("qkv.")):
        cut = block.get_parameter(f"qkv.{part}").detach().split(rows)
        weights |= {f"{n}_proj.{part}": w for n, w in zip("qkv", cut, strict=True)}
    weights |= {n: w for n, w in block.state_dict().items() if "norm" in n}
    theirs.load_state_dict(weights | {"o_proj.weight": block.out.weight.detach()})
    theirs.scaling *= scale
    model(inputs_embeds=x_BTD, use_cache=False)
    found = with_gradients(seen[0], {"x": x_BTD, **dict(theirs.named_parameters())})
    for part in ("weight", "bias"):
        if f"q_proj.{part}" in found:
            found[f"qkv.{part}"] = torch.cat([found.pop(f"{n}_proj.{part}") for n in "qkv"])
    return found | {"out.weight": found.pop("o_proj.weight")}


def off(block, name, time=40, **given):
    """How far `block` is from a model of transformers, see `distance`."""
    x_BTD = tokens(time).requires_grad_()
    want = of_transformers(name, block, x_BTD, **given)
    y_BTD = block(x_BTD, Ctx(x_BTD))
    got = with_gradients(y_BTD, {"x": x_BTD, **dict(block.named_parameters())})
    return distance(got, want)


# 64 and 128 are the smallest tile and the length from which the sequence is cut into tiles
@pytest.mark.parametrize("window", [1, 2, 5, 63, 64, 65, 100, 150])
@pytest.mark.parametrize("time", [1, 64, 127, 128, 129, 130, 192, 201, 260])
def test_a_window_is_what_the_mask_says(window, time):
    block = built(heads=4, kv_heads=2, window=window)
    x_BTD = tokens(time)
    close(block(x_BTD, Ctx(x_BTD)), block.oracle(x_BTD, Ctx(x_BTD)))


@pytest.mark.parametrize("pos", ["rope", "none"])
@pytest.mark.parametrize("window", [None, 5])
def test_only_distances_matter(pos, window):
    block, x_BTD = built(pos=pos, window=window), tokens(20)
    close(block(x_BTD, Ctx(x_BTD, position=1000)), block(x_BTD, Ctx(x_BTD)))
    close(decoded(block, x_BTD, 1020, start=0), block(x_BTD, Ctx(x_BTD)))


def test_without_positions_the_order_of_the_past_does_not_matter():
    x_BTD = tokens(10)
    swapped = x_BTD[:, [3, 1, 0, 2, *range(4, 10)]]
    for pos, same in (("none", True), ("rope", False)):
        block = built(pos=pos)
        late, other = block(x_BTD, Ctx(x_BTD))[:, 4:], block(swapped, Ctx(swapped))[:, 4:]
        assert torch.allclose(late, other) == same


def test_decoding_past_the_context_forgets_the_oldest_token():
    block, x_BTD = built(), tokens(30)
    windowed = built(window=8)
    windowed.load_state_dict(block.state_dict())
    close(decoded(block, x_BTD, context=8), windowed(x_BTD, Ctx(x_BTD)))


def test_decoding_runs_far_beyond_the_window():
    block, x_BTD = built(window=4, heads=2, kv_heads=1), tokens(300)
    got = decoded(block, x_BTD, context=10)
    assert got.isfinite().all()
    close(got, block(x_BTD, Ctx(x_BTD)))


def test_grouped_queries_are_all_heads_with_repeated_keys():
    grouped, every = built(heads=4, kv_heads=2), built(heads=4)
    q, k, v = grouped.qkv.weight.split([32, 16, 16])
    repeat = [h * 8 + i for h in (0, 0, 1, 1) for i in range(8)]
    with torch.no_grad():
        every.qkv.weight.copy_(torch.cat((q, k[repeat], v[repeat])))
        every.out.weight.copy_(grouped.out.weight)
    x_BTD = tokens(12)
    close(grouped(x_BTD, Ctx(x_BTD)), every(x_BTD, Ctx(x_BTD)))


def test_kv_heads_default_to_heads():
    said, unsaid = Attention.Config(heads=4, kv_heads=4), Attention.Config(heads=4)
    assert Attention.cost(32, said, 9) == Attention.cost(32, unsaid, 9)
    assert dict(Attention.info.fill({"heads": 2}))["kv_heads"] == 2
    assert Case(Attention, 32, unsaid).build().qkv.weight.shape == (96, 32)


def test_qk_norm_makes_the_scale_of_queries_and_keys_immaterial():
    block, x_BTD = built(qk_norm=True), 100 * tokens(12)
    before = block(x_BTD, Ctx(x_BTD))
    with torch.no_grad():
        block.qkv.weight[:64] *= 7
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), before, rtol=1e-5, atol=1e-6)


def test_a_window_saves_flops_and_state_and_never_costs_more():
    full = Attention.Config(heads=2)
    for time in (64, 128, 129, 512, 1024):
        dense = Attention.cost(128, full, time)
        for window in (1, 32, 64, 100):
            cost = Attention.cost(128, dataclasses.replace(full, window=window), time)
            assert cost.flops <= dense.flops
            assert cost.state_bytes == dense.state_bytes * min(window, time) // time
    narrow = Attention.cost(128, dataclasses.replace(full, window=64), 1024)
    assert narrow.flops < 0.4 * Attention.cost(128, full, 1024).flops


@pytest.mark.parametrize(
    ("width", "given", "text"),
    [
        (64, {"heads": 3}, "attention.heads 3 does not cut width 64 into even parts (RoPE turns "
         "pairs of channels); legal: 1, 2, 4, 8, 16, 32"),
        (64, {"heads": 3, "pos": "none"},
         "attention.heads 3 does not divide width 64; legal: 1, 2, 4, 8, 16, 32, 64"),
        (33, {}, "attention.heads 4 does not cut width 33 into even parts (RoPE turns "
         "pairs of channels); legal: none"),
        (64, {"heads": 8, "kv_heads": 3},
         "attention.kv_heads 3 does not divide the 8 query heads; legal: 1, 2, 4, 8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(width, given, text):
    with pytest.raises(BlockError) as error:
        Attention.check(width, Attention.Config(**dict(Attention.info.fill(given))))
    assert str(error.value) == text


def rope_parameters(theta, **given):
    return {"rope_type": "default", "rope_theta": theta, **given}


PUBLISHED = {
    "llama": ("llama", {"theta": 5e5}, {"rope_parameters": rope_parameters(5e5)}),
    "qwen2": (
        "qwen2",
        {"qkv_bias": True, "theta": 1e6},
        {"rope_parameters": rope_parameters(1e6)},
    ),
    "qwen3": (
        "qwen3",
        {"qk_norm": True, "theta": 1e6},
        {"rope_parameters": rope_parameters(1e6), "rms_norm_eps": 1e-6},
    ),
    "mistral": (
        "mistral",
        {"window": 7},
        {"rope_parameters": rope_parameters(1e4), "sliding_window": 7},
    ),
}
"""A model of transformers, our parameters, and its own."""


# their angles and norms are rounded to float32
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("model", PUBLISHED)
def test_equals_the_attention_of_transformers(model, kv_heads):
    name, ours, theirs = PUBLISHED[model]
    block = built(heads=4, kv_heads=kv_heads, **ours)
    assert off(block, name, **theirs) < 1e-6


def test_a_window_that_is_cut_into_tiles_equals_that_of_transformers():
    _, ours, theirs = PUBLISHED["mistral"]
    assert off(built(**ours), "mistral", time=150, **theirs) < 1e-6


@pytest.mark.parametrize(
    ("model", "changed"),
    [
        ("llama", {"theta": 5.1e5}),
        ("llama", {"pos": "none"}),
        ("llama", {"window": 39}),
        ("qwen3", {"theta": 1.02e6, "qk_norm": True}),
        ("mistral", {"window": 8}),
        ("mistral", {"window": 6}),
    ],
)
def test_another_attention_is_noticed(model, changed):
    name, _, theirs = PUBLISHED[model]
    assert off(built(heads=4, kv_heads=2, **changed), name, **theirs) > 1e-4


def test_another_scale_is_noticed():
    theta = rope_parameters(1e4)
    assert off(built(), "llama", rope_parameters=theta) < 1e-6
    assert off(built(), "llama", rope_parameters=theta, scale=1.01) > 1e-4

import dataclasses

import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.attention import Attention, attend
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case

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


def test_one_head_with_identity_weights_is_the_textbook_formula():
    q, k, v = tokens(9)[:, :, None], tokens(9)[:, :, None] + 1, tokens(9)[:, :, None] - 1
    got = attend(q, k, v)[:, -1, 0]
    weights = torch.softmax((q[:, -1:, 0] @ k[:, :, 0].mT)[:, 0] / 32**0.5, -1)
    close(got, (weights[..., None] * v[:, :, 0]).sum(1))


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

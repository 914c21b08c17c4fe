import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.shared_attention import SharedAttention
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case


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

import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.pkm import PKM
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case


def case(width=16, **given):
    return Case(PKM, width, PKM.Config(**dict(PKM.info.fill(given))))


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def same(tensor):
    return tensor


def test_size_of_the_published_memory():
    """512^2 values of 1024 numbers, 4 heads with half queries of 256."""
    cost = PKM.cost(1024, case(keys=512, heads=4, top_k=32, key_width=256).config, 1)
    routing = 1024 * 4 * 512 + 4 * 2 * 512 * 256 + 2 * 256
    assert cost.params == 512**2 * 1024 + routing
    assert cost.active_params == 4 * 32 * 1024 + routing
    assert cost.flops == 2 * (routing - 2 * 256) + 2 * 4 * 32 * 1024


def test_it_is_product_key_memory():
    package = pytest.importorskip("product_key_memory", reason="comparison needs the extra oracles")
    block = case(keys=8, heads=3, top_k=5, key_width=6).build(torch.float64, drawn=True)
    other = package.PKM(16, heads=3, num_keys=8, topk=5, dim_head=6).double()
    pairs = {
        other.values.weight: (block.values.weight, same),
        other.keys: (block.retrieval.keys, lambda keys: keys.transpose(1, 2)),
        other.to_queries.weight: (
            block.retrieval.query.weight,
            lambda weight: weight.view(3, 2, 6, 16).transpose(0, 1),
        ),
        other.norm.weight: (block.retrieval.norm.weight, same),
        other.norm.bias: (block.retrieval.norm.bias, same),
    }
    with torch.no_grad():
        for theirs, (ours, turned) in pairs.items():
            theirs.copy_(turned(ours).reshape(theirs.shape))
    x_BTD, weight_BTD = drawn(2, 20, 16).requires_grad_(), drawn(2, 20, 16).flip(1)
    got_BTD, want_BTD = block(x_BTD, Ctx(x_BTD)), other(x_BTD)
    torch.testing.assert_close(got_BTD, want_BTD, rtol=1e-10, atol=1e-10)
    got = torch.autograd.grad(
        (got_BTD * weight_BTD).sum(), [x_BTD, *(ours for ours, _ in pairs.values())]
    )
    want = torch.autograd.grad((want_BTD * weight_BTD).sum(), [x_BTD, *pairs])
    turns = [same, *(turned for _, turned in pairs.values())]
    for one, two, turned in zip(got, want, turns, strict=True):
        torch.testing.assert_close(turned(one).reshape(two.shape), two, rtol=1e-10, atol=1e-10)


def test_values_that_are_all_alike_come_once_per_head():
    block, x_BTD = case(heads=3).build(torch.float64, drawn=True), drawn(2, 9, 16)
    with torch.no_grad():
        block.values.weight[:] = block.values.weight[0].clone()
    want_BTD = 3 * block.values.weight[0].expand(2, 9, 16)
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), want_BTD)


def test_one_value_per_head_is_the_one_of_the_best_keys():
    block, x_BTD = case(heads=1, top_k=1, query_norm="none").build(torch.float64), drawn(2, 9, 16)
    q_BTSQ = block.retrieval.query(x_BTD).unflatten(-1, (2, -1))
    keys_SKQ = block.retrieval.keys[0]
    i_BT, j_BT = ((q_BTSQ[..., s, :] @ keys_SKQ[s].T).argmax(-1) for s in (0, 1))
    want_BTD = block.values.weight[i_BT * 32 + j_BT]
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), want_BTD)


def test_keys_may_change_places_along_with_their_values():
    block, x_BTD = case(keys=8, top_k=8).build(torch.float64, drawn=True), drawn(2, 9, 16)
    before = block(x_BTD, Ctx(x_BTD))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        block.retrieval.keys[:, 0] = block.retrieval.keys[:, 0, order].clone()
        changed = block(x_BTD, Ctx(x_BTD))
        rows_KKD = block.values.weight.view(8, 8, 16)
        rows_KKD.copy_(rows_KKD[order].clone())
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), before)


def test_values_that_no_token_read_have_no_gradient():
    block, x_BTD = case(keys=16, heads=2, top_k=3).build(torch.float64, drawn=True), drawn(1, 1, 16)
    block(x_BTD, Ctx(x_BTD)).square().sum().backward()
    assert 3 <= (block.values.weight.grad != 0).any(1).sum() <= 2 * 3


def test_more_values_than_a_side_has_keys_are_refused_in_words():
    with pytest.raises(BlockError) as error:
        PKM.check(16, PKM.Config(keys=4, top_k=5))
    assert str(error.value) == "pkm.top_k 5 is more than the 4 keys of a side; legal: 1, 2, 3, 4"

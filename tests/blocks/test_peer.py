import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.peer import PEER
from archsearch.errors import BlockError
from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.sections import Recipe
from archsearch.testing.blocks import Case
from archsearch.train import Training, generator
from mad_tasks import InContextRecall

TASK = InContextRecall(vocab=8, seq_len=16)


def case(width=16, **given):
    return Case(PEER, width, PEER.Config(**dict(PEER.info.fill(given))))


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def same(tensor):
    return tensor


def test_size_of_the_published_layer():
    """A million experts of 2 x 256 numbers, 8 heads with queries of 128, 1024 half keys of 64."""
    cost = PEER.cost(256, case(keys=1024, heads=8, top_k=16, key_width=64).config, 1)
    routing = 256 * 8 * 128 + 8 * 2 * 1024 * 64 + 2 * 64
    assert cost.params == 2 * 1024**2 * 256 + routing
    assert cost.active_params == 2 * 8 * 16 * 256 + routing
    assert cost.flops == 2 * (routing - 2 * 64) + 4 * 8 * 16 * 256


@pytest.mark.parametrize("act", ["gelu", "silu", "relu"])
def test_it_is_peer_pytorch(act):
    """Without the norm of queries that the paper has and the package has not."""
    package = pytest.importorskip("PEER_pytorch", reason="comparison needs the extra oracles")
    block = case(keys=8, heads=3, top_k=5, key_width=6, query_norm="none", act=act).build(
        torch.float64, drawn=True
    )
    acts = {"gelu": torch.nn.GELU, "silu": torch.nn.SiLU, "relu": torch.nn.ReLU}
    other = package.PEER(
        16, heads=3, num_experts=64, num_experts_per_head=5, dim_key=6, activation=acts[act],
        non_competing_scores=False,
    ).double()  # fmt: skip
    pairs = {
        other.weight_down_embed.weight: (block.down.weight, same),
        other.weight_up_embed.weight: (block.up.weight, same),
        other.keys: (block.retrieval.keys, lambda keys: keys.transpose(1, 2)),
        other.to_queries[0].weight: (
            block.retrieval.query.weight,
            lambda weight: weight.view(3, 2, 6, 16).transpose(0, 1),
        ),
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


def test_a_head_twice_counts_twice():
    one, two = (case(heads=h, top_k=4).build(torch.float64, drawn=True) for h in (1, 2))
    with torch.no_grad():
        for name, value in two.named_parameters():
            single = dict(one.named_parameters())[name]
            value.copy_(torch.cat((single, single)) if value.shape != single.shape else single)
    x_BTD = drawn(2, 9, 16)
    torch.testing.assert_close(two(x_BTD, Ctx(x_BTD)), 2 * one(x_BTD, Ctx(x_BTD)))


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_the_scale_of_queries_matters_without_a_norm_alone(norm):
    block, x_BTD = case(query_norm=norm).build(torch.float64), drawn(2, 9, 16)
    before = block(x_BTD, Ctx(x_BTD))
    with torch.no_grad():
        block.retrieval.query.weight.mul_(3)
    after = block(x_BTD, Ctx(x_BTD))
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-3) == (norm != "none")


def test_experts_that_no_token_met_have_no_gradient():
    block, x_BTD = case(keys=16, heads=2, top_k=3).build(torch.float64, drawn=True), drawn(1, 1, 16)
    block(x_BTD, Ctx(x_BTD)).square().sum().backward()
    for table in (block.down.weight, block.up.weight):
        assert 3 <= (table.grad != 0).any(1).sum() <= 2 * 3


def train(keys, steps=1, **recipe):
    """The block before and after some steps, and how far its tables moved."""
    genome = Genome(16, (Gene.of("peer", keys=keys, heads=2, top_k=4),))
    model = build(genome, TASK.vocab, TASK.readout, generator=generator("start"))
    before = [p.detach().clone() for p in model.parameters()]
    held_out = TASK.sample(4, generator("held-out"))
    given = Recipe(steps=steps, evals=1, batch=4, eval_rows=4, warmup=0, schedule="constant")
    given = given.model_copy(update=recipe)
    list(Training(model, TASK, given, generator("data"), held_out))
    return {n: p - b for (n, p), b in zip(model.named_parameters(), before, strict=True)}


def test_a_step_with_a_million_experts_moves_those_that_were_met_alone():
    moved = train(1024)
    rows = [
        (moved[f"stack.branches.0.block.{t}.weight"] != 0).any(1).nonzero()[:, 0]
        for t in ("down", "up")
    ]
    assert 0 < len(rows[0]) <= 4 * 16 * 2 * 4
    assert torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_the_first_step_is_the_same_with_sparse_gradients(monkeypatch, clip):
    """As far as a gradient is not so small that the two put epsilon in different places."""
    recipe = {"clip": clip, "weight_decay": 0.0, "lr": 0.01}
    dense = train(32, **recipe)
    monkeypatch.setattr("archsearch.layers.retrieval.SPARSE_FROM", 1)
    sparse = train(32, **recipe)
    for name, moved in dense.items():
        large = moved.abs() > 0.00999
        assert large.sum() > 10
        torch.testing.assert_close(sparse[name][large], moved[large], rtol=0.1, atol=0)
        assert torch.equal(sparse[name].sign(), moved.sign())


def test_uses_of_shared_experts_add_their_sparse_gradients(monkeypatch):
    def gradients():
        genes = [Gene.of("peer", "A", keys=32, heads=2, top_k=4)] * 2
        model = build(Genome(16, tuple(genes)), 8, generator=generator("start"))
        model(TASK.sample(4, generator("data"))[0]).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    dense = gradients()
    monkeypatch.setattr("archsearch.layers.retrieval.SPARSE_FROM", 1)
    for name, gradient in gradients().items():
        assert gradient.is_sparse == (name.endswith(("down.weight", "up.weight")))
        torch.testing.assert_close(gradient.to_dense(), dense[name])


def test_later_steps_leave_out_what_they_do_not_meet(monkeypatch):
    """A dense optimizer moves a row on for as long as its moments last."""
    dense = train(32, steps=5)["stack.branches.0.block.up.weight"]
    monkeypatch.setattr("archsearch.layers.retrieval.SPARSE_FROM", 1)
    sparse = train(32, steps=5)["stack.branches.0.block.up.weight"]
    assert sparse.abs().sum() < dense.abs().sum()
    assert torch.equal((sparse != 0).any(1), (dense != 0).any(1))


def test_more_experts_than_a_side_has_keys_are_refused_in_words():
    with pytest.raises(BlockError) as error:
        PEER.check(16, PEER.Config(keys=4, top_k=5))
    assert str(error.value) == "peer.top_k 5 is more than the 4 keys of a side; legal: 1, 2, 3, 4"

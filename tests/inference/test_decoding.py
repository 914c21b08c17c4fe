"""Decoding: greedy is the argmax of a forward pass, guesses change nothing, chance obeys a seed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from archsearch.block import block_class, usual_config
from archsearch.catalogue import block_info, block_names
from archsearch.errors import ModelError
from archsearch.genome import Gene, Genome
from archsearch.inference.decoding import generate, greedy, probabilities, sampler
from archsearch.inference.speculative import EarlyExit, Lookup, Speculation, shortened
from archsearch.model import build
from archsearch.testing.cases import draw, holding
from archsearch.train import generator

PROMPT = [1, 2, 3, 1, 2]
CAUSAL = [name for name in block_names() if not block_info(name).bidirectional]
SMALL = {"peer": {"keys": 16}, "loop": {"times": 2}, "pkm": {"keys": 16}}


def gene_of(name, width):
    block = block_class(name)
    given = dataclasses.asdict(usual_config(block, width)) | SMALL.get(name, {})
    return Gene.of(name, None, holding(block), **given)


def model_of(*blocks, vocab=11, width=16, **frame):
    genome = Genome(width, tuple(gene_of(block, width) for block in blocks), **frame)
    return build(genome, vocab, generator=generator("decoding", *blocks)).eval()


class Mixed:
    """Guesses of both kinds, and some that are right, or right but for the last one."""

    def __init__(self, model, answer):
        self.drafts, self.answer, self.calls = (EarlyExit(model, 1), Lookup()), answer, 0

    def guess(self, seen, decoding, count):
        self.calls += 1
        if self.calls % 4 < 2:
            return self.drafts[self.calls % 4].guess(seen, decoding, count)
        right = self.answer[len(seen) :][:count]
        return [*right[:-1], (right[-1] + self.calls % 4 - 2) % 11]


@pytest.fixture(scope="module")
def hybrid():
    return model_of("mamba2", "attention", "swiglu", pause_tokens=1)


def test_greedy_is_the_argmax_of_a_forward_pass(hybrid):
    tokens = [*PROMPT, *generate(hybrid, PROMPT, 30)]
    logits_TV = hybrid(torch.tensor([tokens]))[0]
    assert logits_TV[len(PROMPT) - 1 : -1].argmax(-1).tolist() == tokens[len(PROMPT) :]


@pytest.mark.parametrize("name", CAUSAL)
def test_guesses_change_nothing_for_any_block(name):
    model = model_of(name, "swiglu", "swiglu")
    draw(model, 1.0)  # what starts at 0 hides mistakes
    want = list(generate(model, PROMPT, 200))
    speculation = Speculation(model, Mixed(model, [*PROMPT, *want]), 3)
    assert list(speculation.generate(PROMPT, 200)) == want
    assert 50 < speculation.accepted < speculation.guessed - 10
    assert speculation.given == 200 == speculation.accepted + speculation.verifications


def test_a_state_that_is_not_put_back_changes_the_text(hybrid, monkeypatch):
    """The control: without the copy of the state, wrong guesses stay in it."""
    want = list(generate(hybrid, PROMPT, 60))
    monkeypatch.setattr("archsearch.inference.speculative.snapshot", lambda decoding: decoding)
    wrong = Speculation(hybrid, EarlyExit(hybrid, 1), 3).generate(PROMPT, 60, context=1000)
    assert list(wrong) != want


@pytest.mark.parametrize("count", [1, 7, 50])
def test_every_number_of_guesses_gives_the_same(hybrid, count):
    want = list(generate(hybrid, PROMPT, 41))
    for draft in (EarlyExit(hybrid, 2), Lookup()):
        assert list(Speculation(hybrid, draft, count).generate(PROMPT, 41)) == want


def test_right_guesses_take_few_verifications(hybrid):
    class Oracle:
        def guess(self, seen, decoding, count):
            return [*PROMPT, *want][len(seen) :][:count]

    want = list(generate(hybrid, PROMPT, 40))
    speculation = Speculation(hybrid, Oracle(), 4)
    assert list(speculation.generate(PROMPT, 40)) == want
    assert speculation.verifications == 8


def test_lookup_guesses_what_followed_the_longest_end():
    seen = [1, 2, 3, 9, 2, 3, 8, 1, 2, 3]
    assert Lookup().guess(seen, None, 2) == [9, 2]
    assert Lookup().guess([7, *seen[4:]], None, 2) == [8, 1]
    assert Lookup().guess([1, 2, 3], None, 2) == []


def test_the_first_branches_share_their_weights_with_the_model(hybrid):
    short, branches = shortened(hybrid, 2)
    assert branches == 2
    assert len(hybrid.stack.nodes) == 3
    own = {id(p) for p in hybrid.parameters()}
    assert {id(p) for p in short.parameters()} == own
    ctx_BT = torch.tensor([PROMPT])
    assert not torch.equal(short(ctx_BT), hybrid(ctx_BT))


def test_an_exit_counts_branches_that_join_the_stream():
    model = model_of("shared_attention", "mamba2", "swiglu")
    assert shortened(model, 1)[1] == 2
    for exits in (0, 2, 5):
        with pytest.raises(ModelError, match=r"legal: 1 to 1$"):
            shortened(model, exits)


def test_an_early_exit_is_what_the_exit_loss_trains():
    """Its logits are those that training gets for the same exit."""
    from archsearch.model import Extras

    model = model_of("mamba2", "attention", "swiglu", exit_loss=0.5)
    extras, tokens_BT = Extras(), torch.tensor([PROMPT])
    model.train()(tokens_BT, extras)
    model.eval()
    for exits, (_, want_BTV) in enumerate(extras.exits, 1):
        torch.testing.assert_close(shortened(model, exits)[0](tokens_BT), want_BTV)


def test_the_end_of_a_text_ends_it(hybrid):
    want = list(generate(hybrid, PROMPT, 60))
    end = want[20]
    stop = want.index(end)
    assert list(generate(hybrid, PROMPT, 60, end=end)) == want[:stop]
    guessing = Speculation(hybrid, Lookup(), 4)
    assert list(guessing.generate(PROMPT, 60, end=end)) == want[:stop]


def test_a_context_has_room_for_what_is_asked_or_says_so(hybrid):
    assert len(list(generate(hybrid, PROMPT, 6, context=10))) == 6
    for ask in (generate, Speculation(hybrid, Lookup(), 2).generate):
        given = {"context": 10}
        with pytest.raises(ModelError, match="ask for at most 6 tokens"):
            list(ask(*((hybrid,) if ask is generate else ()), PROMPT, 7, **given))
    with pytest.raises(ModelError, match="prompt is empty"):
        list(generate(hybrid, [], 5))


def test_what_cannot_decode_says_why():
    with pytest.raises(ModelError, match="looks ahead"):
        list(generate(model_of("hydra"), PROMPT, 5))
    genome = Genome(16, (Gene.of("swiglu"),))
    with pytest.raises(ModelError, match="rebuilds a row"):
        list(generate(build(genome, 11, "code", generator=generator("code")), PROMPT, 5))


def test_temperature_0_is_greedy_and_a_seed_gives_one_text(hybrid):
    def drawn(temperature, top_p, seed):
        choose = sampler(temperature, top_p, generator("draws", seed))
        return list(generate(hybrid, PROMPT, 40, choose))

    assert drawn(0, 0.5, 1) == list(generate(hybrid, PROMPT, 40, greedy))
    assert drawn(1.0, 1.0, 1) == drawn(1.0, 1.0, 1) != drawn(1.0, 1.0, 2)
    assert drawn(1.0, 1e-6, 1) == drawn(0, 1.0, 0), "the likeliest alone is greedy"
    assert drawn(1e-3, 1.0, 1) == drawn(0, 1.0, 0)


def test_a_nucleus_is_the_fewest_likeliest_tokens_of_its_share():
    logits_V = torch.tensor([0.5, 0.2, 0.2, 0.06, 0.04]).log()
    for top_p, kept in ((0.3, 1), (0.5, 1), (0.6, 2), (0.75, 3), (0.95, 4), (0.99, 5), (1.0, 5)):
        chances_V = probabilities(logits_V, 1.0, top_p)
        assert int((chances_V > 0).sum()) == kept, top_p
        assert float(chances_V.sum()) == pytest.approx(1)
        assert chances_V[:kept].tolist() == pytest.approx(
            (logits_V.exp()[:kept] / logits_V.exp()[:kept].sum()).tolist(), rel=1e-5
        )
    hot_V, cold_V = (probabilities(logits_V, t, 1.0) for t in (2.0, 0.5))
    assert hot_V[0] < 0.5 < cold_V[0]
    assert probabilities(torch.tensor([1e30, 0.0]), 1e-3, 1.0).tolist() == [1.0, 0.0]

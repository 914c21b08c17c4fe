"""Hidden attention: the matrix of a mixer times its values is what the mixer makes of them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

from archsearch.catalogue import block_info, block_names
from archsearch.errors import ModelError
from archsearch.genome import Gene, Genome
from archsearch.inference.patterns import MOST_TOKENS, REFUSED, patterns
from archsearch.model import build
from archsearch.testing.cases import draw
from archsearch.train import generator

TOKENS = torch.randint(13, (70,), generator=generator("patterns")).tolist()
COVERED = {
    "grouped queries": Gene.of("attention", heads=4, kv_heads=2),
    "window": Gene.of("attention", heads=2, window=5),
    "shared": Gene.of("shared_attention", "A", heads=2),
    "mamba1": Gene.of("mamba1", d_state=4, norm=True),
    "mamba2": Gene.of("mamba2", d_state=8, head_dim=8, groups=2),
    "negative": Gene.of("mamba2", d_state=8, head_dim=8, neg_eigval=True),
    "gla channel": Gene.of("gla", head_dim=8, conv=4),
    "gla head": Gene.of("gla", head_dim=8, decay="head"),
    "retnet": Gene.of("gla", head_dim=8, decay="fixed"),
    "linear attention": Gene.of("gla", head_dim=8, decay="none", feature="elu"),
    "delta": Gene.of("gated_deltanet", head_dim=8, value_heads=2),
    "rwkv7": Gene.of("rwkv7", head_dim=8),
    "short_conv": Gene.of("short_conv", conv=4),
    "hyena": Gene.of("hyena", filter_width=8),
}


def model_of(*genes, **frame):
    model = build(Genome(16, genes, **frame), 13, generator=generator("patterns")).eval()
    draw(model.stack, 1.0)
    return model


def seen_by(model, tokens=TOKENS):
    found = []
    refused = patterns(model, tokens, found.append)
    return found, refused


def close(a, b, tolerance=1e-5):
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def applied(found):
    return found.weights @ found.values + found.skip[:, None, None] * found.values


@pytest.mark.parametrize("name", COVERED)
def test_the_matrix_times_the_values_is_the_output(name):
    (found,), refused = seen_by(model_of(COVERED[name], Gene.of("swiglu")))
    assert close(applied(found), found.output)
    assert refused == {}
    assert found.weights.shape[1:] == (70, 70)
    assert not found.weights.triu(1).any(), "a token looks ahead"
    assert found.weights.tril(-1).any()
    assert found.channels == (name in ("mamba1", "short_conv", "hyena"))


def test_attention_is_a_softmax_within_its_window():
    for name in ("grouped queries", "window", "shared"):
        (found,), _ = seen_by(model_of(COVERED[name], Gene.of("swiglu")))
        assert (found.weights >= 0).all()
        assert close(found.weights.sum(-1), torch.ones(()))
        if name == "window":
            assert not found.weights.tril(-5).any()


def finish_mamba1(block, x_1TD, y_1TE):
    return block.out_proj(y_1TE * F.silu(block.in_proj(x_1TD).chunk(2, -1)[1]))


def finish_mamba2(block, x_1TD, y_1TE):
    groups = (y_1TE * F.silu(block.in_proj(x_1TD)[..., :32])).unflatten(-1, (2, -1))
    y_1TE = F.rms_norm(groups, groups.shape[-1:], eps=1e-5).flatten(-2)
    return block.out_proj(y_1TE * block.norm.weight)


def finish_short_conv(block, x_1TD, y_1TE):
    return block.out_proj(block.in_proj(x_1TD).chunk(3, -1)[1] * y_1TE)


def finish_hyena(block, x_1TD, y_1TE):
    taps_1CU = F.pad(block.in_proj(x_1TD).mT, (block.short_filter.kernel_size[0] - 1, 0))
    return block.out_proj(block.short_filter(taps_1CU).chunk(3, 1)[2].mT * y_1TE)


FINISHES = {
    "mamba1": finish_mamba1,
    "mamba2": finish_mamba2,
    "short_conv": finish_short_conv,
    "hyena": finish_hyena,
}


@pytest.mark.parametrize("name", FINISHES)
def test_what_follows_the_matrix_makes_the_output_of_the_block(name):
    """Gate, norm and projection behind the matrix, written out, give what the block gives."""
    model, kept = model_of(COVERED[name], Gene.of("swiglu")), {}
    block = model.stack.branches["0"].block
    block.register_forward_hook(lambda block, given, out: kept.update(x=given[0], y=out))
    (found,), _ = seen_by(model)
    with torch.no_grad():
        y_1TE = applied(found).transpose(0, 1).flatten(1)[None]
        assert close(FINISHES[name](block, kept["x"], y_1TE), kept["y"])


def test_a_matrix_of_other_values_is_another():
    """The control: the matrix of one head does not fit the values of the next."""
    (found,), _ = seen_by(model_of(COVERED["delta"], Gene.of("swiglu")))
    assert not close(found.weights.roll(1, 0) @ found.values, found.output, 0.1)


def test_looking_changes_nothing_and_leaves_nothing_behind():
    model = model_of(COVERED["mamba2"], COVERED["short_conv"], Gene.of("swiglu"))
    file = sys.modules[type(model.stack.branches["0"].block).__module__]
    before, kernel = model(torch.tensor([TOKENS])), file.ssd
    found, _ = seen_by(model)
    assert torch.equal(model(torch.tensor([TOKENS])), before)
    assert file.ssd is kernel
    assert not any("forward" in vars(module) for module in model.modules())
    assert len(found) == 2


def test_every_mixer_is_covered_or_refused_with_a_reason():
    mixers = {name for name in block_names() if block_info(name).kind == "mixer"}
    covered = {gene.block for gene in COVERED.values()}
    assert mixers == covered | REFUSED.keys()
    assert not covered & REFUSED.keys()
    for name in REFUSED:
        gene = Gene.of(name, **({"head_dim": 8} if name in ("ttt", "hydra") else {}))
        model = model_of(gene, COVERED["mamba2"], Gene.of("swiglu"))
        found, refused = seen_by(model)
        assert [one.name for one in found] == ["2 mamba2"]
        assert refused == {f"1 {name}": REFUSED[name]}
        with pytest.raises(ModelError, match="nothing to draw: 1"):
            seen_by(model_of(gene, Gene.of("swiglu")))


def test_uses_wrappers_and_chosen_tokens_have_their_places():
    attention, mamba = COVERED["grouped queries"], COVERED["mamba2"]
    shared = COVERED["shared"]
    loop = Gene.of("loop", of=(attention, Gene.of("swiglu")), times=2)
    mod = Gene.of("mod", of=(mamba,))
    model = model_of(shared, loop, shared, mod, Gene.of("swiglu"))
    found, _ = seen_by(model)
    assert [one.name for one in found] == [
        "A shared_attention", "2.1 attention", "2.1 attention, use 2", "A shared_attention, use 2",
        "4.1 mamba2",
    ]  # fmt: skip
    chosen = found[-1].values.abs().sum((0, 2)) > 0
    assert 0 < int(chosen.sum()) < 70, "all or none of the tokens were chosen"
    assert not found[-1].weights[:, ~chosen].any()
    assert not found[-1].weights[..., ~chosen].any()
    assert all(close(applied(one), one.output) for one in found)


def test_pauses_count_as_tokens():
    model = model_of(COVERED["grouped queries"], Gene.of("swiglu"), pause_tokens=1)
    (found,), _ = seen_by(model, TOKENS[:20])
    assert found.weights.shape[1:] == (40, 40)


def test_a_text_has_to_fit_a_picture():
    model = model_of(COVERED["mamba2"])
    for tokens in ([], [1] * (MOST_TOKENS + 1)):
        with pytest.raises(ModelError, match=f"1 to {MOST_TOKENS}"):
            seen_by(model, tokens)
    with pytest.raises(ModelError, match="nothing to draw"):
        seen_by(model_of(Gene.of("swiglu")))

"""Values that no block can be built with are mistakes of the file; narrow heads are hints."""

from __future__ import annotations

import random

import pytest
import torch

from archsearch.catalogue import block_info, block_names
from archsearch.errors import BlockError, SpaceError
from archsearch.fits import check_fits
from archsearch.genome import Gene, Genome
from archsearch.model import build, cost
from archsearch.sections import Recipe
from archsearch.space_yaml import dump, parse
from archsearch.trial import run_trial
from mad_tasks import Memorization

CAUSAL = sorted(name for name in block_names() if not block_info(name).bidirectional)
SPACE = """\
model:
  d_model: {width}
  stack:
    - pattern:
        - part: {{{block}: {params}}}
"""


def warnings(block, params, width="32"):
    return check_fits(parse(SPACE.format(width=width, block=block, params=params), "f.yaml"))


def complaint(block, params, width="32"):
    with pytest.raises(SpaceError) as caught:
        warnings(block, params, width)
    return str(caught.value)


@pytest.mark.parametrize(
    ("block", "params", "where", "what", "channels"),
    [
        ("attention", "{heads: [2, 4]}", "5:41", "attention.heads 4", 8),
        ("attention", "{heads: 4}", "5:37", "attention.heads 4", 8),
        ("attention", "{}", "5:29", "attention", 8),
        ("shared_attention", "{heads: 16}", "5:44", "shared_attention.heads 16", 4),
        ("mamba2", "{head_dim: [8, 16]}", "5:38", "mamba2.head_dim 8", 8),
        ("ttt", "{head_dim: 4}", "5:34", "ttt.head_dim 4", 4),
        ("gla", "{head_dim: 8}", "5:34", "gla.head_dim 8", 8),
    ],
)
def test_heads_below_sixteen_channels_are_hinted_at(block, params, where, what, channels):
    (said,) = warnings(block, params)
    assert said == (
        f"f.yaml:{where}: {what} makes heads of at most {channels} channels; "
        "below 16 they seldom pay on a CPU"
    )


@pytest.mark.parametrize(
    ("block", "params", "width"),
    [
        ("attention", "{heads: 2}", "32"),
        ("attention", "{heads: [2, 4]}", "[32, 64]"),
        ("mamba2", "{head_dim: 16}", "32"),
        ("swiglu", "{}", "32"),
        ("mamba1", "{}", "8"),
    ],
)
def test_heads_of_sixteen_channels_at_some_width_are_not(block, params, width):
    assert warnings(block, params, width) == ()


def test_a_value_that_fits_one_width_is_right():
    assert warnings("attention", "{heads: [2, 5], pos: none}", "[32, 80]") == ()
    assert complaint("attention", "{heads: [2, 5], pos: none}", "[32, 64]").startswith(
        "f.yaml:5:41: attention.heads 5 does not divide width 32\n"
    )


def test_what_stands_in_a_range_is_narrowed_by_the_search():
    assert warnings("attention", "{heads: {from: 1, to: 2}}", "[32, 64]") == ()
    assert "f.yaml:5:37: attention.heads 3" in complaint(
        "attention", "{heads: {from: 3, to: 3}}", "32"
    )


def test_a_space_with_too_many_combinations_is_left_to_the_search():
    many = "{d_state: {from: 1, to: 1024}, expand: {from: 1, to: 8}, head_dim: 48}"
    assert warnings("mamba2", many, "[32, 64, 128]") == ()


def test_a_block_that_looks_ahead_is_refused_in_a_causal_space():
    text = SPACE.format(width=32, block="hydra", params="{d_state: 8}")
    with pytest.raises(SpaceError) as caught:
        parse(text, "f.yaml")
    assert str(caught.value) == (
        "f.yaml:5:18: 'hydra' looks ahead: it is not causal\n"
        "    - part: {hydra: {d_state: 8}}\n"
        "             ^^^^^\n"
        "  `causal: false` under `model` allows it"
    )


def test_a_space_that_is_not_causal_learns_and_does_not_decode():
    text = SPACE.format(width=32, block="hydra", params="{d_state: 8}")
    experiment = parse(text.replace("model:\n", "model:\n  causal: false\n"), "f.yaml")
    genome = experiment.space.resolve(lambda path, dim: dim.first)
    assert parse(dump(genome)).space.locate(genome) is not None
    recipe = Recipe(steps=20, evals=2, batch=4, eval_rows=8, lr=3e-3, warmup=0.1)
    result = run_trial(genome, (Memorization(vocab=16, seq_len=16),), recipe, seed=0)
    assert (result.status, result.why) == ("ok", "")
    with pytest.raises(BlockError, match=r"hydra.* looks ahead, so it cannot decode"):
        result.models[0].start(1, 16)


def test_genes_that_share_weights_and_differ_are_refused():
    pair = (Gene.of("swiglu", "A"), Gene.of("swiglu", "A", mult=3))
    with pytest.raises(SpaceError, match="the blocks that share the weights 'A' differ"):
        Genome(32, pair)
    held = (Gene.of("loop", "A", [Gene.of("swiglu")]), Gene.of("loop", "A", [Gene.of("kan")]))
    with pytest.raises(SpaceError, match="'A' differ"):
        Genome(32, held)


def some_config(block, rng):
    """Random legal values, small ones mostly."""
    values = {}
    for name, dim in block_info(block).dims.items():
        if rng.random() < 0.5:
            few = dim.options or range(dim.low, min(dim.high, 64) + 1) if not dim.real else ()
            values |= {name: rng.choice(few)} if few else {}
    return values


@pytest.mark.parametrize("block", CAUSAL)
def test_what_fits_runs_and_what_does_not_is_refused_with_what_is_legal(block):
    """No combination ends in an error of torch."""
    rng, built = random.Random(block), 0
    for _ in range(25):
        params, width = some_config(block, rng), rng.choice([8, 12, 16, 24, 30, 32])
        held = [Gene.of("swiglu")] if block_info(block).wraps else []
        genome = Genome(width, (Gene.of(block, None, held, **params), Gene.of("swiglu")))
        given = ", ".join(f"{k}: {str(v).lower()}" for k, v in params.items())
        inner = ", of: [ffn: swiglu]" if held else ""
        text = SPACE.format(
            width=width, block=block, params=f"{{{given}{inner}}}".replace("{,", "{")
        )
        try:
            cost(genome, 8)
        except BlockError as error:
            message, _, legal = str(error).partition("; ")
            with pytest.raises(SpaceError) as caught:
                check_fits(parse(text, "f.yaml"))
            said = str(caught.value)
            assert said.startswith("f.yaml:5:")
            assert message in said
            assert legal.startswith("legal: ")
            continue
        check_fits(parse(text, "f.yaml"))
        if cost(genome, 8).params < 1_000_000:
            built += 1
            model = build(genome, 5, generator=torch.Generator().manual_seed(0))
            assert model(torch.zeros(1, 9, dtype=torch.long)).isfinite().all()
    assert built

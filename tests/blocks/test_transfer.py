"""What every block learns at one width and depth, it learns at every other; wrong roles are caught.

The laws are quick and have wide bounds. The slow tests have those of the method, with more starts
and sizes; `benchmarks/mup_groups.py` writes the figures of the groups down.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
from functools import partial
from pathlib import Path

import pytest

from archsearch import mup
from archsearch.block import block_class, fan_in, normal
from archsearch.blocks.attention import Attention
from archsearch.blocks.loop import Loop
from archsearch.blocks.mamba2 import Mamba2
from archsearch.blocks.mod import MoD
from archsearch.blocks.peer import PEER
from archsearch.blocks.swiglu import SwiGLU
from archsearch.catalogue import block_names
from archsearch.testing import slopes
from archsearch.testing import transfer as laws
from archsearch.testing.slopes import (
    VOCAB,
    Net,
    Text,
    depths,
    learned,
    learned_silently,
    measured,
    settings,
    warm_movements,
    widths,
)

BLOCKS = [block_class(name) for name in block_names()]
ALL = [case for block in BLOCKS for case in settings(block)]
USUAL = [settings(block)[0] for block in BLOCKS]
FIGURES = Path(__file__).parents[2] / "benchmarks" / "results" / "mup_groups.json"
BEYOND = {("peer-32-keys=16", "norm.weight"), ("mamba1-32-norm=true", "conv1d.bias")}
"""Groups that move the stream by up to width^1/2 more, for a reason: they stand before a map to a
fixed number of channels that are normalised. Such a map can start with outputs of order 1, or not
multiply aligned changes of its inputs by sqrt(width), but not both."""
SILENT = {("moe-32-router=sigmoid", "bias")}
"""A group that takes part in choices alone."""


@pytest.mark.parametrize("case", USUAL, ids=str)
@pytest.mark.parametrize("law", laws.TRANSFER_LAWS, ids=lambda law: law.__name__)
def test_case(law, case):
    law(case)


@pytest.mark.parametrize("case", [case for case in ALL if case not in USUAL], ids=str)
def test_further_parameters(case):
    laws.draws_as_scaled(case)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.info.name)
def test_settings_have_every_parameter(block):
    names = [name for case in settings(block) for name, _ in case.empty().named_parameters()]
    assert all(fnmatch.filter(names, role) for role in block.roles)


def usual(block):
    return settings(block)[0]


def set_role(monkeypatch, block, name, **changes):
    role = dataclasses.replace(block.roles[name], **changes)
    monkeypatch.setattr(block, "roles", {**block.roles, name: role})


def bc_as_readout(w_CD, generator):
    """W_in of Mamba-2, the rows of B and C as a readout's: of 1/fan_in beyond the base width."""
    first, rows = 4 * w_CD.shape[1], 2 * usual(Mamba2).config.d_state
    fan_in(w_CD, generator)[first : first + rows].mul_((64 / w_CD.shape[1]) ** 0.5)


@pytest.mark.parametrize(
    ("block", "name", "changes", "moves"),
    [
        (
            Mamba2,
            "in_proj.weight",
            {"init": bc_as_readout},
            r"dt_bias as size\^-.*A_log as size\^-",
        ),
        (PEER, "up.weight", {"kind": "hidden"}, r"for up\.weight as size\^-"),
        (SwiGLU, "up.weight", {"kind": "embedding"}, r"for up\.weight as size\^\+"),
        (Attention, "out.weight", {"kind": "vector"}, r"for out\.weight as size\^\+"),
    ],
)
def test_a_wrong_role_is_caught(monkeypatch, block, name, changes, moves):
    set_role(monkeypatch, block, name, **changes)
    with pytest.raises(AssertionError, match=moves):
        laws.moves_alike_at_every_width(usual(block))


@pytest.mark.parametrize("block", [Attention, Mamba2, PEER])
@pytest.mark.parametrize(
    ("law", "scheme", "moves"),
    [
        (laws.moves_alike_at_every_width, "sp", r"size\^\+"),
        (laws.learns_alike_at_every_width, "sp", r"logits 1 as size\^\+"),
        (laws.learns_alike_at_every_depth, "mup", r"stream 1 as size\^\+"),
    ],
)
def test_a_scheme_that_does_not_transfer_is_caught(monkeypatch, law, scheme, moves, block):
    monkeypatch.setattr(laws, "Net", partial(Net, scheme=scheme))
    with pytest.raises(AssertionError, match=moves):
        law(usual(block))


@pytest.mark.parametrize(
    ("without", "moves"),
    [("lr", r"branches 5 as size\^\+"), ("multiplier", r"logits 1 as size\^\+")],
)
@pytest.mark.parametrize("block", [Attention, SwiGLU])
def test_half_a_scheme_is_caught(monkeypatch, without, moves, block):
    def half(*given):
        return dataclasses.replace(mup.scale(*given), **{without: 1.0})

    monkeypatch.setattr("archsearch.model.scale", half)
    with pytest.raises(AssertionError, match=moves):
        laws.learns_alike_at_every_width(usual(block))


@pytest.mark.parametrize(
    ("field", "what"), [("init", "weights"), ("lr", "groups"), ("eps", "groups")]
)
def test_a_base_that_is_not_itself_is_caught(monkeypatch, field, what):
    def off(*given):
        found = mup.scale(*given)
        return dataclasses.replace(found, **{field: getattr(found, field) * (1 + 1e-6)})

    monkeypatch.setattr("archsearch.model.scale", off)
    with pytest.raises(AssertionError, match=f"sp: other {what}"):
        laws.is_its_own_base(usual(SwiGLU))


@pytest.mark.parametrize(
    ("block", "name", "init"),
    [
        (MoD, "router.weight", normal(0.02)),
        (Loop, "halt.weight", normal(0.02)),
        (SwiGLU, "up.weight", normal(0.125)),
        (Mamba2, "dt_bias", lambda w, g: w.normal_(generator=g).mul_(len(w) ** -0.5)),
    ],
)
def test_a_wrong_spread_is_caught(monkeypatch, block, name, init):
    set_role(monkeypatch, block, name, init=init)
    with pytest.raises(AssertionError, match=rf"{name} starts with a spread of"):
        laws.draws_as_scaled(usual(block))


class Free(slopes.Frozen):
    """Lets every pass choose anew."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_no_step_decides_a_tie(monkeypatch):
    """All experts tie where the router starts at 0: a step would send the tokens elsewhere."""
    (case,) = (case for case in ALL if str(case) == "moe-32-router=noisy_top_k")

    def moved():
        return slopes.movements(Net(case).build(), Text())["noisy_gate.weight"]

    frozen = moved()
    monkeypatch.setattr(slopes, "Frozen", Free)
    assert moved() > frozen + 10


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_group_moves_the_stream_as_far_at_every_width(case):
    found = measured(widths(Net(case), (1, 2, 4, 8)), range(6), warm_movements)
    assert {(str(case), name) for name in found if found[name] is None} <= SILENT
    beyond = {name for name, slope in found.items() if slope and abs(slope.slope) > 0.25}
    assert {(str(case), name) for name in beyond} <= BEYOND


@pytest.mark.slow
@pytest.mark.parametrize("case", USUAL, ids=str)
def test_training_moves_as_far_at_every_width(case):
    found = measured(widths(Net(case), (1, 2, 4, 8)), range(6), learned_silently)
    for name in ("logits 1", "stream 5", "branches 5"):
        assert abs(found[name].slope) <= 0.15 + found[name].error, (name, found[name])
    control = measured(widths(Net(case, "sp"), (1, 4)), range(2), learned_silently)
    assert control["logits 1"].slope >= 0.35


@pytest.mark.slow
@pytest.mark.parametrize("case", USUAL, ids=str)
def test_training_moves_as_far_at_every_depth(case):
    found, control = (
        measured(depths(Net(case, scheme), (2, 4, 8, 16)), range(3), learned)
        for scheme in ("completep", "mup")
    )
    assert -0.25 <= found["stream 5"].slope <= 0.15, found
    assert control["stream 1"].slope >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("case", USUAL, ids=str)
def test_shared_weights_move_as_far_however_often_they_are_used(case):
    found = measured(depths(Net(case, shared=True), (2, 4, 8, 16)), range(6), learned)
    for name in ("stream 0", "stream 1", "stream 5"):
        assert abs(found[name].slope) <= 0.2 + found[name].error, (name, found[name])


@pytest.mark.slow
@pytest.mark.parametrize("case", USUAL, ids=str)
def test_the_largest_model_trains_at_the_base_learning_rate(case):
    points = list(Text().training(Net(case).build(4, copies=16), 50, 10))
    assert all(point.loss < math.log(VOCAB) for point in points[1:]), points


def test_the_figures_on_record_are_within_the_bounds():
    rows = json.loads(FIGURES.read_text())["rows"]
    assert {row["case"] for row in rows} == set(map(str, ALL))
    assert {(row["case"], row["group"]) for row in rows if row["slope"] is None} == SILENT
    beyond = {(r["case"], r["group"]) for r in rows if r["slope"] and abs(r["slope"]) > 0.25}
    assert beyond == BEYOND
    for case in ALL:
        own = [row for row in rows if row["case"] == str(case) and row["sp"] is not None]
        assert max(row["sp"] for row in own) >= 0.5, f"{case}: the standard parametrisation passes"

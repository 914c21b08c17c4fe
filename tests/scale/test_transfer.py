"""Sweeps over widths and depths: what is trained, what is said of it, and how it is kept."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from archsearch.errors import RunError, SpaceError
from archsearch.genome import Gene, Genome
from archsearch.report.mup_check import show
from archsearch.scale.plan import deepened
from archsearch.scale.pretrain import Settings
from archsearch.scale.sweep import powers
from archsearch.scale.transfer import Design, Row, Swept
from archsearch.scale.transferred import judge, transfers
from archsearch.sections import Recipe

GENOME = Genome(32, (Gene.of("attention", heads=2), Gene.of("swiglu")))
RECIPE = Recipe(steps=120, batch=8)
RATES = tuple(range(-10, -2))


def design(**changes):
    told = {
        "genome": GENOME, "widths": (32, 128, 256), "depths": (2, 16), "log2_lrs": RATES,
        "schemes": ("sp", "mup", "completep"), "seeds": 2, "recipe": RECIPE,
        "settings": Settings(context=16),
    }  # fmt: skip
    return Design.of(**(told | changes))


def swept(
    best=lambda scheme, width, depth: -6.0 - (math.log2(width / 32) if scheme == "sp" else 0.0),
    least=lambda scheme, width, depth: (
        2.5
        - 0.02 * math.log2(width / 32)
        + 0.03 * math.log2(depth / 2) * (1 if scheme == "mup" else -1)
    ),
    left=lambda width, share: 0.5**share,
):
    """What a design would give if losses were parabolas with a little noise.

    `share` is the decay over that of the base.
    """
    rows, trainings = [], design().trainings()
    most = max(t.recipe.weight_decay for t in trainings)
    for t in trainings:
        scheme, width, depth = t.base.scheme, t.genome.d_model, len(t.genome.genes)
        decay, log2_lr = t.recipe.weight_decay, math.log2(t.recipe.lr)
        chance = 0.002 * math.sin(7 * log2_lr + width + 3 * t.settings.seed)
        loss = least(scheme, width, depth) + 0.03 * (log2_lr - best(scheme, width, depth)) ** 2
        rows.append(
            Row(
                width=width, depth=depth, scheme=scheme, lr=t.recipe.lr, seed=t.settings.seed,
                loss=loss + chance, decay=decay,
                left=left(width, decay / most) if decay else None,
            )
        )  # fmt: skip
    return Swept(
        genome=GENOME, recipe=RECIPE, context=16, text="none", guessing=math.log(256),
        rows=tuple(rows),
    )  # fmt: skip


def outcomes(swept):
    return {(c.axis, c.name, c.scheme, c.control): c.passed for c in judge(swept)}


def test_what_transfers_passes_and_every_control_fails():
    found = outcomes(swept())
    assert set(found.values()) == {True}
    assert {(axis, name) for axis, name, *_ in found} == {
        ("width", "shift"), ("width", "gap"), ("width", "wider"), ("width", "sensitivity"),
        ("width", "decay"), ("depth", "deeper"), ("depth", "gap"),
    }  # fmt: skip
    for axis, name in {(axis, name) for axis, name, *_ in found} - {("depth", "gap")}:
        assert {control for a, n, _, control in found if (a, n) == (axis, name)} == {True, False}


def test_the_shift_and_the_gap_are_those_of_the_parabolas():
    by = {(of.axis, of.scheme): of for of in transfers(swept())}
    sp, mup = by["width", "sp"], by["width", "mup"]
    assert sp.sizes == mup.sizes == (32, 128, 256)
    assert sp.shift().value == pytest.approx(-3, abs=0.1)
    assert mup.shift().value == pytest.approx(0, abs=0.1)
    assert sp.shift(1).value == pytest.approx(-2, abs=0.1)
    assert sp.shift().low < -3 < sp.shift().high
    assert sp.slope.value == pytest.approx(-1, abs=0.05)
    assert sp.gap() == pytest.approx(0.03 * 9, abs=0.01)
    assert mup.gap() == pytest.approx(0, abs=0.01)
    assert by["depth", "completep"].at_base[-1] < 2.5 < by["depth", "mup"].at_base[-1]


def test_a_scheme_that_moves_as_its_control_does_fails():
    found = outcomes(swept(best=lambda scheme, width, depth: -6.0 - math.log2(width / 32)))
    assert not found["width", "shift", "mup", False]
    assert not found["width", "gap", "mup", False]
    assert found["width", "shift", "sp", True]


def test_a_control_that_holds_is_not_passed():
    found = outcomes(swept(best=lambda scheme, width, depth: -6.0))
    assert found["width", "shift", "mup", False]
    assert not found["width", "shift", "sp", True]
    assert not found["width", "gap", "sp", True]


def test_over_fewer_doublings_a_control_is_asked_for_its_share():
    whole = swept()
    near = replace(whole, rows=tuple(row for row in whole.rows if row.width <= 128))
    found = outcomes(near)
    assert found["width", "shift", "sp", True]
    assert found["width", "gap", "sp", True]
    assert ("width", "wider", "sp", True) not in found


def test_an_optimum_at_the_end_of_the_sweep_is_no_transfer_but_bounds_the_control():
    def best(scheme, width, depth):
        return -6.0 if width == 32 else -13.0

    found = outcomes(swept(best=best))
    assert not found["width", "shift", "mup", False]
    assert found["width", "shift", "sp", True]
    (mup,) = (of for of in transfers(swept(best=best)) if (of.axis, of.scheme) == ("width", "mup"))
    assert mup.shift().low == -math.inf
    assert mup.slope is None


def test_a_base_that_is_best_at_the_end_of_the_sweep_leaves_shift_and_gap_untold():
    untold = swept(best=lambda scheme, width, depth: -2.0)
    by = {(c.axis, c.name, c.control): c for c in judge(untold)}
    told = {place for place, check in by.items() if check.held is not None}
    assert {name for _, name, _ in told} == {"decay"}
    assert not any(by[place].passed for place in by.keys() - told)
    console = Console(width=80, file=io.StringIO())
    show(untold, console)
    page = console.file.getvalue()
    assert "cannot be told" in page
    assert "widen it with --lrs" in page
    assert "do not transfer" not in page


def test_a_shift_is_bounded_where_an_end_of_a_sweep_is_passed():
    """Both at an end: the base at the highest rate, the largest at the lowest."""
    far = swept(best=lambda scheme, width, depth: -2.0 if width == 32 else -12.0)
    for transfer in transfers(far):
        if transfer.axis == "width":
            assert transfer.reach == (-math.inf, -7.0)
    by = {(c.axis, c.name, c.control): c.held for c in judge(far)}
    assert by["width", "shift", False] is by["width", "shift", True] is False


def test_larger_that_is_worse_fails():
    def least(scheme, width, depth):
        return 2.5 + 0.05 * (width > 128) + 0.05 * (depth > 2)

    found = outcomes(swept(least=least))
    assert not found["width", "wider", "mup", False]
    assert not found["depth", "deeper", "completep", False]


def test_decay_that_leaves_less_at_a_larger_width_fails():
    found = outcomes(swept(left=lambda width, share: 0.5 * (32 / width) ** 0.5))
    assert not found["width", "decay", "mup", False]
    found = outcomes(swept(left=lambda width, share: 0.5))
    assert found["width", "decay", "mup", False]
    assert not found["width", "decay", "mup", True]


def test_a_training_that_broke_off_counts_as_guessing():
    whole = swept()
    broken = replace(
        whole,
        rows=tuple(
            replace(row, loss=math.inf) if row.scheme == "sp" and row.lr > 2**-4 else row
            for row in whole.rows
        ),
    )
    assert outcomes(broken)["width", "sensitivity", "sp", True]
    (sp,) = (of for of in transfers(broken) if of.scheme == "sp")
    assert max(sp.sweeps[-1].means) == pytest.approx(math.log(256))


def test_rows_that_lack_a_training_are_refused():
    whole = swept()
    with pytest.raises(RunError, match="as many seeds"):
        judge(replace(whole, rows=whole.rows[:-20] + whole.rows[-19:]))
    without = [r for r in whole.rows if not (r.width == 256 and r.lr == 2**-6)]
    with pytest.raises(RunError, match="not trained at the base's best"):
        judge(replace(whole, rows=tuple(without)))


def test_the_base_is_trained_once_for_all_schemes():
    trainings = design().trainings()
    assert len(set(trainings)) == len(trainings)
    sizes = Counter(
        (t.base.scheme, t.genome.d_model, len(t.genome.genes))
        for t in trainings
        if not t.recipe.weight_decay
    )
    assert sizes == dict.fromkeys(
        [("mup", 32, 2), ("sp", 128, 2), ("sp", 256, 2), ("mup", 128, 2), ("mup", 256, 2),
         ("mup", 32, 16), ("completep", 32, 16)],
        2 * len(RATES),
    )  # fmt: skip
    assert {(t.base.width, t.base.depth) for t in trainings} == {(32, 2)}


def test_decay_is_looked_at_over_four_widths_scaled_and_not():
    decayed = [t for t in design().trainings() if t.recipe.weight_decay]
    cases = {(t.genome.d_model, t.recipe.weight_decay) for t in decayed}
    (scaled,) = (decay for width, decay in cases if width == 32)
    assert cases == {(32, scaled), (128, scaled), (128, scaled / 4)}
    assert {t.settings.seed for t in decayed} == {0, 1}


def test_a_base_may_be_another_depth_and_width_of_the_same_net():
    told = design(genome=deepened(replace(GENOME), 3), widths=(64, 128), depths=(4, 8))
    assert told.genome == deepened(design(widths=(64, 128)).genome, 2)
    assert dict(told.genome.genes[0].params)["heads"] == 4


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"widths": (32, 40)}, SpaceError, "40"),
        ({"depths": (2, 7)}, SpaceError, "depth 7: .* multiples of 2, e.g. 2, 16"),
        ({"schemes": ("sp", "mupp")}, RunError, "unknown scheme 'mupp'; did you mean 'mup'"),
        ({"widths": (64, 32)}, RunError, "widths must rise; here: 64, 32"),
        ({"log2_lrs": (-5.0, -4.0)}, RunError, "three learning rates or more"),
        ({"widths": (32,), "depths": (2,)}, RunError, "one width and one depth"),
    ],
)
def test_a_design_that_cannot_be_is_refused(changes, kind, words):
    with pytest.raises(kind, match=words):
        design(**changes)


def test_a_file_gives_back_what_was_written(tmp_path):
    whole = swept()
    broken = replace(whole, rows=(replace(whole.rows[0], loss=math.inf), *whole.rows[1:]))
    broken.write(tmp_path / "deep" / "swept.jsonl")
    assert Swept.read(tmp_path / "deep" / "swept.jsonl") == broken


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0].replace('"format": 1', '"format": 2'), *lines[1:]], "format 2"),
        (lambda lines: [*lines, lines[1][:20]], "holds no sweeps"),
        (lambda lines: lines[1:], "holds no sweeps"),
        (lambda lines: [], "holds no sweeps"),
        (lambda lines: [*lines, json.dumps({"genome": "", "loss": 1.0})], "holds no sweeps"),
    ],
    ids=["version", "cut off", "headless", "empty", "foreign row"],
)
def test_a_file_of_another_version_or_kind_is_refused(tmp_path, change, words):
    file = tmp_path / "swept.jsonl"
    swept().write(file)
    file.write_text("".join(f"{line}\n" for line in change(file.read_text().splitlines())))
    with pytest.raises(RunError, match=words):
        Swept.read(file)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        Swept.read(tmp_path / "none.jsonl")


def test_learning_rates_are_named_as_powers_of_two():
    assert powers("-9:-3") == tuple(range(-9, -2))
    assert powers("-4.5:-3.5:0.5") == (-4.5, -4.0, -3.5)


@pytest.mark.parametrize(
    "said", ["", "-3", "-3:-9", "a:b", "-9:-3:0", "-9:-3:1:1", "-9:nan", "1e-3"]
)
def test_what_names_no_learning_rates_is_refused(said):
    with pytest.raises(RunError, match="names no learning rates"):
        powers(said)

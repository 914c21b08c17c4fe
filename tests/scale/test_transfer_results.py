"""What was measured and stored still says what docs/scaling.md says; `benchmarks/transfer.py`."""

from pathlib import Path

import pytest

from archsearch.scale.transfer import Swept
from archsearch.scale.transferred import judge, transfers

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def stored(name):
    return Swept.read(RESULTS / f"mup_{name}.jsonl")


def transfer(name, axis, scheme):
    (found,) = (of for of in transfers(stored(name)) if (of.axis, of.scheme) == (axis, scheme))
    return found


def test_over_eight_widths_of_attention_mup_holds_the_learning_rate_and_sp_does_not():
    sp, mup = (transfer("attention", "width", scheme) for scheme in ("sp", "mup"))
    assert sp.sizes == mup.sizes == (32, 64, 128, 256)
    assert len(sp.sweeps[0].losses[0]) >= 2
    assert abs(mup.shift().value) <= 1
    assert mup.gap() <= 0.03
    assert mup.slope.low <= 0.2
    assert mup.slope.high >= -0.2
    assert sp.shift().high <= -2
    assert sp.gap() >= 0.1


def test_wider_is_better_in_mup_alone():
    sp, mup = (transfer("attention", "width", scheme) for scheme in ("sp", "mup"))
    rises = [wide - narrow for narrow, wide in zip(mup.at_base, mup.at_base[1:], strict=False)]
    assert max(rises) <= 0.01
    assert sp.at_base[-1] > sp.at_base[1]
    assert mup.ratio <= 1.3 < sp.ratio


def test_eight_depths_cost_nothing_in_completep_and_much_without():
    control, completep = (transfer("attention", "depth", scheme) for scheme in ("mup", "completep"))
    assert [depth / 2 for depth in completep.sizes] == [2, 4, 8, 16], "layers of two branches"
    assert completep.at_base[-1] <= completep.at_base[0] + 0.01
    assert completep.gap() <= 0.03
    assert control.at_base[-1] >= control.at_base[0] + 0.05


def test_the_contrast_is_there_in_mamba2_over_four_widths():
    sp, mup = (transfer("mamba2", "width", scheme) for scheme in ("sp", "mup"))
    assert sp.sizes[-1] == 4 * sp.sizes[0]
    assert abs(mup.shift().value) <= 1
    assert mup.gap() <= 0.03
    assert sp.shift().value <= -2 * 2 / 3


def test_a_hybrid_of_six_kinds_keeps_its_learning_rate_over_four_widths():
    hybrid = stored("six_kinds")
    blocks = {gene.block for gene in hybrid.genome.genes}
    assert blocks == {"mamba2", "shared_attention", "mod", "peer", "kan", "ttt"}
    mup = transfer("six_kinds", "width", "mup")
    assert mup.sizes == (32, 128)
    assert mup.gap() <= 0.05


@pytest.mark.parametrize("name", ["attention", "mamba2", "six_kinds"])
def test_decay_leaves_as_much_at_four_widths_if_it_grows_with_them(name):
    checks = {check.control: check for check in judge(stored(name)) if check.name == "decay"}
    assert checks[False].held
    assert not checks[True].held


def test_attention_passes_every_check():
    assert all(check.passed for check in judge(stored("attention")))

"""Known laws are found again, within their intervals, and lines that cross are flagged."""

import math
from itertools import product

import numpy as np
import pytest

from archsearch.errors import RunError
from archsearch.scale.laws import Growth, Tuned, crossings, hyper_laws, power_law, trends

SIZES = (1e5, 4e5, 1.6e6, 6.4e6)


def grown(floor=1.5, scale=20.0, exponent=0.25, noise=0.0, rng=None, sizes=SIZES, seeds=2):
    rng = rng or np.random.default_rng(0)
    law_K = floor + scale * np.array(sizes) ** -exponent
    losses_KS = law_K[:, None] + noise * rng.normal(size=(len(sizes), seeds))
    return Growth(name="g", sizes=sizes, losses=tuple(map(tuple, losses_KS)))


def line(name, loss, gain, seeds=2, noise=0.0):
    """A genome that gains so many nats per doubling from 2^20 to 2^24."""
    rng = np.random.default_rng(len(name))
    losses = [
        tuple(loss + gain * far + noise * rng.normal(size=seeds) + [0.001, -0.001][:seeds])
        for far in (4, 0)
    ]
    return Growth(name=name, sizes=(2.0**20, 2.0**24), losses=tuple(losses))


@pytest.mark.parametrize("floor", [0.0, 1.5])
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:3]])
def test_a_power_law_is_found_again(floor, sizes):
    found = power_law(grown(floor=floor, sizes=sizes))
    assert found.exponent.value == pytest.approx(0.25, rel=0.005)
    assert found.floor.value == pytest.approx(floor, abs=0.01)
    assert found.scale.value == pytest.approx(20, rel=0.04)
    assert found.loss(1e8).value == pytest.approx(floor + 20 * 1e8**-0.25, abs=0.01)


def test_two_sizes_give_the_slope_in_logarithms():
    found = power_law(grown(floor=0, sizes=SIZES[:2]))
    assert found.exponent.value == pytest.approx(0.25)
    assert (found.floor.low, found.floor.high) == (0, 0)


@pytest.mark.parametrize(
    ("sizes", "floor", "seeds", "times"), [(SIZES[:2], 0.0, 2, 300), (SIZES, 1.5, 3, 40)]
)
def test_the_interval_of_the_exponent_covers_it(sizes, floor, seeds, times):
    rng = np.random.default_rng(1)
    held = [
        0.25 in power_law(grown(floor, noise=0.005, rng=rng, sizes=sizes, seeds=seeds)).exponent
        for _ in range(times)
    ]
    assert np.mean(held) >= 0.9


def test_one_seed_gives_no_interval():
    found = power_law(grown(seeds=1)).exponent
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_loss_that_does_not_fall_has_no_scale():
    flat = Growth(name="g", sizes=SIZES, losses=((2.0, 2.1), (2.1, 2.0), (2.1, 2.2), (2.2, 2.3)))
    assert power_law(flat).scale.value == 0
    assert power_law(flat).loss(1e9).value == pytest.approx(2.125)


def test_the_slope_of_a_trend_is_nats_per_doubling():
    (found,) = trends([line("a", 2.0, 0.1)])
    assert found.slope.value == pytest.approx(0.1)
    assert found.loss == pytest.approx(2.0)


def test_lines_that_cross_in_reach_are_flagged():
    """The second is 0.02 behind and gains 0.01 more per doubling: it is even after two."""
    pair = trends([line("conv", 2.0, 0.05), line("attention", 2.02, 0.06)])
    (found,) = crossings(pair, reach=10)
    assert (found.ahead, found.behind) == ("conv", "attention")
    assert found.size == pytest.approx(2**26)
    assert not found.measured
    assert found.clear
    assert crossings(pair, reach=3) == []


def test_lines_that_cross_at_measured_sizes_are_flagged_as_such():
    """Four doublings are measured; the second is 0.02 behind and gains 0.01 more a doubling."""
    pair = trends([line("conv", 2.0, 0.05), line("attention", 1.98, 0.06)])
    (found,) = crossings(pair, reach=10)
    assert (found.ahead, found.behind, found.measured) == ("conv", "attention", True)
    assert found.size == pytest.approx(2**22)
    assert found.clear


def test_parallel_lines_do_not_cross():
    assert crossings(trends([line("a", 2.0, 0.05), line("bb", 2.02, 0.05)]), reach=1e6) == []


def test_the_noise_of_a_line_grows_with_its_reach():
    """The order at the largest size is clear, that at the end is 1.3 errors from 0."""
    pair = trends([line("conv", 2.0, 0.05), line("attention", 2.02, 0.0571)])
    (found,) = crossings(pair, reach=10)
    assert not found.clear


def test_a_crossing_within_the_noise_is_not_clear():
    pair = [line("a", 2.0, 0.05, noise=0.02), line("bb", 2.002, 0.07, noise=0.02)]
    lines = trends(pair)
    assert [found.clear for found in crossings(lines, reach=10)] in ([False], [])
    single = trends([line("a", 2.0, 0.05, seeds=1), line("bb", 2.02, 0.06, seeds=1)])
    assert [found.clear for found in crossings(single, reach=10)] == [False]
    assert single[0].slope.high == math.inf


def tuned(rng, budgets, noise=0.0):
    """Runs about the laws of DeepSeek LLM; loss is a bowl, and the grid is not centred on it."""
    runs = []
    for compute in budgets:
        best = np.log2([0.3118 * compute**-0.125, 0.292 * compute**0.3271])
        shift = rng.uniform(-0.5, 0.5, 2)
        for lr, batch in product(range(-12, 0), range(6, 24)):
            off_2 = np.array([lr, batch]) + shift - best
            loss = 2.4 * (1 + 0.001 * (off_2 @ off_2)) + noise * rng.normal()
            at = 2.0 ** (np.array([lr, batch]) + shift)
            runs.append(Tuned(compute=compute, lr=float(at[0]), batch=float(at[1]), loss=loss))
    return runs


def test_laws_of_learning_rate_and_batch_are_in_their_intervals():
    rng, held = np.random.default_rng(3), []
    for _ in range(40):
        found = hyper_laws(tuned(rng, np.geomspace(1e13, 1e16, 5), noise=0.001))
        held += [-0.125 in found.lr.exponent, 0.3271 in found.batch.exponent]
        held += [0.3118 in found.lr.coefficient, 0.292 in found.batch.coefficient]
    assert np.mean(held) >= 0.9
    assert found.lr.at(1e14) == pytest.approx(0.3118 * 1e14**-0.125, rel=0.3)
    assert found.at_edge == ()


def test_what_was_not_swept_has_no_law_and_edges_are_said():
    runs = [
        Tuned(compute=c, lr=lr, batch=64, loss=2.0 + lr)
        for c in (1e12, 1e13, 1e14)
        for lr in (0.001, 0.1)
    ]
    found = hyper_laws(runs)
    assert found.batch is None
    assert len(found.at_edge) == 3
    assert "lowest lr" in found.at_edge[0]
    with pytest.raises(RunError, match="three budgets"):
        hyper_laws(runs[:4])


def test_a_growth_that_is_none_is_refused():
    with pytest.raises(RunError, match="rising"):
        Growth(name="g", sizes=(2, 1), losses=((1.0,), (1.0,)))
    with pytest.raises(RunError, match="diverged"):
        Growth(name="g", sizes=(1, 2), losses=((1.0,), (math.nan,)))
    with pytest.raises(RunError, match="seeds"):
        Growth(name="g", sizes=(1, 2), losses=((1.0,), (1.0, 2.0)))

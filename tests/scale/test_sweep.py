"""The optimum of a learning rate, how it moves, and what is said where there is none."""

import math

import numpy as np
import pytest

from archsearch.errors import RunError
from archsearch.scale.sweep import Sweep, drift, optimum

GRID = tuple(range(-11, -1))


def sweep(best, rng=None, noise=0.0, seeds=2, grid=GRID, level=0.05):
    """A parabola, with a level per seed and noise per run."""
    rng = rng or np.random.default_rng(0)
    level_S = level * rng.normal(size=seeds)
    curve_L = 2.3 + 0.02 * (np.array(grid) - best) ** 2
    losses_LS = curve_L[:, None] + level_S + noise * rng.normal(size=(len(grid), seeds))
    return Sweep(log2_lrs=grid, losses=tuple(map(tuple, losses_LS)), cap=4.85)


@pytest.mark.parametrize("best", [-9.6, -6.0, -5.3, -3.4])
def test_the_minimum_of_a_parabola_is_found(best):
    found = optimum(sweep(best, level=0))
    assert found.log2_lr == pytest.approx(best)
    assert found.loss == pytest.approx(2.3)
    assert not found.why
    assert found.error == pytest.approx(0, abs=1e-9)


def test_the_standard_error_is_that_of_repeated_sweeps():
    rng = np.random.default_rng(1)
    found = [optimum(sweep(-6.2, rng, noise=0.01)) for _ in range(400)]
    assert np.mean([f.error for f in found]) == pytest.approx(
        np.std([f.log2_lr for f in found]), rel=0.15
    )
    assert 0.92 <= np.mean([-6.2 in f.estimate for f in found]) <= 0.98


@pytest.mark.parametrize(("best", "word"), [(-14, "lower"), (1, "higher")])
def test_an_optimum_at_the_end_of_the_grid_is_said(best, word):
    found = optimum(sweep(best))
    assert f"try {word} ones" in found.why
    assert found.error == math.inf
    assert (found.estimate.low, found.estimate.high) == (-math.inf, math.inf)


def test_losses_that_do_not_bend_up_have_no_optimum():
    bump = Sweep(log2_lrs=(1, 2, 3, 4, 5), losses=((2.0,), (1.9,), (2.5,), (2.0,), (2.0,)), cap=9)
    assert "do not rise on both sides" in optimum(bump).why


def test_three_rates_of_one_seed_have_an_optimum_without_an_error():
    found = optimum(sweep(-5.2, seeds=1, grid=(-6, -5, -4)))
    assert found.log2_lr == pytest.approx(-5.2)
    assert found.error == math.inf


def test_a_run_that_diverges_counts_as_guessing():
    found = Sweep(log2_lrs=(1, 2, 3), losses=((2.0,), (math.nan,), (99.0,)), cap=4.0)
    assert found.means.tolist() == [2, 4, 4]
    assert found.sensitivity == pytest.approx(4 / 3)


@pytest.mark.parametrize("slope", [-1.1, 0.0])
def test_a_known_slope_is_in_its_interval(slope):
    rng, held = np.random.default_rng(2), []
    for _ in range(500):
        optima = [optimum(sweep(-4.3 + slope * k, rng, noise=0.015)) for k in range(4)]
        held.append(slope in drift([5, 6, 7, 8], optima).slope)
    assert np.mean(held) >= 0.93


def test_a_scatter_beyond_the_noise_of_losses_widens_the_interval():
    line, bent = (
        drift([5, 6, 7, 8], [optimum(sweep(at, noise=0.003)) for at in bests])
        for bests in ((-4, -5, -6, -7), (-4, -5.5, -5.5, -7))
    )
    assert bent.slope.high - bent.slope.low > 3 * (line.slope.high - line.slope.low)


def test_a_width_without_an_optimum_is_left_out():
    optima = [optimum(sweep(at, noise=0.001)) for at in (-5, -6, -14)]
    found = drift([5, 6, 7], optima)
    assert found.used == (True, True, False)
    assert found.slope.value == pytest.approx(-1, abs=0.05)
    with pytest.raises(RunError, match="try lower ones"):
        drift([6, 7], optima[1:])


def test_a_sweep_that_is_none_is_refused():
    with pytest.raises(RunError, match="rising"):
        Sweep(log2_lrs=(1, 3, 2), losses=((1.0,),) * 3, cap=5)
    with pytest.raises(RunError, match="seeds"):
        Sweep(log2_lrs=(1, 2, 3), losses=((1.0,), (1.0, 2.0), (1.0,)), cap=5)

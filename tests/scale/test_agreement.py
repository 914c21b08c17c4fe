"""A proxy that ranks is told from one that does not, with intervals that cover."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from archsearch.errors import RunError
from archsearch.scale import agreement
from archsearch.scale.agreement import Panel, Score
from archsearch.scale.verdict import least_tau
from archsearch.seeds import seed


def agree(panel, resamples=2000):
    return agreement.agree(panel, resamples)


def rows(values_NS):
    return tuple(map(tuple, np.asarray(values_NS, float).tolist()))


def panel(target_NS, proxy_NS, *, params=None, families=None, maximize=False, **more):
    names = tuple(f"g{i}" for i in range(len(target_NS)))
    return Panel(
        names=names,
        families=families or names,
        params=tuple(params if params is not None else range(1, len(names) + 1)),
        target=rows(target_NS),
        proxy=Score(name="proxy", values=rows(proxy_NS), maximize=maximize),
        **more,
    )


def simulated(rng, genomes=24, seeds=2, noise=0.02):
    """True losses, and those of some seeds."""
    true_N = rng.normal(2, 0.1, genomes)
    return true_N, true_N[:, None] + noise * rng.normal(size=(genomes, seeds))


def hashed(number, genomes=24):
    return [(seed(number, i) % 997,) for i in range(genomes)]


def test_the_interval_of_tau_covers_the_known_one():
    """Of a bivariate normal tau is 2/pi asin(rho), Kendall 1948."""
    rho = 0.7
    rng, known, held = np.random.default_rng(0), 2 / math.pi * math.asin(rho), []
    for _ in range(500):
        both_2N = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=24).T
        target_N, proxy_N = both_2N
        found = agree(panel(np.stack([target_N] * 2, 1), proxy_N[:, None]), resamples=200)
        held.append(known in found.proxy.tau)
    assert 0.90 <= np.mean(held) <= 0.98


def test_a_perfect_proxy_is_trusted():
    _, target_NS = simulated(np.random.default_rng(1))
    found = agree(panel(target_NS, -target_NS.mean(1, keepdims=True), maximize=True))
    assert found.proxy.tau.value == 1
    assert found.proxy.regret == (0, 0)
    assert found.proxy.accuracy.value == 1
    assert found.proxy.p < 0.001
    assert found.verdict.passed


def test_a_hash_of_the_genome_is_useless():
    rng, kinds, held = np.random.default_rng(2), [], []
    for number in range(40):
        _, target_NS = simulated(rng)
        found = agree(panel(target_NS, hashed(number)), resamples=400)
        held.append(0 in found.proxy.tau)
        kinds.append(found.verdict.kind)
    assert np.mean(held) >= 0.9
    assert kinds.count("useless") >= 36
    assert "trusted" not in kinds


def test_a_proxy_that_ranks_backwards_misleads():
    _, target_NS = simulated(np.random.default_rng(3))
    assert agree(panel(target_NS, target_NS, maximize=True)).verdict.kind == "misleading"


def test_a_proxy_that_misses_the_best_is_a_poor_pick():
    true_N = np.linspace(2, 3, 24)
    proxy_N = np.where(np.arange(24) == 20, 0.0, true_N)
    target_NS = true_N[:, None] + 0.001 * np.random.default_rng(4).normal(size=(24, 2))
    found = agree(panel(target_NS, proxy_N[:, None]))
    assert found.proxy.tau.low > 0
    assert found.verdict.kind == "poor pick"


def test_a_target_of_pure_noise_is_not_resolvable():
    rng = np.random.default_rng(5)
    found = agree(panel(rng.normal(2, 0.1, (24, 2)), rng.normal(size=(24, 2))))
    assert found.share is None
    assert "not resolvable at this budget" in found.verdict.text


def test_few_genomes_are_said_to_be_few():
    _, target_NS = simulated(np.random.default_rng(6), genomes=8)
    assert agree(panel(target_NS, target_NS)).verdict.kind == "too few"


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_the_ceiling_is_that_of_two_halves(seeds):
    """Halves of h seeds correlate by var / (var + noise^2 / h)."""
    rng, half = np.random.default_rng(7), seeds // 2
    known = 2 / math.pi * math.asin(0.1**2 / (0.1**2 + 0.05**2 / half))
    found = [
        agree(panel(simulated(rng, seeds=seeds, noise=0.05)[1], hashed(0)), resamples=1).ceiling
        for _ in range(100)
    ]
    assert np.mean(found) == pytest.approx(known, abs=0.02)


def test_noise_of_seeds_widens_the_interval():
    rng = np.random.default_rng(18)
    true_N, _ = simulated(rng)
    proxy_NS = true_N[:, None] + 0.05 * rng.normal(size=(24, 1))
    quiet, loud = (
        agree(panel(true_N[:, None] + [-noise, noise], proxy_NS)).proxy.tau for noise in (0.0, 0.1)
    )
    assert quiet.value == pytest.approx(loud.value)
    assert loud.high - loud.low > 1.1 * (quiet.high - quiet.low)


def test_noise_of_seeds_decides_which_pairs_count():
    rng = np.random.default_rng(8)
    quiet, loud = (
        agree(panel(simulated(rng, noise=noise)[1], hashed(0)), resamples=50)
        for noise in (0.001, 0.1)
    )
    assert quiet.noise == pytest.approx(0.001, rel=0.4)
    assert loud.resolvable < quiet.pairs / 2 < quiet.resolvable <= quiet.pairs == 24 * 23 / 2


def test_accuracy_is_over_the_pairs_that_are_apart():
    rng = np.random.default_rng(16)
    _, target_NS = simulated(rng, noise=0.06)
    proxy_N = target_NS.mean(1).round(1) + 0.1 * rng.integers(2, size=24)
    limit = 2 * math.sqrt(target_NS.var(1, ddof=1).mean()) * math.sqrt(2 / 2)
    hits = []
    for (t, p), (u, q) in combinations(zip(target_NS.mean(1), proxy_N, strict=True), 2):
        if abs(t - u) > limit:
            hits.append(0.5 if p == q else float((p < q) == (t < u)))
    found = agree(panel(target_NS, proxy_N[:, None]), resamples=10)
    assert 0.5 in hits
    assert found.resolvable == len(hits)
    assert found.proxy.accuracy.value == pytest.approx(np.mean(hits))


def test_p_is_that_of_the_exact_test():
    rng = np.random.default_rng(17)
    true_N, target_NS = simulated(rng, genomes=14)
    proxy_NS = true_N[:, None] + 0.3 * rng.normal(size=(14, 1))
    exact = stats.kendalltau(target_NS.mean(1), proxy_NS[:, 0], method="exact").pvalue
    assert 0.01 < exact < 0.5
    assert agree(panel(target_NS, proxy_NS), 10_000).proxy.p == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(("genomes", "tau"), [(8, 0.57), (12, 0.43), (16, 0.36), (24, 0.29)])
def test_what_so_many_genomes_can_tell(genomes, tau):
    assert least_tau(genomes) == pytest.approx(tau, abs=0.006)


def test_what_only_counts_parameters_has_nothing_left_without_them():
    """And a proxy no better than them says so."""
    rng = np.random.default_rng(9)
    params_N = rng.permutation(24) + 10.0
    target_NS = (2 - 0.01 * params_N)[:, None] + 0.002 * rng.normal(size=(24, 2))
    proxy_NS = -params_N[:, None] + 0.4 * rng.normal(size=(24, 1))
    found = agree(panel(target_NS, proxy_NS, params=params_N))
    most = found.baselines[0]
    assert most.name == "parameters"
    assert most.tau.value > 0.9
    assert most.correlations.partial.value == 0
    assert 0 in found.proxy.correlations.partial
    assert found.verdict.passed
    assert "not shown to beat parameters" in found.verdict.text


def test_equal_parameters_rank_nothing():
    _, target_NS = simulated(np.random.default_rng(10))
    found = agree(panel(target_NS, target_NS, params=[100] * 24))
    most = found.baselines[0]
    assert (most.tau.value, most.p) == (0, 1)
    assert most.regret == pytest.approx(found.random_regret)
    assert found.proxy.correlations.partial == found.proxy.correlations.spearman


def test_families_that_differ_may_hide_that_members_do_not_rank():
    rng = np.random.default_rng(11)
    kind_N = np.repeat([0.0, 1.0], 12)
    target_NS = 2 + kind_N[:, None] + 0.05 * rng.normal(size=(24, 1)) + np.zeros((24, 2))
    proxy_NS = kind_N[:, None] + 0.05 * rng.normal(size=(24, 2))
    found = agree(panel(target_NS, proxy_NS, families=tuple(map(str, kind_N))))
    assert found.pairs_within == 2 * 12 * 11 / 2
    assert found.proxy.correlations.across.value == 1
    assert 0 in found.proxy.correlations.within
    alone = agree(panel(target_NS, proxy_NS), resamples=50)
    assert alone.proxy.correlations.within is None


def test_the_proxy_is_ahead_of_a_useless_baseline_and_behind_a_perfect_one():
    true_N, target_NS = simulated(np.random.default_rng(12), noise=0.005)
    proxy_NS = true_N[:, None] + 0.08 * np.random.default_rng(13).normal(size=(24, 2))
    rivals = (
        Score(name="hash", values=rows(hashed(3)), maximize=False),
        Score(name="truth", values=rows(true_N[:, None]), maximize=False),
    )
    _, useless, perfect = agree(panel(target_NS, proxy_NS, baselines=rivals)).baselines
    assert useless.lead.low > 0
    assert perfect.lead.high < 0


def test_one_panel_has_one_answer():
    _, target_NS = simulated(np.random.default_rng(14))
    one = panel(target_NS, hashed(1))
    assert agree(one, resamples=200) == agree(one, resamples=200)


def test_a_panel_that_does_not_fit_is_refused():
    _, target_NS = simulated(np.random.default_rng(15))
    with pytest.raises(RunError, match="one seed"):
        panel(target_NS[:, :1], target_NS)
    with pytest.raises(RunError, match="23 rows for 24 genomes"):
        panel(target_NS, target_NS[1:])
    with pytest.raises(RunError, match="cap the loss"):
        panel(np.where(target_NS == target_NS.max(), np.inf, target_NS), target_NS)
    with pytest.raises(RunError, match="3 distinct genomes"):
        panel(target_NS[:2], target_NS[:2])

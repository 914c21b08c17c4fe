"""Rank statistics equal those of scipy, and exact ones equal a count of all cases."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from archsearch.scale.ranks import expected_regret, partial, signs, spearman, tau_b, wilson


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_correlations_with_ties_equal_scipy(levels):
    rng = np.random.default_rng(levels)
    one_RN, other_RN = rng.integers(levels, size=(2, 60, 11)).astype(float)
    one_RNN, other_RNN = signs(one_RN), signs(other_RN)
    tau_R, rho_R = tau_b(one_RNN, other_RNN), spearman(one_RNN, other_RNN)
    for x_N, y_N, tau, rho in zip(one_RN, other_RN, tau_R, rho_R, strict=True):
        if len(set(x_N)) > 1 and len(set(y_N)) > 1:
            assert tau == pytest.approx(stats.kendalltau(x_N, y_N).statistic)
            assert rho == pytest.approx(stats.spearmanr(x_N, y_N).statistic)


def test_a_constant_side_ranks_nothing():
    constant_NN, other_NN = signs(np.ones(5)), signs(np.arange(5.0))
    assert tau_b(constant_NN, other_NN) == spearman(constant_NN, other_NN) == 0


def test_tau_over_chosen_pairs_counts_those_alone():
    one_NN, other_NN = signs(np.array([1.0, 2, 3, 4])), signs(np.array([1.0, 2, 4, 3]))
    last_two_NN = np.zeros((4, 4), np.float32)
    last_two_NN[2:, 2:] = 1
    assert tau_b(one_NN, other_NN, last_two_NN) == -1
    assert tau_b(one_NN, other_NN, 1 - last_two_NN) == 1
    assert np.isnan(tau_b(one_NN, other_NN, 0 * last_two_NN))


def test_partial_is_the_correlation_of_what_the_third_leaves():
    rng = np.random.default_rng(0)
    third_N = rng.normal(size=40)
    one_N, other_N = third_N + rng.normal(size=40), third_N + rng.normal(size=40)
    ranks = [stats.rankdata(v_N) for v_N in (one_N, other_N, third_N)]
    left = [r_N - np.polyval(np.polyfit(ranks[2], r_N, 1), ranks[2]) for r_N in ranks[:2]]
    s_1, s_2, s_3 = map(signs, (one_N, other_N, third_N))
    found = partial(spearman(s_1, s_3), spearman(s_2, s_3), spearman(s_1, s_2))
    assert found == pytest.approx(stats.pearsonr(*left).statistic)
    assert partial(np.array(1.0), np.array(0.3), np.array(0.3)) == 0


@given(
    data=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=6),
    picks=st.integers(1, 6),
)
def test_regret_is_the_mean_over_all_ways_to_break_ties(data, picks):
    picks = min(picks, len(data))
    ranks_N, losses_N = np.array(data, float).T
    orders = [sorted(order, key=lambda i: ranks_N[i]) for order in permutations(range(len(data)))]
    costs = [min(losses_N[i] for i in order[:picks]) - losses_N.min() for order in orders]
    assert expected_regret(ranks_N, losses_N, picks) == pytest.approx(np.mean(costs))


@pytest.mark.parametrize(("hits", "n"), [(0, 9), (7, 9), (9, 9), (50, 66)])
def test_wilson_equals_scipy(hits, n):
    known = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((known.low, known.high), abs=1e-6)

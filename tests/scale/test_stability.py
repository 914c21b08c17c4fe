"""A run past a limit is unstable, says where, and ranks below every stable one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.errors import RunError
from archsearch.scale.stability import Log, judge

STEPS = tuple(range(0, 600, 2))
GUESSING = math.log(256)


def falling(noise=0.05, seed=0):
    t_T = np.array(STEPS)
    chance_T = np.random.default_rng(seed).standard_t(8, size=len(t_T))
    return 1.8 + 3.7 * np.exp(-t_T / 100) + noise * chance_T


def log(loss=None, **series):
    loss = falling() if loss is None else loss
    return Log(steps=STEPS, loss=tuple(map(float, loss)), **series)


def series(value, at=200, before=1.0):
    return tuple(before if step < at else value for step in STEPS)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 0.3])
def test_a_loss_that_falls_is_stable(noise):
    quiet = {
        "max_logit": series(49.9),
        "log_z": series(9.9, before=0.0),
        "rms": {"0 mixer": series(3.0)},
        "update_ratio": {"hidden": series(1e-3)},
    }
    for seed in range(5):
        assert judge(log(falling(noise, seed), **quiet), GUESSING).why == "stable"


@pytest.mark.parametrize(
    ("past", "word"),
    [
        ({"max_logit": series(51.0)}, "attention logits reach 51 at step 200"),
        ({"log_z": series(-4.5, before=5.6)}, "log Z has moved by 10.1 at step 200"),
        ({"rms": {"3 mixer": series(math.inf)}}, "RMS of 3 mixer is inf at step 200"),
        ({"update_ratio": {"norms": series(math.nan)}}, "update/weight of norms is nan"),
        ({"loss": series(math.nan, before=2.0)}, "loss is nan at step 200"),
        ({"loss": series(5.6, before=5.5)}, "ends at 5.60, above that of guessing, 5.55"),
        ({"loss": falling() + 1.5 * np.exp(-(((np.array(STEPS) - 400) / 20) ** 2))}, "jumps from"),
    ],
)
def test_what_is_past_a_limit_is_said(past, word):
    found = judge(log(**past), GUESSING)
    assert not found.stable
    assert word in found.why


def test_one_hard_batch_is_no_spike():
    loss_T = falling()
    loss_T[150] += 3.0
    assert judge(log(loss_T), GUESSING).stable
    loss_T[151] += 3.0
    assert "at step 300" in judge(log(loss_T), GUESSING).why


def test_every_reason_is_given():
    found = judge(log(max_logit=series(80.0), log_z=series(20.0)), GUESSING)
    assert len(found.reasons) == 2


@given(st.lists(st.tuples(st.booleans(), st.floats(allow_nan=True)), min_size=1))
def test_an_unstable_run_ranks_below_every_stable_one(runs):
    good, bad = judge(log(), GUESSING), judge(log(max_logit=series(99.0)), GUESSING)
    ranked = sorted(((good if ok else bad).rank(loss), ok) for ok, loss in runs)
    assert [ok for _, ok in ranked] == sorted((ok for ok, _ in runs), reverse=True)


def test_among_stable_runs_the_lower_loss_ranks_first():
    found = judge(log(), GUESSING)
    assert found.rank(1.0) < found.rank(2.0) < found.rank(math.nan)


def test_a_log_that_does_not_fit_is_refused():
    with pytest.raises(RunError, match="nothing was logged"):
        Log(steps=(), loss=())
    with pytest.raises(RunError, match="log Z has 1 values for 300 steps"):
        log(log_z=(1.0,))

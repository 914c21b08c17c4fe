"""A trial whose worker is gone is trained again, soon and once; a trial in work is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from archsearch.search import lease
from archsearch.search.lease import ATTEMPTS, BEAT, EXPIRY, give_back, hold, me, reap, surplus
from tests.search.helpers import LISTED, alive, begin, opened, outcome, process, searched, worker

TOTAL = 12
DIES = """
import os, signal, sys
from pathlib import Path
from archsearch.search import worker
from tests.search.helpers import worker as make

def die(event):
    if event["event"] == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

make(Path(sys.argv[1]), emit=die).work()
"""
"""A worker that is killed at its first event of a kind."""
HOLDS = """
import os, signal, sys
from archsearch.search.lease import hold
from archsearch.search.storage import open_storage
from archsearch.search.study import Study

with hold(Study(open_storage(sys.argv[1]), "listed").optuna.ask()):
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""A process that takes the next trial and is killed."""
STARTS = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
"""Starts one of these and ends right after it."""


@pytest.fixture
def study(tmp_path):
    return begin(tmp_path / "run", LISTED)[0]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return outcome(searched(tmp_path_factory.mktemp("unbroken") / "run", LISTED))


def killed(script, *words):
    """Let a worker die while this process, which started it, lives on."""
    child = subprocess.run([sys.executable, "-c", script, *map(str, words)])
    assert child.returncode == -signal.SIGKILL


def begun(study, **owner):
    """A trial in work, owned by this process unless told otherwise."""
    trial = study.optuna.ask()
    trial.set_user_attr("owner", me() | {"seen": time.time()} | owner)
    return trial


def states(study):
    return [trial.state for trial in study.trials()]


def dead():
    """The number of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


@pytest.mark.parametrize("moment", ["begin", "step", "end"])
def test_a_killed_worker_costs_one_repetition_and_no_result(tmp_path, unbroken, moment):
    folder = tmp_path / "run"
    begin(folder, LISTED)
    killed(DIES, folder, moment)
    done = len(opened(folder).records())
    worker(folder).work()
    study = opened(folder)
    assert outcome(study) == unbroken
    lost = [t for t in study.trials() if t.state is TrialState.FAIL]
    assert (done, len(lost)) == ((1, 0) if moment == "end" else (0, 1))


def test_the_comparison_notices_another_seed(tmp_path, unbroken):
    assert outcome(searched(tmp_path / "run", LISTED, "search.seed=1")) != unbroken


def test_the_repetition_keeps_place_and_decisions(study, tmp_path):
    killed(DIES, tmp_path / "run", "step")
    reap(study, TOTAL)
    lost, again = study.trials()
    assert (lost.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert again.params == lost.params != {}
    assert again.user_attrs == {"index": 0, "attempt": 2, "origin": "random"}


def test_half_of_the_decisions_are_not_taken_over(study):
    trial = begun(study, pid=dead())
    trial.suggest_categorical("stage.ffn.swiglu.mult", (1, 2, 3, 4))
    reap(study, TOTAL)
    assert study.trials()[1].params == {}


def test_a_living_owner_keeps_its_trial_however_long_it_is_silent(study):
    begun(study, seen=time.time() - 100 * EXPIRY)
    for alone in (False, True):
        reap(study, TOTAL, alone=alone)
        assert states(study) == [TrialState.RUNNING]


def test_a_sign_of_life_is_given_while_a_trial_is_held_whatever_happens_to_the_storage(
    study, monkeypatch
):
    monkeypatch.setattr(lease, "BEAT", 0.01)
    trial = study.optuna.ask()
    seen, write = [], type(trial).set_user_attr

    def sometimes(self, name, value):
        seen.append(value["seen"])
        if len(seen) == 3:
            raise OSError("no answer")
        write(self, name, value)

    monkeypatch.setattr(type(trial), "set_user_attr", sometimes)
    with hold(trial):
        deadline = time.time() + 20
        while len(seen) < 10:
            assert time.time() < deadline
            time.sleep(0.01)
    told = len(seen)
    time.sleep(0.1)
    assert len(seen) == told
    assert seen == sorted(seen)
    assert study.trials()[0].user_attrs["owner"]["seen"] == seen[-1]


def test_another_process_with_the_number_of_the_owner_is_not_the_owner(study):
    begun(study, born=me()["born"] + 1)
    reap(study, TOTAL)
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]


def test_an_owner_that_nobody_has_waited_for_is_dead(study):
    child = subprocess.Popen(["sleep", "60"])
    begun(study, pid=child.pid, born=int(process(child.pid)[19]))
    reap(study, TOTAL)
    assert states(study) == [TrialState.RUNNING]
    child.kill()
    deadline = time.time() + 10
    while alive(child.pid):
        assert time.time() < deadline
        time.sleep(0.01)
    reap(study, TOTAL)
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]
    child.wait()


def test_an_owner_elsewhere_is_dead_only_after_the_lease_expired(study):
    begun(study, host="elsewhere", pid=dead(), seen=time.time() - EXPIRY + 2 * BEAT)
    begun(study, host="elsewhere", pid=dead(), seen=time.time() - EXPIRY - 1)
    reap(study, TOTAL)
    assert states(study) == [TrialState.RUNNING, TrialState.FAIL, TrialState.WAITING]
    assert study.trials()[2].user_attrs["index"] == 1


def test_a_trial_without_owner_is_an_orphan_at_once_only_for_who_is_alone(study):
    study.optuna.ask()
    reap(study, TOTAL)
    assert states(study) == [TrialState.RUNNING]
    reap(study, TOTAL, alone=True)
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]


def test_a_trial_that_nobody_owned_for_a_minute_is_an_orphan(study):
    for seconds in (30, 90):
        study.optuna.add_trial(
            FrozenTrial(
                number=0, trial_id=0, state=TrialState.RUNNING, value=None, params={},
                distributions={}, user_attrs={}, system_attrs={}, intermediate_values={},
                datetime_start=datetime.now() - timedelta(seconds=seconds), datetime_complete=None,
            )
        )  # fmt: skip
    reap(study, TOTAL)
    assert states(study) == [TrialState.RUNNING, TrialState.FAIL, TrialState.WAITING]


def test_reaping_twice_queues_once(study):
    begun(study, pid=dead())
    for _ in range(3):
        reap(study, TOTAL)
        reap(opened_again(study), TOTAL)
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]


def opened_again(study):
    return type(study)(study.storage, study.name)


def test_a_trial_whose_worker_dies_every_time_fails_with_a_reason(tmp_path, study, unbroken):
    folder = tmp_path / "run"
    for _ in range(ATTEMPTS):
        killed(HOLDS, folder)
        reap(study, TOTAL)
    worker(folder).work()
    records = study.records()
    assert records[0].status == "oom"
    assert f"died {ATTEMPTS} times" in records[0].why
    rest = {index: result for index, result in outcome(study).items() if index}
    assert rest == {index: result for index, result in unbroken.items() if index}


def test_deaths_along_with_the_process_that_started_the_worker_do_not_count(
    tmp_path, study, unbroken
):
    folder = tmp_path / "run"
    for _ in range(ATTEMPTS + 2):
        subprocess.run([sys.executable, "-c", STARTS, HOLDS, str(folder)])
        reap(study, TOTAL)
    assert len(study.trials()) == ATTEMPTS + 3
    worker(folder).work()
    assert outcome(study) == unbroken


def test_a_trial_given_back_is_queued_again_and_its_worker_not_counted_as_dead(study):
    for _ in range(ATTEMPTS + 2):
        trial = study.optuna.ask()
        with hold(trial):
            give_back(study, trial)
        reap(study, TOTAL)
    assert study.trials()[-1].state is TrialState.WAITING
    assert study.trials()[-1].user_attrs["attempt"] == 1


def test_of_two_trials_in_one_place_the_later_is_surplus(study):
    first, second = begun(study), begun(study)
    assert not surplus(study, first, 0, TOTAL)
    assert not surplus(study, second, 1, TOTAL)
    assert surplus(study, second, 0, TOTAL)
    study.optuna.tell(first, state=TrialState.FAIL)
    assert not surplus(study, second, 0, TOTAL)
    assert surplus(study, second, TOTAL, TOTAL)


def test_a_place_queued_twice_is_filled_once(tmp_path, study, unbroken):
    begun(study, pid=dead())
    reap(study, TOTAL)
    for _ in range(2):
        study.optuna.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"index": 0}))
    worker(tmp_path / "run").work()
    assert outcome(study) == unbroken
    ended = [t for t in study.trials() if t.state is TrialState.COMPLETE]
    assert len(ended) == TOTAL


def test_trials_beyond_the_budget_are_not_needed_until_it_grows(tmp_path, unbroken):
    folder = tmp_path / "run"
    study, _ = begin(folder, LISTED, "search.trials=3")
    for _ in range(5):
        study.optuna.add_trial(create_trial(state=TrialState.WAITING))
    worker(folder).work()
    assert sorted(study.records()) == [0, 1, 2]
    begin(folder, LISTED)
    worker(folder).work()
    assert sorted(study.records()) == sorted(unbroken)
    assert {r[0] for r in outcome(study).values()} == {r[0] for r in unbroken.values()}


def test_a_result_that_was_not_handed_over_to_its_end_does_not_count(tmp_path, study, unbroken):
    """A worker may die between the last attribute and the values."""
    whole = searched(tmp_path / "whole", LISTED).trials()[0]
    trial = study.optuna.ask()
    for name, value in whole.user_attrs.items():
        trial.set_user_attr(name, value)
    trial.set_user_attr("owner", me() | {"pid": dead(), "seen": time.time()})
    reap(study, TOTAL)
    assert study.records() == {}
    worker(tmp_path / "run").work()
    assert outcome(study) == unbroken


def test_a_worker_taken_for_dead_drops_its_result_and_goes_on(tmp_path, study, unbroken):
    folder, taken = tmp_path / "run", []

    def take_away(event):
        if event["event"] == "step" and not taken:
            taken.append(event["index"])
            study.optuna.tell(0, state=TrialState.FAIL)

    worker(folder, emit=take_away).work()
    assert taken == [0]
    assert outcome(study) == unbroken


def test_a_worker_that_cannot_go_on_gives_its_trial_back(tmp_path, study, unbroken):
    folder = tmp_path / "run"

    for error in (OSError, KeyboardInterrupt, SystemExit):

        def stop(event, error=error):
            raise error("stop")

        for _ in range(ATTEMPTS):
            with pytest.raises(error):
                worker(folder, emit=stop).work()
    assert not any(trial.state is TrialState.RUNNING for trial in study.trials())
    worker(folder).work()
    assert outcome(study) == unbroken


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_owner_may_belong_to_another_user(study, tmp_path):
    begun(study)
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(0o755)
    script = (
        "import os, sys; from archsearch.search.lease import reap;"
        "from archsearch.search.storage import open_storage;"
        "from archsearch.search.study import Study;"
        "study = Study(open_storage(sys.argv[1]), 'listed'); os.setuid(65534); reap(study, 0);"
        "print(study.trials()[0].state.name)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "RUNNING\n", done.stderr

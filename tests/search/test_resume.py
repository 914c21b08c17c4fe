"""A run that is stopped in any way goes on with the same command and finds the same."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from optuna.trial import TrialState

from archsearch.library import read_space
from archsearch.search.proposals import Proposals
from archsearch.space_yaml import parse
from tests.search.helpers import LARGE, LISTED, alive, opened, outcome, searched, workers_on

SLOW = LISTED.replace("steps: 4, evals: 2", "steps: 60, evals: 4").replace(
    "trials: 12", "trials: 12, finalists: 0"
)
"""Trials of a fifth of a second: a random moment is likely to be in the middle of one."""
PATIENCE = 20
"""Seconds that a worker has to notice that it is alone."""


def start(folder, workers):
    """`archsearch run` in a process group of its own, as a terminal would start it."""
    env = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "archsearch", "run", "space.yaml", "--workers", str(workers)]
    return subprocess.Popen(
        command, cwd=folder, env=env, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(folder, workers):
    run = start(folder, workers)
    said = run.communicate(timeout=1500)[0]
    assert run.returncode == 0, said
    return said


def place(folder, text):
    """A directory with a space file, and the run directory that it will have."""
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(text)
    name = re.search(r"^name: (\S+)", text, re.MULTILINE).group(1)
    return folder / "runs" / name


def gone(run):
    """Wait until no worker of a run directory is left; the numbers of those that stay."""
    deadline = time.time() + PATIENCE
    while (left := workers_on(run.relative_to(run.parents[1]), run.parents[1])) and (
        time.time() < deadline
    ):
        time.sleep(0.05)
    return left


def kill_and_restart(folder, text, moments, workers=2):
    """Kill `archsearch run` alone again and again, then let it finish; the run directory.

    A moment is a pattern and a delay: the kill comes so many seconds after the first line that
    matches, or after the start where the pattern is empty.
    """
    run, before = place(folder, text), 0
    for pattern, delay in moments:
        with running(folder, workers, pattern) as process:
            time.sleep(delay)
            assert process.poll() is None, "the run was over before it could be killed"
            process.kill()
        assert gone(run) == []
        ended = len(opened(run).records()) if (run / "journal.log").exists() else 0
        assert ended >= before
        before = ended
    finish(folder, workers)
    return run


def random_moments(seed, start, work):
    """Five kills: some while everything starts, some while trials are in work."""
    chosen = random.Random(seed)
    kinds = ["", "", r"^\[", r"^\[", r"^\["]
    chosen.shuffle(kinds)
    return [(kind, chosen.uniform(0, work if kind else start)) for kind in kinds]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What a run finds that nothing happens to, with one worker in this process."""
    known = {}

    def find(text):
        if text not in known:
            known[text] = outcome(searched(tmp_path_factory.mktemp("unbroken") / "run", text))
        return known[text]

    return find


@contextmanager
def running(folder, workers, until):
    """A run that has said a line that matches `until`, if that is not empty."""
    run = start(folder, workers)
    for line in run.stdout if until else ():
        if re.search(until, line):
            break
    else:
        assert not until, "the run ended early"
    try:
        yield run
    finally:
        if run.poll() is None:
            run.kill()
        run.communicate()


TPE = LARGE.replace("trials: 22", "trials: 24, strategy: tpe, seed: 3, finalists: 0")


@pytest.mark.parametrize(
    "text", [SLOW, pytest.param(TPE, marks=pytest.mark.slow)], ids=["listed", "tpe"]
)
def test_two_workers_and_ctrl_c_find_what_one_worker_finds(tmp_path, unbroken, text):
    run = place(tmp_path, text)
    with running(tmp_path, 2, until=r"^\[3/") as process:
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 130
    assert gone(run) == []
    assert "Traceback" not in said
    assert "The same command continues" in said
    partly = outcome(opened(run))
    safe = int(re.search(r"(\d+) finished trials are safe", said).group(1))
    assert 3 <= safe <= len(partly) < len(unbroken(text))
    finish(tmp_path, 2)
    whole = outcome(opened(run))
    assert whole == unbroken(text)
    assert partly.items() <= whole.items()
    assert len({result[0] for result in whole.values()}) == len(whole)


def test_the_model_was_really_asked(unbroken):
    experiment = parse(TPE, overrides=("search.strategy=random",))
    by_chance = Proposals(experiment, 8)
    keys = [by_chance.propose(i, {}, {}).genome.key for i in range(24)]
    found = [result[0] for result in unbroken(TPE).values()]
    assert found[:18] == keys[:18]
    assert found[18:] != keys[18:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_five_kills_at_random_moments_change_nothing(tmp_path, unbroken, seed):
    text = SLOW.replace("steps: 60", "steps: 200")
    run = kill_and_restart(tmp_path, text, random_moments(seed, start=4, work=0.4))
    study = opened(run)
    assert outcome(study) == unbroken(text)
    lost = [trial for trial in study.trials() if trial.state is TrialState.FAIL]
    assert lost, "no kill hit a trial in work"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_five_kills_of_the_quickstart_change_nothing(tmp_path, tmp_path_factory, seed):
    text, _ = read_space("quickstart")
    still = tmp_path_factory.mktemp("still")
    run = place(still, text)
    finish(still, 2)
    again = kill_and_restart(tmp_path, text, random_moments(seed, start=10, work=30))
    assert outcome(opened(again)) == outcome(opened(run))


def test_killed_workers_are_replaced(tmp_path, unbroken):
    """First one of them, later all."""
    run = place(tmp_path, SLOW)
    with running(tmp_path, 2, until=r"^\[1/") as process:
        victims = workers_on(run.relative_to(tmp_path), tmp_path)[:1]
        os.kill(victims[0], signal.SIGKILL)
        for line in process.stdout:
            if line.startswith("[4/"):
                victims += workers_on(run.relative_to(tmp_path), tmp_path)
                for victim in victims[1:]:
                    os.kill(victim, signal.SIGKILL)
        assert process.wait(timeout=60) == 0
    assert len(victims) >= 2
    assert not any(alive(victim) for victim in victims)
    assert outcome(opened(run)) == unbroken(SLOW)


def test_a_second_run_of_the_same_directory_is_refused(tmp_path):
    run = place(tmp_path, SLOW)
    with running(tmp_path, 1, until=r"^\[1/"):
        second = start(tmp_path, 1)
        said = second.communicate(timeout=60)[0]
        assert second.returncode == 3
        assert "archsearch show" in said
    assert gone(run) == []

"""Whatever a genome does to its worker becomes the trial's result, and the study goes on."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from optuna.trial import TrialState, create_trial

import archsearch
from archsearch import memory
from archsearch.blocks.swiglu import SwiGLU
from archsearch.errors import RunError
from archsearch.export import export
from archsearch.rules import cached_cost
from archsearch.search.lease import me
from archsearch.search.run import Coordinator, Run, prepare
from archsearch.space_yaml import parse
from tests.search.helpers import (
    LARGE,
    LISTED,
    alive,
    begin,
    opened,
    outcome,
    process,
    searched,
    worker,
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A finished run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    searched(folder, LISTED)
    return folder


def misbehave(monkeypatch, harm):
    """Let every SwiGLU of the multiplier in `harm` do what it says instead of its work."""
    forward = SwiGLU.forward

    def instead(self, x_BTD, ctx):
        mult = self.up.out_features // self.up.in_features
        return harm[mult](x_BTD) if mult in harm else forward(self, x_BTD, ctx)

    monkeypatch.setattr(SwiGLU, "forward", instead)


def raising(error):
    def harm(x_BTD):
        raise error

    return harm


@pytest.mark.parametrize(
    ("harm", "status", "reason"),
    [
        (lambda x: x * float("nan"), "diverged", "nan"),
        (lambda x: x * float("inf"), "diverged", ""),
        (raising(MemoryError("no room")), "oom", "no room"),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), "oom", "memory"),
        (raising(RuntimeError("DefaultCPUAllocator: not enough memory: 8 bytes")), "oom", "8"),
        (raising(ValueError("odd width")), "invalid", "ValueError: odd width"),
        (raising(KeyError("nothing")), "invalid", "KeyError"),
        (raising(AssertionError()), "invalid", "AssertionError"),
        (raising(RecursionError("too deep")), "invalid", "too deep"),
        (lambda x: x[:, :-1], "invalid", "RuntimeError"),
        (lambda x: None, "invalid", "TypeError"),
    ],
)
def test_what_a_block_does_wrong_is_the_result_of_its_trials_alone(
    folder, monkeypatch, unbroken, harm, status, reason
):
    misbehave(monkeypatch, {3: harm})
    searched(folder, LISTED)
    study, normal = opened(folder), outcome(opened(unbroken))
    records = study.records()
    assert sorted(records) == list(range(12))
    assert len({r.genome.key for r in records.values()}) == 12
    for index, record in records.items():
        if dict(record.genome.genes[0].params)["mult"] != 3:
            assert outcome(study)[index] == normal[index]
            continue
        assert record.status == status
        assert record.why
        assert reason in record.why
        trial = study.trials()[record.number]
        if status == "diverged":
            assert trial.state is TrialState.COMPLETE
            assert (record.score, record.values[0]) == (0, 0)
            assert record.values[1] == cached_cost(record.genome, 15).params
        else:
            assert trial.state is TrialState.FAIL
            assert record.values == ()
    assert all(r.status == "ok" for r in study.front())


def test_what_does_not_fit_fails_at_once_with_its_reason_and_is_tried_once(
    folder, monkeypatch, unbroken
):
    normal, whole = outcome(opened(unbroken)), opened(unbroken).records()
    needs = {index: record.attrs["memory_bytes"] for index, record in whole.items()}
    there = sorted(needs.values())[6]
    monkeypatch.setattr(memory, "machine_bytes", lambda: there)
    study = searched(folder, LISTED)
    records = study.records()
    assert {i for i, r in records.items() if r.status == "oom"} == {
        i for i, need in needs.items() if need > there
    }  # fmt: skip
    assert len({r.genome.key for r in records.values()}) == 12
    for index, record in records.items():
        if record.status != "oom":
            assert outcome(study)[index] == normal[index]
            continue
        assert record.attrs["memory_bytes"] == needs[index]
        assert record.why.startswith("needs about ")
        assert (record.values, record.scores) == ((), ())
        assert study.trials()[record.number].state is TrialState.FAIL


def test_a_study_in_which_every_trial_fails_comes_to_its_end(folder, monkeypatch):
    misbehave(monkeypatch, dict.fromkeys(range(1, 5), raising(ValueError("broken"))))
    study = searched(folder, LISTED)
    assert len(study.records()) == 12
    assert study.front() == []
    assert study.best() is None


def test_weights_are_kept_for_the_front_alone_and_rebuild_its_models(unbroken, tmp_path):
    study = opened(unbroken)
    front = {record.genome.key: record for record in study.front()}
    assert {path.name for path in (unbroken / "weights").iterdir()} == set(front)
    assert len(front) < len(study.records())
    for key, record in front.items():
        export(record.genome, unbroken / "weights" / key, tmp_path / key)
        assert archsearch.load(tmp_path / key).genome == record.genome


def test_every_trial_tells_its_beginning_its_steps_and_its_end(folder):
    begin(folder, LISTED)
    events = []
    worker(folder, emit=events.append).work()
    study = opened(folder)
    for index, record in study.records().items():
        mine = [event for event in events if event["index"] == index]
        assert [event["event"] for event in mine] == ["begin", "step", "step", "end"]
        assert mine[0]["key"] == record.genome.key
        assert [event["accuracy"] for event in mine[1:3]] == list(record.scores)
        assert [event["done"] for event in mine[1:3]] == [0.5, 1.0]
        assert (mine[3]["status"], mine[3]["score"]) == (record.status, record.score)


@pytest.mark.parametrize("cost", ["d_model", "params"])
def test_a_trial_is_pruned_exactly_when_half_of_the_earlier_beat_it(folder, cost):
    text = LARGE.replace("evals: 2", "evals: 4").replace("minimize: params", f"minimize: {cost}")
    study = searched(folder, text, "search.strategy=random", "search.trials=26")
    records, lag = study.records(), study.about["lag"]
    for index, record in records.items():
        earlier = [records[i] for i in range(index - lag + 1)]
        cheaper = [r for r in earlier if r.attrs[cost] <= record.attrs[cost]]

        def beaten(stretch, record=record, earlier=earlier, cheaper=cheaper):
            """Whether a trial is hopeless by the words of the documentation."""
            if stretch < 2 or len(earlier) < 5:
                return False
            score = record.scores[stretch - 1]
            return 2 * sum(r.scores[:stretch][-1] > score for r in cheaper) > len(earlier)

        judged = [beaten(stretch) for stretch in range(1, len(record.scores) + 1)]
        pruned = len(judged) < 4
        assert not any(judged[: len(judged) - 1])
        assert not pruned or judged[-1]
        assert (record.status == "pruned") == pruned
        if record.status == "pruned":
            assert "scored higher and cost no more" in record.why
            assert study.trials()[record.number].state is TrialState.PRUNED
    count = sum(record.status == "pruned" for record in records.values())
    assert count > 2 if cost == "d_model" else count < 3


def test_pruning_can_be_switched_off(folder):
    study = searched(folder, LARGE, "search.strategy=random", "search.prune=none")
    assert {record.status for record in study.records().values()} == {"ok"}


def test_objectives_may_combine_score_and_cost(folder):
    goals = "objectives: [{maximize: score - params / 1M}, {minimize: loss * 2}]"
    text = LISTED.replace("objectives: [{maximize: score}, {minimize: params}]", goals)
    study = searched(folder, text)
    for record in study.records().values():
        params, loss = record.attrs["params"], record.attrs["loss"]
        assert record.values == pytest.approx((record.score - params / 1e6, loss * 2), rel=1e-12)


def test_an_objective_without_a_value_makes_the_trial_invalid(folder):
    goals = "objectives: [{maximize: score / state_bytes}]"
    text = LISTED.replace("objectives: [{maximize: score}, {minimize: params}]", goals)
    study = searched(folder, text)
    assert len(study.records()) == 12
    for record in study.records().values():
        assert record.status == "invalid"
        assert "score / state_bytes" in record.why


def test_an_exhausted_space_ends_the_search_and_says_why(folder):
    text = LARGE.replace("objectives", "require: ['layers <= 1', 'params < 1000']\nobjectives")
    study, made = begin(folder, text)
    events = []
    worker(folder, emit=events.append).work()
    assert events[-1]["event"] == "exhausted"
    assert "trained before" in events[-1]["why"]
    done = outcome(study)
    assert 1 < len(done) < 22
    seen = []
    coordinator = Coordinator(Run(folder), study.experiment(), study, made, 1)
    coordinator.go(seen.append)
    assert "trained before" in coordinator.exhausted
    assert outcome(opened(folder)) == done


def test_no_trial_starts_after_the_time_is_over(folder):
    begin(folder, LISTED)
    worker(folder).work(until=time.time() - 1)
    assert opened(folder).trials() == []


def test_a_worker_that_waits_for_a_lost_trial_does_it_itself(folder, unbroken):
    """Trial 0 is in work elsewhere; 8 needs its result, and its place is already queued."""
    study, _ = begin(folder, LISTED)
    elsewhere = subprocess.Popen(["sleep", "600"])
    owner = me() | {"pid": elsewhere.pid, "born": int(process(elsewhere.pid)[19])}
    for index in range(9):
        trial = study.optuna.ask()
        if index == 0:
            trial.set_user_attr("owner", owner | {"seen": time.time()})
        else:
            study.optuna.tell(trial, state=TrialState.FAIL)
    queued = create_trial(state=TrialState.WAITING, user_attrs={"index": 8})
    study.optuna.add_trial(queued)
    work = threading.Thread(target=worker(folder).work, daemon=True)
    work.start()
    deadline = time.time() + 60
    while not any(t.user_attrs.get("owner", {}).get("pid") == me()["pid"] for t in study.trials()):
        assert time.time() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    elsewhere.send_signal(signal.SIGKILL)
    elsewhere.wait()
    work.join(timeout=60)
    assert not work.is_alive()
    assert outcome(opened(folder)) == outcome(opened(unbroken))


def test_a_folder_that_cannot_be_written_ends_the_worker_and_not_the_trial(folder, unbroken):
    begin(folder, LISTED)
    blocked = folder / "weights"
    blocked.write_text("a file is in the way")
    for _ in range(4):
        with pytest.raises(RunError, match="cannot be written") as caught:
            worker(folder).work()
        assert str(folder) in str(caught.value)
    assert outcome(opened(folder)) == {}
    blocked.unlink()
    worker(folder).work()
    assert outcome(opened(folder)) == outcome(opened(unbroken))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, folder):
    """A database for a study. Optuna never closes its pool of connections."""
    if request.param == "sqlite":
        yield f"sqlite:///{folder}.db"
    else:
        yield request.getfixturevalue("postgresql")
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_study_in_a_database_is_the_same(folder, unbroken, url):
    prepare(parse(LISTED), Run(folder, url), 1)

    def stop(event):
        if event["event"] == "step" and event["index"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker(folder, place=url, emit=stop).work()
    assert sorted(opened(folder, url).records()) == list(range(5))
    worker(folder, place=url).work()
    assert outcome(opened(folder, url)) == outcome(opened(unbroken))


def test_workers_die_with_the_process_that_started_them(folder):
    """Checked on the coordinator in `test_resume`; here on its pipe alone."""
    begin(folder, LISTED, "recipe.steps=100000")
    command = [sys.executable, "-m", "archsearch", "worker", str(folder)]
    child = subprocess.Popen(
        [*command, "--study", "listed", "--dir", str(folder), "--events"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "begin" in child.stdout.readline()
    assert alive(child.pid)
    child.stdin.close()
    assert child.wait(timeout=20) == 1
    child.stdout.close()


def test_the_study_knows_what_computed_each_trial(unbroken):
    for record in opened(unbroken).records().values():
        assert set(record.attrs["backends"].values()) <= {"torch"}

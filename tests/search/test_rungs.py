"""Rungs: who waits, who goes on, and that whoever goes on does not start again."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome
from archsearch.search.rungs import NEW, Schedule
from archsearch.space_yaml import dump, parse
from archsearch.trial import run_trial
from tests.search.helpers import LARGE, begin, opened, outcome, searched, worker

RUNGS = LARGE.replace("steps: 4, evals: 2", "steps: 18, evals: 9").replace(
    "trials: 22", "trials: 20, rungs: [2, 6], strategy: evolution"
)
"""Two objectives, two rungs."""
DIES = """
import os, signal, sys
from pathlib import Path
from tests.search.helpers import worker

def die(event):
    if event["event"] == "step" and event["index"] == int(sys.argv[2]):
        die.seen = getattr(die, "seen", 0) + 1
        if die.seen == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

worker(Path(sys.argv[1]), emit=die).work()
"""
"""A worker that is killed after so many stretches of one trial."""


def schedule(trials=30, waits=2, keep=1 / 3, lag=4, always=0):
    return Schedule(trials, lag, waits, keep, lambda record: record.values, always)


def played(made, results, order=None):
    """Let trials end in some order until none is left; the records by place.

    `results` tells the values of a genome at a rung, by its ordinal.
    """
    records, order = {}, order or random.Random(0)
    while True:
        made.extend(records, {})
        open_places = [i for i in range(len(made.places)) if i not in records]
        if not open_places:
            assert made.over
            return records
        index = order.choice(open_places)
        place, genome = made.places[index], made.ordinal(made.origin(index))
        values = results(genome, place.rung)
        status = "failed" if not values else "paused" if place.rung < made.waits else "ok"
        records[index] = SimpleNamespace(index=index, status=status, values=values)


def scores(seed, kinds=1, failing=0.0):
    """A table of results: better with every rung, sometimes none."""

    def results(genome, rung):
        rng = random.Random(f"{seed} {genome}")
        if rng.random() < failing:
            return ()
        return tuple(rng.random() - 0.1 * rung + 0.05 * rng.random() for _ in range(kinds))

    return results


cases = {
    "seed": st.integers(0, 10**6), "trials": st.integers(1, 40), "waits": st.integers(1, 3),
    "keep": st.sampled_from([1 / 4, 1 / 3, 1 / 2]), "lag": st.integers(1, 12),
    "kinds": st.integers(1, 2), "failing": st.sampled_from([0.0, 0.3]),
}  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(**cases)
def test_the_order_in_which_trials_end_changes_nothing(
    seed, trials, waits, keep, lag, kinds, failing
):
    made = [schedule(trials, waits, keep, lag) for _ in range(3)]
    for i, one in enumerate(made):
        played(one, scores(seed, kinds, failing), random.Random(i))
    assert made[0].places == made[1].places == made[2].places


@settings(deadline=None, max_examples=60)
@given(**cases)
def test_every_genome_begins_once_and_goes_on_rung_by_rung_if_it_is_among_the_best(
    seed, trials, waits, keep, lag, kinds, failing
):
    made = schedule(trials, waits, keep, lag)
    records = played(made, scores(seed, kinds, failing))
    new = [i for i, place in enumerate(made.places) if place == NEW]
    assert len(new) == trials
    continued = [place.continues for place in made.places if place != NEW]
    assert len(continued) == len(set(continued))
    for index, place in enumerate(made.places):
        if place == NEW:
            continue
        before = made.places[place.continues]
        assert (before.rung + 1, records[place.continues].status) == (place.rung, "paused")
        assert place.continues < index
    for rung in range(waits):
        among = [i for i, place in enumerate(made.places) if place.rung == rung]
        most = int(len(among) * keep + 1e-9)
        waiting = [i for i in among if records[i].status == "paused" and i not in continued]
        if kinds == 1:
            ranked = sorted((i for i in among if records[i].values),
                            key=lambda i: (records[i].values, i))  # fmt: skip
            assert not {*ranked[:most]} & {*waiting}, "one of the best was left behind"
        assert len({*among} & {*continued}) >= min(most, len({*among} & {*continued, *waiting}))


def test_without_rungs_every_place_is_a_new_genome_and_known_a_lag_before():
    made = schedule(trials=10, waits=0, lag=4)
    made.extend({}, {})
    assert made.places == [NEW] * 4
    assert (made.total, made.over) == (10, False)
    records = played(made, scores(0))
    assert sorted(records) == list(range(10))


def test_a_late_genome_that_is_the_best_goes_on_to_the_end():
    made = schedule(trials=12, waits=2)
    records = played(made, lambda genome, rung: (-float(genome),))
    reached = {made.ordinal(made.origin(i)) for i, r in records.items() if r.status == "ok"}
    assert 11 in reached


def test_invited_genomes_go_on_whatever_they_reach():
    worst_first = lambda genome, rung: (-float(genome),)  # noqa: E731
    for always in (0, 2):
        made = schedule(trials=20, always=always)
        records = played(made, worst_first)
        reached = {made.ordinal(made.origin(i)) for i, r in records.items() if r.status == "ok"}
        assert ({0, 1} <= reached) == (always == 2)


def test_what_has_begun_stays_when_the_budget_grows():
    made = schedule(trials=6, lag=1)
    records = played(made, scores(1))
    begun = dict(enumerate(made.places))
    more = schedule(trials=9, lag=1)
    more.extend(records, begun)
    assert more.places[: len(begun)] == made.places
    assert not more.over
    assert more.total == len(begun) + 3


def test_trials_that_cannot_go_on_any_more_are_known():
    made = schedule(trials=30)
    records = {}
    results = scores(3)
    while not made.over:
        made.extend(records, {})
        stuck = made.stuck(records)
        for index in set(range(len(made.places))) - set(records):
            assert made.places[index].continues not in stuck
            place = made.places[index]
            values = results(made.ordinal(made.origin(index)), place.rung)
            status = "paused" if place.rung < made.waits else "ok"
            records[index] = SimpleNamespace(index=index, status=status, values=values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with two objectives and two rungs, and what its worker told."""
    folder = tmp_path_factory.mktemp("rungs") / "run"
    begin(folder, RUNGS)
    events = []
    worker(folder, emit=events.append).work()
    return folder, events


def test_the_front_was_promoted_from_checkpoints_and_its_curves_continue(whole):
    folder, events = whole
    study = opened(folder)
    records = study.records()
    front = study.front()
    assert front
    assert len(study.latest()) == 20
    for record in front:
        assert record.status == "ok"
        assert len(record.scores) == 9
        stages = [record]
        while (before := stages[-1].attrs.get("continues")) is not None:
            stages.append(records[before])
        assert [len(stage.scores) for stage in stages] == [9, 3, 1]
        assert [stage.status for stage in stages] == ["ok", "paused", "paused"]
        for later, earlier in pairwise(stages):
            assert later.genome == earlier.genome
            assert later.params == earlier.params
            assert later.scores[: len(earlier.scores)] == earlier.scores
            steps = [e["step"] for e in events if (e["event"], e["index"]) == ("step", later.index)]
            assert steps[0] == 2 * (len(earlier.scores) + 1), "it started again"
        unbroken = run_trial(record.genome, study.experiment().tasks, study.experiment().recipe, 0)
        assert unbroken.scores == record.scores
        assert unbroken.loss == record.loss


def test_optuna_sees_trials_that_wait_as_pruned_and_the_front_alone_as_best(whole):
    study = opened(whole[0])
    for trial in study.trials():
        waits = trial.user_attrs["status"] == "paused"
        assert (trial.state is TrialState.PRUNED) == waits
        assert trial.user_attrs["rung"] == (2 if not waits else trial.user_attrs["rung"])
    best = {trial.number for trial in study.optuna.best_trials}
    assert best == {record.number for record in study.front()}


def test_checkpoints_are_left_of_those_alone_that_may_go_on_if_the_budget_grows(whole):
    study = opened(whole[0])
    left = {path.stem for path in (whole[0] / "checkpoints").iterdir()}
    waiting = {r.genome.key: r.attrs["rung"] for r in study.latest() if r.status == "paused"}
    assert left <= {*waiting}
    assert sum(waiting[key] == 0 for key in left) <= 20 // 3
    assert len(left) < len(waiting)


def test_without_its_checkpoint_a_trial_starts_again_to_the_same_end(tmp_path, whole):
    folder = tmp_path / "run"
    begin(folder, RUNGS)
    began = []

    def lose(event):
        if event["event"] == "end":
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if event["event"] == "step" and event["step"] == 2:
            began.append(event["index"])

    worker(folder, emit=lose).work()
    study = opened(folder)
    assert outcome(study) == outcome(opened(whole[0]))
    assert {i for i, r in study.records().items() if "continues" in r.attrs} <= {*began}


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_counts_as_none(tmp_path, whole, damage):
    folder = tmp_path / "run"
    begin(folder, RUNGS, "search.trials=20")

    def harm(event):
        if event["event"] == "end":
            for file in (folder / "checkpoints").glob("*.pt"):
                file.write_bytes(file.read_bytes()[:200] if damage is None else damage)

    worker(folder, emit=harm).work()
    assert outcome(opened(folder)) == outcome(opened(whole[0]))


def test_a_killed_worker_loses_no_more_than_the_steps_since_its_last_checkpoint(tmp_path, whole):
    text = RUNGS.replace(", rungs: [2, 6]", "").replace("trials: 20", "trials: 3")
    folder = tmp_path / "run"
    begin(folder, text)
    done = subprocess.run([sys.executable, "-c", DIES, str(folder), "1", "5"])
    assert done.returncode == -signal.SIGKILL
    events = []
    worker(folder, emit=events.append).work()
    steps = [e["step"] for e in events if (e["event"], e["index"]) == ("step", 1)]
    assert steps == [10, 12, 14, 16, 18], "four of five stretches were safe"
    assert outcome(opened(folder)) == outcome(searched(tmp_path / "unbroken", text))


def test_one_worker_two_and_an_interrupted_one_find_the_same(tmp_path, whole):
    folder = tmp_path / "run"
    begin(folder, RUNGS)

    def stop(event):
        if event["event"] == "step" and event["index"] == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker(folder, emit=stop).work()
    command = [sys.executable, "-m", "archsearch", "worker", str(folder), "--study", "large"]
    both = [subprocess.Popen([*command, "--dir", str(folder)]) for _ in range(2)]
    assert [child.wait(timeout=120) for child in both] == [0, 0]
    assert outcome(opened(folder)) == outcome(opened(whole[0]))


def test_a_genome_for_comparison_is_trained_to_its_end_and_has_no_decisions(tmp_path):
    stranger = Genome(64, (Gene.of("attention", heads=4), Gene.of("swiglu")))
    (tmp_path / "stranger.yaml").write_text(dump(stranger))
    start = f"search.start_from=[{tmp_path}/stranger.yaml]"
    study = searched(tmp_path / "run", RUNGS, start, "search.trials=7")
    beside = [r for r in study.latest() if r.attrs.get("outside")]
    assert [(r.genome.genes, r.genome.d_model) for r in beside] == [(stranger.genes, 16)]
    assert (beside[0].status, dict(beside[0].params)) == ("ok", {})
    assert beside[0].attrs["origin"] == "start_from"
    assert all(r.params for r in study.latest() if r not in beside)


def test_a_genome_for_comparison_never_wins_however_good_it_is(tmp_path):
    (tmp_path / "stranger.yaml").write_text(dump(Genome(16, (Gene.of("attention", heads=2),))))
    goals = "objectives: [{maximize: state_bytes}, {maximize: score}]"
    text = RUNGS.replace("objectives: [{maximize: score}, {minimize: params}]", goals)
    start = f"search.start_from=[{tmp_path}/stranger.yaml]"
    study = searched(tmp_path / "run", text, start, "search.trials=7", "search.rungs=[]")
    records = study.records().values()
    top = max(records, key=lambda r: r.values[0])
    assert top.attrs["outside"]
    assert top not in study.front()
    assert study.best() != top
    assert top not in study.finalists(10)
    assert {t.number for t in study.optuna.best_trials} == {r.number for r in study.front()}


def test_one_objective_is_reported_to_optuna_at_every_stretch(tmp_path):
    text = RUNGS.replace(", {minimize: params}", "").replace("trials: 20", "trials: 9")
    study = searched(tmp_path / "run", text)
    for trial in study.trials():
        scores = [trial.intermediate_values[k] for k in sorted(trial.intermediate_values)]
        assert scores == trial.user_attrs["scores"]
    reached = [r.score for r in study.latest() if r.attrs["rung"] == 2]
    assert study.best().score == max(reached)


@pytest.mark.parametrize(
    ("rungs", "said"),
    [
        ("[3]", "no trial can wait after 3 steps"),
        ("[18]", "no trial can wait after 18 steps"),
        ("[6, 2]", "rungs rise; 2 stands after 6"),
        ("[6, 6]", "rungs rise"),
        ("[a]", "expected"),
    ],
)
def test_rungs_that_cannot_be_are_refused_with_those_that_can(rungs, said):
    with pytest.raises(SpaceError) as caught:
        parse(RUNGS.replace("[2, 6]", rungs))
    assert said in str(caught.value)
    if "no trial" in said:
        assert "2, 4, 6, 8, 10, 12, 14, 16" in str(caught.value)


def test_rungs_cannot_change_on_the_way(tmp_path):
    from archsearch.errors import RunError

    begin(tmp_path / "run", RUNGS)
    with pytest.raises(RunError, match="rungs"):
        begin(tmp_path / "run", RUNGS.replace("[2, 6]", "[2, 8]"))

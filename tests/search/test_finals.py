"""Finals: fresh seeds decide, the same whatever happens; who cannot be told apart is a group."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial
from scipy.stats import t as student

from archsearch.errors import RunError
from archsearch.genome import Gene, Genome
from archsearch.rules import cached_cost
from archsearch.search.finals import Fresh, from_plain, interval, merged, to_plain
from archsearch.search.fresh import missing, recall, remember, train
from archsearch.search.study import Study
from archsearch.space_yaml import parse
from tests.search.helpers import LISTED, alive, opened, process, searched, worker

GENOMES = [Genome(8 * width, (Gene.of("swiglu", mult=2),)) for width in range(1, 9)]
"""From the cheapest to the dearest."""
TINY = LISTED.replace("steps: 4, evals: 2", "steps: 2, evals: 1")
ONE_GOAL = LISTED.replace("{maximize: score}, {minimize: params}", "{maximize: score}")


def scored(scores, text=LISTED):
    """A study whose trials got these scores, one for each genome, with a cost that grows."""
    experiment = parse(text)
    study = Study.create(InMemoryStorage(), experiment, 8)
    for genome, score in zip(GENOMES, scores, strict=False):
        cost = cached_cost(genome, experiment.context).params
        attrs = {
            "status": "ok", "why": "", "score": score, "error": 0.0,
            "params": cost, "state_bytes": 0, "genome_json": json.dumps(genome.to_json()),
        }  # fmt: skip
        values = [score, cost][: len(experiment.goals)]
        study.optuna.add_trial(
            create_trial(state=TrialState.COMPLETE, values=values, user_attrs=attrs)
        )
    return study


def outcomes(study, scores):
    """Fresh trainings with these scores, a list of them for each trial."""
    known = {}
    for index, values in scores.items():
        genome = study.records()[index].genome
        known[genome.key] = {k: Fresh(v, 1.0, None) for k, v in enumerate(values)}
    return known


def held(study, scores):
    """A study with the finals of those trials behind it."""
    seeds = len(next(iter(scores.values())))
    study.keep_finals(len(scores), seeds, outcomes(study, scores))
    return study


def indices(finalists):
    return [finalist.record.index for finalist in finalists]


def test_a_lucky_candidate_loses_to_a_better_one_on_fresh_seeds():
    """Trial 0 was lucky; without the finals it is named the best."""
    luck, truth = [0.9, 0.8, 0.7], {0: [0.5, 0.52, 0.51], 1: [0.8, 0.81, 0.79], 2: [0.7, 0.7, 0.71]}
    study = scored(luck)
    assert study.best().index == 0
    assert study.finals() is None
    held(study, truth)
    finals = study.finals()
    assert indices(finals.ranked) == [1, 2, 0]
    assert indices(finals.group) == [1]
    assert study.best().index == 1


def test_two_that_differ_by_the_same_on_every_seed_are_told_apart_and_noise_is_not():
    steady = held(scored([0.8, 0.8]), {0: [0.7, 0.5, 0.9], 1: [0.71, 0.51, 0.91]}).finals()
    assert indices(steady.group) == [1]
    noisy = held(scored([0.8, 0.8]), {0: [0.7, 0.5, 0.9], 1: [0.9, 0.7, 0.53]}).finals()
    assert indices(noisy.ranked) == [1, 0]
    assert indices(noisy.group) == [1, 0]
    assert noisy.winner.record.index == 0


@pytest.mark.parametrize("poor", [[0.1, 0.8, 0.5], [0.9, 0.0, 0.91], [0.0, 0.0, 0.9]])
def test_a_cheap_candidate_of_which_little_is_known_does_not_win(poor):
    study = held(scored([0.8, 0.8]), {0: poor, 1: [0.9, 0.85, 0.92]})
    assert indices(study.finals().group) == [1, 0]
    assert study.best().index == 1


def test_with_one_objective_the_best_mean_of_a_group_wins():
    finals = held(scored([0.8, 0.8], ONE_GOAL), {0: [0.7, 0.5, 0.9], 1: [0.9, 0.7, 0.53]}).finals()
    assert indices(finals.group) == [1, 0]
    assert finals.winner.record.index == 1


scores_of_finalists = st.integers(2, 4).flatmap(
    lambda seeds: st.lists(
        st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.52, 0.9]), min_size=seeds, max_size=seeds),
        min_size=1, max_size=6,
    )
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(scores_of_finalists, st.sampled_from([LISTED, ONE_GOAL]))
def test_group_and_winner_are_what_the_intervals_say(scores, text):
    """Against Student's t of another package, written out."""
    tensor = partial(torch.tensor, dtype=torch.float64)
    study = held(scored([0.5] * len(scores), text), dict(enumerate(scores)))
    finals = study.finals()
    means = {i: sum(values) / len(values) for i, values in enumerate(scores)}
    top = finals.ranked[0].record.index
    assert means[top] == pytest.approx(max(means.values()))
    assert sorted(indices(finals.ranked)) == sorted(means)
    group = {top}
    for index, values in enumerate(scores):
        differences = tensor(scores[top]) - tensor(values)
        margin = student.ppf(0.975, len(values) - 1) * differences.std() / len(values) ** 0.5
        if abs(differences.mean() - margin) < 1e-9:
            return  # on the edge, where rounding decides
        if differences.mean() < margin:
            group.add(index)
    assert set(indices(finals.group)) == group
    near = 2 * tensor(scores[top]).std() / len(scores[top]) ** 0.5
    if any(abs(means[top] - near - mean) < 1e-9 for i, mean in means.items() if i != top):
        return
    near_top = [i for i in group if i == top or means[i] >= means[top] - near]
    winner = finals.winner.record.index
    assert winner == (min(near_top) if text == LISTED else top)
    assert study.best().index == winner


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_an_interval_is_students(values):
    mean, half = interval(values)
    data = torch.tensor(values, dtype=torch.float64)
    wanted = student.ppf(0.975, len(values) - 1) * float(data.std()) / len(values) ** 0.5
    assert (mean, half) == (pytest.approx(float(data.mean())), pytest.approx(wanted, abs=1e-12))


def test_finalists_are_the_best_of_the_front_and_of_the_others_by_turns():
    study = scored([0.9, 0.8, 0.7, 0.95, 0.6, 0.5])
    assert [record.index for record in study.front()] == [3, 0]
    assert [record.index for record in study.finalists(4)] == [3, 1, 0, 2]
    assert study.finalists(0) == []
    assert len(study.finalists(50)) == 6


def test_finals_count_only_among_the_present_finalists():
    """A search that goes on and finds better ones is judged as it scored until they were run."""
    study = held(scored([0.5, 0.4, 0.3]), {0: [0.1, 0.1], 1: [0.9, 0.9], 2: [0.2, 0.2]})
    assert study.best().index == 1
    attrs = study.trials()[0].user_attrs | {
        "score": 0.99, "genome_json": json.dumps(GENOMES[7].to_json())
    }  # fmt: skip
    study.optuna.add_trial(
        create_trial(state=TrialState.COMPLETE, values=[0.99, 1], user_attrs=attrs)
    )
    assert study.finals() is None
    assert study.best().index == 3


def test_a_finalist_that_fails_on_fresh_seeds_never_wins():
    study = scored([0.9, 0.5])
    known = outcomes(study, {0: [0.9, 0.9], 1: [0.5, 0.5]})
    known[GENOMES[0].key] = {k: Fresh(0.0, 1e3, None, "the loss is nan") for k in range(2)}
    study.keep_finals(2, 2, known)
    assert study.best().index == 1


def test_what_is_kept_in_a_study_comes_back_as_it_was():
    known = {"a": {0: Fresh(0.5, 1.0, None, "why"), 2: Fresh(1.0, 0.1, 0.25)}, "b": {}}
    assert from_plain(json.loads(json.dumps(to_plain(known)))) == known
    other = {"a": {1: Fresh(0.1, 1.0, None)}}
    assert sorted(merged(known, other)["a"]) == [0, 1, 2]


def test_finals_are_the_same_with_any_number_of_processes_and_after_an_interruption(tmp_path):
    experiment, genomes = parse(TINY), GENOMES[:3]
    whole, parts = {}, {}
    train(experiment, genomes, 2, 1, whole, weights=tmp_path)
    assert {(key, k) for key, of in whole.items() for k in of} == {
        (genome.key, k) for genome in genomes for k in range(2)
    }
    assert len({fresh for of in whole.values() for fresh in of.values()}) == 6
    assert all(0 <= fresh.harder <= 1 for of in whole.values() for fresh in of.values())
    assert {path.name for path in tmp_path.iterdir()} == {genome.key for genome in genomes}

    def interrupt(*told):
        if sum(map(len, parts.values())) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(experiment, genomes, 2, 2, parts, interrupt)
    assert len(missing(genomes, 2, parts)) == 4
    told = []
    train(experiment, genomes, 2, 2, parts, lambda genome, k, *_: told.append((genome.key, k)))
    assert len(told) == 4
    assert parts == whole
    once = {genomes[0].key: {0: Fresh(2.0, 0.0, None)}}
    train(experiment, genomes[:1], 1, 1, once)
    assert once == {genomes[0].key: {0: Fresh(2.0, 0.0, None)}}


def test_a_search_that_goes_on_keeps_the_weights_of_finalists(tmp_path):
    study = searched(tmp_path, LISTED, "search.trials=2")
    keys = {record.genome.key for record in study.records().values()}
    study.keep_finals(2, 2, {key: {0: Fresh(0.5, 1.0, None)} for key in keys})
    for key in keys:
        (tmp_path / "weights" / key).mkdir(exist_ok=True)
    worker(tmp_path, 12).work()
    kept = {path.name for path in (tmp_path / "weights").iterdir()}
    assert kept == keys | {record.genome.key for record in opened(tmp_path).front()}
    assert len(kept) < 12


def test_a_process_that_dies_ends_the_finals_in_words_and_costs_what_it_was_doing():
    def kill(*told):
        for child in active_children():
            child.kill()

    known = {}
    with pytest.raises(RunError, match="enough memory for 1"):
        train(parse(TINY, overrides=("recipe.steps=50",)), GENOMES[:3], 2, 1, known, kill)
    assert 1 <= sum(map(len, known.values())) < 6


@dataclasses.dataclass(frozen=True)
class Echo:
    """Say every token again; the harder version has more ids than the model knows, or none."""

    unreadable: bool = True
    name: str = "echo"
    vocab: int = 4
    readout: str = "token"
    length: int = 6
    chance: float = 0.25

    def harder(self):
        return dataclasses.replace(self, vocab=400) if self.unreadable else None

    def sample(self, n, rng, *, train=False):
        rows_BT = torch.randint(self.vocab, (n, self.length), generator=rng)
        return rows_BT, rows_BT.clone()


def test_a_model_that_cannot_read_harder_rows_is_not_measured_and_keeps_its_score():
    for unreadable in (True, False):
        known = {}
        odd = dataclasses.replace(parse(TINY), tasks=(Echo(unreadable),))
        train(odd, GENOMES[:1], 1, 1, known)
        (fresh,) = known[GENOMES[0].key].values()
        assert fresh.harder is None
        assert (fresh.score > 0, fresh.why) == (True, "")


def test_memory_of_fresh_trainings_is_for_the_same_tasks_recipe_and_seed(tmp_path):
    study = searched(tmp_path / "run", TINY, "search.trials=1")
    experiment, known = study.experiment(), {"key": {0: Fresh(0.5, 1.0, 0.25)}}
    remember(tmp_path, experiment, known)
    assert recall(tmp_path, study) == known
    for override in ("recipe.steps=3", "search.seed=1", "tasks.use=[mad/compression]"):
        remember(tmp_path, parse(TINY, overrides=(override,)), known)
        assert recall(tmp_path, study) == {}
    (tmp_path / "fresh.json").write_text("{")
    assert recall(tmp_path, study) == {}
    study.keep_finals(1, 2, {study.records()[0].genome.key: {0: Fresh(0.5, 1.0, 0.25)}})
    assert recall(tmp_path, study) == study.fresh != {}


def test_what_is_known_of_each_task_is_not_lost_to_a_study_that_kept_the_mean(tmp_path):
    study = searched(tmp_path / "run", TINY, "search.trials=1")
    key = study.records()[0].genome.key
    study.keep_finals(1, 2, {key: {0: Fresh(0.5, 1.0, 0.25)}})
    each = {key: {0: Fresh(0.5, 1.0, 0.25, "", (0.4, 0.6))}}
    remember(tmp_path, study.experiment(), each)
    assert recall(tmp_path, study) == each


PATIENCE = 150
"""Seconds that a process may take to begin or to end on a busy machine."""
LONG = """\
import sys
from archsearch.search.fresh import train
from archsearch.space_yaml import parse
from tests.search.test_finals import GENOMES, TINY
if __name__ == "__main__":
    train(parse(TINY, overrides=("recipe.steps=1000000",)), GENOMES, 2, 1, {})
"""


def children(pid):
    """The living processes that a process started."""
    numbers = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [n for n in numbers if process(n)[1:2] == [str(pid)] and alive(n)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_no_training_outlives_the_process_that_asked_for_it(tmp_path, number):
    script = tmp_path / "long.py"
    script.write_text(LONG)
    parent = subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    started = children(parent.pid)
    deadline = time.time() + PATIENCE
    while len(started) < 2 and time.time() < deadline:  # a training, and multiprocessing's tracker
        time.sleep(0.1)
        started = children(parent.pid)
    assert len(started) == 2
    time.sleep(1)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.kill()
    said = parent.communicate(timeout=PATIENCE)[1]
    deadline = time.time() + PATIENCE
    while any(map(alive, started)) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, started))
    assert said.count("Traceback") <= 1, said

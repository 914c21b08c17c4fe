"""A study is begun once, refuses another space, and names the trials that no other beats."""

from __future__ import annotations

import json
import subprocess
import sys

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from archsearch.errors import RunError
from archsearch.genome import Gene, Genome
from archsearch.search.lease import reap
from archsearch.search.storage import JOURNAL, open_storage
from archsearch.search.study import Study, indexed
from archsearch.space_yaml import dump, parse
from tests.search.helpers import LISTED, begin, opened, outcome, searched, worker

SHORT = LISTED.replace("trials: 12", "trials: 3")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def contents(folder):
    """Every file of a run directory but its locks, byte for byte."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_opening_again_changes_nothing(folder):
    begin(folder, LISTED)
    before = contents(folder)
    begin(folder, LISTED, workers=2)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("line", "other", "named"),
    [
        ("steps: 4", "steps: 5", "steps"),
        ("vocab: 8", "vocab: 10", "vocab"),
        ("{minimize: params}", "{minimize: flops}", "flops"),
        ("search: {trials: 12}", "search: {trials: 12, seed: 1}", "seed"),
    ],
)
def test_another_space_is_refused_with_what_differs_and_nothing_is_changed(
    folder, line, other, named
):
    begin(folder, LISTED)
    before = contents(folder)
    with pytest.raises(RunError) as caught:
        begin(folder, LISTED.replace(line, other))
    assert caught.value.exit_code == 3
    for word in (named, "--name", "Nothing was changed"):
        assert word in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("trials: 12", "trials: 20"),
        ("trials: 12", "trials: 12, strategy: random, prune: none, time: 1h"),
        ("name: listed", "notes: other words\nname: listed"),
        ("version: 1", "# a comment\nversion: 1"),
    ],
)
def test_budget_and_hints_may_change_and_the_newest_count(folder, line, other):
    begin(folder, LISTED)
    study, _ = begin(folder, LISTED.replace(line, other))
    wanted = parse(LISTED.replace(line, other))
    assert opened(folder).experiment().search == wanted.search
    assert (folder / "space.yaml").read_text() == wanted.text
    assert study.about["lag"] == 8


def test_a_genome_to_start_from_is_kept_in_the_study(folder, tmp_path):
    wanted = Genome(16, (Gene.of("swiglu", mult=3, act="relu2"),))
    (tmp_path / "mine.yaml").write_text(dump(wanted))
    begin(folder, LISTED, f"search.start_from=[{tmp_path}/mine.yaml]")
    (tmp_path / "mine.yaml").unlink()
    worker(folder, 2).work()
    study = opened(folder)
    assert study.experiment().seeds == (wanted,)
    assert study.records()[0].genome == wanted
    assert study.records()[0].attrs["origin"] == "start_from"


def test_an_unknown_study_and_one_that_is_not_ours_are_refused(folder):
    begin(folder, LISTED)
    storage = open_storage(folder)
    with pytest.raises(RunError, match="no study 'other' here; known: listed"):
        Study(storage, "other")
    optuna.create_study(study_name="other", storage=storage).ask()
    with pytest.raises(RunError, match="not made by archsearch"):
        Study(storage, "other").experiment()
    with pytest.raises(RunError, match="not made by archsearch"):
        Study.create(storage, parse(LISTED, overrides=("name=other",)), 8)


def test_a_run_killed_after_any_entry_of_its_journal_ends_the_same(folder, tmp_path):
    """Every prefix of the journal of a whole run is a place where all of it may have died."""
    script = (
        "import sys; from pathlib import Path; from tests.search.helpers import searched;"
        "from tests.search.test_study import SHORT; searched(Path(sys.argv[1]), SHORT)"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True)
    whole, wanted = (folder / JOURNAL).read_bytes().splitlines(keepends=True), opened(folder)
    assert len(wanted.records()) == 3
    for end in [*range(1, 30), *range(30, len(whole), 11)]:
        again = tmp_path / str(end)
        again.mkdir()
        (again / JOURNAL).write_bytes(b"".join(whole[:end]))
        study, made = begin(again, SHORT)
        reap(study, made.total, alone=True)
        worker(again).work()
        assert outcome(opened(again)) == outcome(wanted), whole[end]


@given(
    kinds=st.lists(st.sampled_from(["fresh", "again", "beyond"]), max_size=30),
    data=st.data(),
)
def test_fresh_trials_are_numbered_without_gaps_whatever_is_repeated(kinds, data):
    study = optuna.create_study()
    fresh = 0
    for kind in kinds:
        attrs = {}
        if kind == "again" and fresh:
            attrs = {"index": data.draw(st.integers(0, fresh - 1))}
        study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attrs))
        fresh += not attrs
    pairs = indexed(study.get_trials(deepcopy=False))
    assert [i for t, i in pairs if "index" not in t.user_attrs] == list(range(fresh))
    assert all(t.user_attrs.get("index", i) == i for t, i in pairs)


trials = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
        st.integers(1, 4),
        st.sampled_from([0.0, 0.05, 0.15]),
        st.sampled_from(["ok", "ok", "ok", "diverged", "pruned", "oom"]),
    ),
    min_size=1,
    max_size=12,
)


def made_of(rows):
    """A study with these (score, cost, standard error, status)."""
    storage = InMemoryStorage()
    study = optuna.create_study(
        study_name="s", storage=storage, directions=["maximize", "minimize"]
    )
    study.set_metric_names(["score", "params"])
    for i, (score, cost, error, status) in enumerate(rows):
        genome = Genome(8 * (i + 1), (Gene.of("swiglu"),))
        done = status in ("ok", "diverged")
        state = TrialState.COMPLETE if done else TrialState.FAIL
        attrs = {
            "status": status, "why": "", "score": score, "error": error,
            "genome_json": json.dumps(genome.to_json()),
        }  # fmt: skip
        if status == "pruned":
            state = TrialState.PRUNED
        values = [score, cost] if done else None
        study.add_trial(create_trial(state=state, values=values, user_attrs=attrs))
    return Study(storage, "s")


@settings(deadline=None)
@given(rows=trials)
def test_the_front_and_the_best_say_what_they_promise(rows):
    study = made_of(rows)
    front, best = study.front(), study.best()
    usable = {i: row for i, row in enumerate(rows) if row[3] == "ok"}
    unbeaten = {
        i
        for i, (score, cost, *_) in usable.items()
        if not any(
            s >= score and c <= cost and (s, c) != (score, cost) for s, c, *_ in usable.values()
        )
    }
    assert {r.index for r in front} == unbeaten
    assert [r.score for r in front] == sorted((r.score for r in front), reverse=True)
    if not unbeaten:
        assert best is None
        return
    top = front[0]
    near = [
        r for r in front if top.score - r.score <= 2 * (top.error**2 + r.error**2) ** 0.5 + 1e-12
    ]
    assert best in near
    assert best.values[1] == min(r.values[1] for r in near)


def test_a_study_reads_the_same_in_every_process(folder):
    study = searched(folder, SHORT)
    assert outcome(study) == outcome(opened(folder))
    assert {i: r.genome for i, r in study.records().items()} == opened(folder).genomes()

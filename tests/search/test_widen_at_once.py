"""Several commands that widen one run at once, and one that dies meanwhile."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import optuna
import pytest
from rich.console import Console

from archsearch import cli
from archsearch.errors import RunError
from archsearch.search import widen as widening
from archsearch.search.revisions import newest, revisions
from archsearch.search.run import Coordinator, Run, prepare
from archsearch.search.storage import open_storage
from archsearch.search.study import Study
from archsearch.search.widen import widen
from archsearch.space_yaml import load_genome, parse
from tests.search.helpers import LISTED, opened
from tests.search.widening import WIDER, everything, on, run

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@contextmanager
def dying(monkeypatch, after):
    """Let a command die after so many trials were carried over."""
    add = optuna.Study.add_trial

    def instead(self, trial):
        if trial.number == after:
            raise KeyboardInterrupt
        add(self, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", instead)
        yield


def test_a_command_that_died_in_the_middle_is_made_up_for(folder, url, monkeypatch):
    run(folder, LISTED, url, trials=3)
    monkeypatch.setattr(widening, "PATIENCE", 0.1)
    for after in range(3):
        before = everything(opened(folder, url))
        with dying(monkeypatch, after), pytest.raises(KeyboardInterrupt):
            run(folder, WIDER, url, trials=3)
        storage = open_storage(url or folder)
        assert len(revisions(storage, "listed")) == 2 + after
        assert newest(storage, "listed") == "listed"
        assert everything(opened(folder, url)) == before
    assert run(folder, LISTED, url, trials=4) == []  # the old space goes on, too
    before = everything(opened(folder, url))
    said = run(folder, WIDER, url, trials=4)
    assert "4 trials carried over" in said[-1]
    study = opened(folder, url)
    assert everything(study) == before
    assert sorted(revisions(study.storage, "listed")) == [1, 5]
    run(folder, WIDER, url, trials=6)
    assert len({r.genome for r in opened(folder, url).records().values()}) == 6


DIES = """
import os, sys
from pathlib import Path
import optuna
from archsearch.search.run import Run, prepare
from archsearch.space_yaml import parse
from tests.search.widening import WIDER

add = optuna.Study.add_trial

def instead(self, trial):
    if trial.number == 2:
        os._exit(9)
    add(self, trial)

optuna.Study.add_trial = instead
prepare(parse(WIDER), Run(Path(sys.argv[1]), sys.argv[2]), 1)
"""


def test_nobody_waits_for_a_process_of_this_machine_that_is_dead(folder, monkeypatch):
    url = f"sqlite:///{folder}.db"
    run(folder, LISTED, url, trials=4)
    dead = subprocess.run([sys.executable, "-c", DIES, str(folder), url], env=os.environ)
    assert dead.returncode == 9
    assert len(revisions(open_storage(url), "listed")) == 2

    def sleep(seconds):
        raise AssertionError("it waits")

    monkeypatch.setattr(widening.time, "sleep", sleep)
    run(folder, WIDER, url, trials=4, work=False)
    assert len(opened(folder, url).records()) == 4
    gc.collect()


def test_a_study_of_somebody_else_is_never_deleted(finished):
    theirs = optuna.create_study(study_name="listed (2)", storage=open_storage(finished))
    theirs.ask()
    run(finished, WIDER, trials=5)
    study = opened(finished)
    assert study.name == "listed (3)"
    assert len(optuna.load_study(study_name="listed (2)", storage=study.storage).trials) == 1


@on(["sqlite", "postgresql"])
def test_of_two_commands_at_once_one_writes_and_the_other_waits(folder, url, monkeypatch):
    run(folder, LISTED, url, trials=4)
    before = everything(opened(folder, url))
    experiment = parse(WIDER, overrides=("search.trials=4",))
    add, begun, waits, said = optuna.Study.add_trial, threading.Event(), threading.Event(), []

    def slowly(self, trial):
        begun.set()
        assert waits.wait(60)
        add(self, trial)

    def say(line):
        said.append(line)
        waits.set()

    monkeypatch.setattr(optuna.Study, "add_trial", slowly)
    first = threading.Thread(
        target=lambda: widen(open_storage(url or folder), experiment, alone=False, say=print)
    )
    first.start()
    assert begun.wait(60)
    widen(open_storage(url or folder), experiment, alone=False, say=say)
    first.join()
    assert len(said) == 1
    assert "waiting" in said[0]
    storage = open_storage(url or folder)
    assert sorted(revisions(storage, "listed")) == [1, 2]
    assert everything(Study(storage, "listed")) == before


def test_the_loser_of_the_race_for_the_name_takes_what_the_winner_wrote(finished, monkeypatch):
    experiment, create = parse(WIDER), optuna.create_study

    def late(**given):
        monkeypatch.setattr(optuna, "create_study", create)
        widen(open_storage(finished), experiment, alone=False, say=print)
        return create(**given)

    monkeypatch.setattr(optuna, "create_study", late)
    said = []
    widen(open_storage(finished), experiment, alone=False, say=said.append)
    assert said == []
    assert sorted(revisions(open_storage(finished), "listed")) == [1, 2]


def test_a_coordinator_of_an_old_revision_says_where_the_run_goes_on(finished, monkeypatch):
    experiment = parse(LISTED)
    study, proposals = prepare(experiment, Run(finished), 1)
    run(finished, WIDER, trials=5)
    coordinator = Coordinator(Run(finished), experiment, study, proposals, 1)
    monkeypatch.setattr(sys, "executable", "true")  # workers that find nothing to do
    with pytest.raises(RunError, match=r"goes on as 'listed \(2\)'"):
        coordinator.go(lambda event: None)


@on(["journal", "sqlite"])
def test_every_command_finds_the_newest_revision(tmp_path, url, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = ["--storage", url] if url else []
    folder = tmp_path / "runs" / "listed"
    run(folder, LISTED, url, trials=3)
    (tmp_path / "wider.yaml").write_text(WIDER)

    def archsearch(*words):
        said = Console(file=io.StringIO(), width=300)
        for stage in (cli.search, cli.models):
            monkeypatch.setattr(stage, "console", said)
        cli.app([*words, *place], standalone_mode=False)
        return said.file.getvalue()

    if url:
        told = archsearch("run", "wider.yaml", "--trials", "4", "--workers", "1")
        assert told.count("3 trials carried over") == 1
        assert "listed (2): 4 trials" in told
    else:
        run(folder, WIDER, trials=4)
    assert "listed (2): 4 trials" in archsearch("show", "runs/listed")
    archsearch("export", "runs/listed", "out", "--trial", "3")
    wanted = opened(folder, url).records()[3].genome
    assert load_genome("out/model.yaml") == wanted

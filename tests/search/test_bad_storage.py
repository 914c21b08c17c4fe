"""A storage that is locked or gone ends a run with a sentence; what had finished is still there."""

from __future__ import annotations

import gc
import shutil
import sqlite3

import optuna
import pytest
from optuna.trial import TrialState

from archsearch.errors import RunError
from archsearch.search import storage as storing
from archsearch.search.run import Run, prepare
from archsearch.search.storage import TailLock, in_words, open_storage
from archsearch.space_yaml import parse
from tests.search.helpers import LISTED, opened, outcome, searched, worker

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
SHORT = LISTED.replace("trials: 12", "trials: 4")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """What is found where nothing goes wrong."""
    return outcome(searched(tmp_path_factory.mktemp("unbroken") / "run", SHORT))


def broken(folder, url, harm, *words):
    """Do harm while trial 2 trains; require a sentence with these words."""
    prepare(parse(SHORT), Run(folder, url), 1)
    harms = [harm]

    def emit(event):
        if event["event"] == "step" and event["index"] == 2 and harms:
            harms.pop()()

    with pytest.raises(RunError) as caught:
        worker(folder, place=url, emit=emit).work()
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 3


def mended(folder, url=""):
    """What the same command finds when the storage works again; this worker counts as dead."""
    study = opened(folder, url)
    assert sorted(study.records()) == [0, 1]
    for trial in study.trials():
        if trial.state is TrialState.RUNNING:
            study.optuna.tell(trial.number, state=TrialState.FAIL)
    worker(folder, place=url).work()
    return outcome(opened(folder, url))


def test_a_study_that_is_deleted_in_the_middle(folder, url, wanted):
    place = url or str(folder)

    def delete():
        optuna.delete_study(study_name="listed", storage=open_storage(place))

    broken(folder, url, delete, "somebody deleted it", "begins it again", place)
    with pytest.raises(RunError, match="no study 'listed' here"):
        opened(folder, url)
    prepare(parse(SHORT), Run(folder, url), 1)
    worker(folder, place=url).work()
    assert outcome(opened(folder, url)) == wanted


def test_a_directory_that_vanishes_in_the_middle(folder, wanted):
    away = folder.parent / "away"
    broken(folder, "", lambda: folder.rename(away), "cannot be written", "Finished trials are safe")
    shutil.rmtree(folder, ignore_errors=True)  # a checkpoint may have been written there
    away.rename(folder)
    assert mended(folder) == wanted


def test_a_database_that_somebody_locks_in_the_middle(folder, wanted, monkeypatch):
    monkeypatch.setattr(storing, "LOCKED", 0.1)
    url, locks = f"sqlite:///{folder}.db", []

    def lock():
        locks.append(sqlite3.connect(f"{folder}.db", isolation_level=None))
        locks[0].execute("BEGIN EXCLUSIVE")

    broken(folder, url, lock, "locked by another program", "Finished trials are safe")
    with pytest.raises(RunError, match="locked by another program"):
        prepare(parse(SHORT.replace("trials: 4", "trials: 5")), Run(folder, url), 1)
    locks[0].close()
    assert mended(folder, url) == wanted
    gc.collect()


def test_a_database_that_is_locked_altogether(folder, monkeypatch):
    monkeypatch.setattr(storing, "LOCKED", 0.1)
    folder.mkdir()
    lock = sqlite3.connect(folder / "s.db", isolation_level=None)
    lock.execute("PRAGMA locking_mode=EXCLUSIVE")
    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match="locked by another program"):
        open_storage(f"sqlite:///{folder}/s.db")
    lock.close()
    open_storage(f"sqlite:///{folder}/s.db")
    gc.collect()


def test_a_database_that_may_only_be_read(folder, wanted):
    url, read = f"sqlite:///{folder}.db", f"sqlite:///file:{folder}.db?mode=ro&uri=true"
    prepare(parse(SHORT), Run(folder, url), 1)
    worker(folder, 2, place=url).work()
    with pytest.raises(RunError, match="readonly database"):
        prepare(parse(SHORT.replace("trials: 4", "trials: 5")), Run(folder, read), 1)
    with pytest.raises(RunError, match="readonly database"):
        worker(folder, place=read).work()
    assert len(opened(folder, read).records()) == 2
    assert mended(folder, url) == wanted
    gc.collect()


def test_a_server_that_goes_away_in_the_middle(folder, wanted, postgresql):
    import psycopg

    def shut():
        with psycopg.connect(postgresql.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid <> "
                "pg_backend_pid() and datname = current_database()"
            )

    broken(folder, postgresql, shut, "postgresql", "Finished trials are safe")
    assert mended(folder, postgresql) == wanted
    gc.collect()


def test_an_error_of_ours_is_not_taken_for_a_study_that_is_gone():
    with pytest.raises(KeyError), in_words("runs/listed"):
        raise KeyError("Record")


def test_a_lock_is_let_go_of_when_its_directory_is_gone(folder):
    folder.mkdir()
    storage = open_storage(folder)
    shutil.rmtree(folder)
    with pytest.raises(RunError, match=r"journal\.log cannot be"):
        optuna.create_study(storage=storage)
    folder.mkdir()
    open_storage(folder)
    assert TailLock(folder / "journal.log").acquire()

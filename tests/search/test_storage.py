"""The journal loses nothing that was written, whoever is killed, and says what is wrong with it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import OperationalError

from archsearch.errors import RunError
from archsearch.search.storage import JOURNAL, TailLock, in_words, open_storage

WRITER = """
import resource, sys
import optuna
from archsearch.search.storage import open_storage
from archsearch.errors import RunError

folder, name, count, most = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if most:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
study = optuna.load_study(study_name="s", storage=open_storage(folder))
print("open", flush=True)
try:
    for i in range(count):
        study.set_user_attr(f"{name}/{i}", "x" * 50)
        print(f"{name}/{i}", flush=True)
except RunError as error:
    print("error", error, flush=True)
"""
"""Sets study attributes one by one and prints the name of each once it is written."""

TEARER = """
import os, signal, sys
from pathlib import Path
from archsearch.search.storage import JOURNAL, TailLock

journal = Path(sys.argv[1]) / JOURNAL
TailLock(journal).acquire()
with journal.open("ab") as file:
    file.write(b'{"op_code": 2, "worker_')
os.kill(os.getpid(), signal.SIGKILL)
"""
"""Dies with the lock in its hands and half a line in the journal."""


@pytest.fixture
def folder(tmp_path):
    """A run directory whose journal holds a study with two trials."""
    study = optuna.create_study(study_name="s", storage=open_storage(tmp_path))
    for i in range(2):
        trial = study.ask()
        trial.suggest_int("n", 0, 9)
        trial.set_user_attr("i", i)
        study.tell(trial, i)
    return tmp_path


def load(folder):
    return optuna.load_study(study_name="s", storage=open_storage(folder))


def start(script, *args):
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def written(folder):
    """Every attribute in the complete lines of the journal."""
    lines = (folder / JOURNAL).read_text().split("\n")[:-1]
    return [name for line in lines for name in json.loads(line).get("user_attr", {})]


def missing(acknowledged, folder):
    """Attributes that a writer was told are written and that are not there, or not just once."""
    there = written(folder)
    return [name for name in acknowledged if there.count(name) != 1]


def test_a_journal_cut_anywhere_opens_with_every_complete_line_and_goes_on(folder):
    journal = folder / JOURNAL
    whole = journal.read_bytes()
    first = whole.index(b"\n") + 1
    chosen = random.Random(0)
    places = {*chosen.sample(range(first, len(whole)), 60), *range(len(whole) - 40, len(whole))}
    for end in places:
        journal.write_bytes(whole[:end])
        study = load(folder)
        complete = whole[: whole.rindex(b"\n", 0, end) + 1]
        assert journal.read_bytes() == complete
        study.tell(study.ask(), 0.5)
        assert load(folder).trials[-1].value == 0.5
        assert journal.read_bytes().startswith(complete)


def test_optunas_own_lock_does_not_survive_a_torn_line(folder):
    journal = folder / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-7])
    lock = JournalFileOpenLock(str(journal))
    backend = JournalFileBackend(str(journal), lock_obj=lock)
    study = optuna.load_study(study_name="s", storage=JournalStorage(backend))
    with pytest.raises((AttributeError, AssertionError, ValueError)):
        study.ask()


@pytest.mark.parametrize(
    "damage",
    [b"garbage", b"\0\0\0\0", b"", b"[]", b"{}", b"17", b'{"op_code": 2}{"op_code": 2}', b"\xff"],
    ids=repr,
)
def test_a_damaged_line_is_named_and_nothing_is_changed(folder, damage):
    journal = folder / JOURNAL
    lines = journal.read_bytes().splitlines()
    for number in range(1, len(lines)):
        for tail in (b"", b'{"op_code": 2, "wor'):
            broken = b"\n".join([*lines[: number - 1], damage, *lines[number:]]) + b"\n" + tail
            journal.write_bytes(broken)
            with pytest.raises(RunError, match=rf"{JOURNAL}:{number}: ") as caught:
                open_storage(folder)
            assert caught.value.exit_code == 3
            assert journal.read_bytes() == broken


def test_the_way_out_that_the_error_offers_works(folder):
    journal = folder / JOURNAL
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:-2], "garbage", *lines[-2:]]) + "\n")
    with pytest.raises(RunError) as caught:
        open_storage(folder)
    command = str(caught.value).splitlines()[-1].strip()
    subprocess.run(command, shell=True, check=True, cwd=folder)
    assert len(load(folder).trials) == 2
    assert journal.read_text().splitlines() == lines[:-2]


def test_processes_that_write_at_once_lose_nothing(folder):
    writers = [start(WRITER, folder, name, 60, 0) for name in "abc"]
    said = [writer.communicate()[0].split()[1:] for writer in writers]
    assert [len(names) for names in said] == [60, 60, 60]
    everything = [name for names in said for name in names]
    assert missing(everything, folder) == []
    assert set(everything) <= set(load(folder).user_attrs)
    for names in said:
        assert [name for name in written(folder) if name in names] == names


def test_who_holds_the_lock_writes_alone(folder):
    lock = TailLock(folder / JOURNAL)
    lock.acquire()
    writer = start(WRITER, folder, "a", 3, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(timeout=3)
    assert written(folder).count("a/0") == 0
    lock.release()
    names = writer.communicate(timeout=60)[0].split()[1:]
    assert missing(names, folder) == []


def test_the_count_notices_one_lost_line(folder):
    writer = start(WRITER, folder, "a", 5, 0)
    names = writer.communicate()[0].split()[1:]
    lines = (folder / JOURNAL).read_text().splitlines(keepends=True)
    (folder / JOURNAL).write_text("".join(lines[:-3] + lines[-2:]))
    assert missing(names, folder) == ["a/2"]


def test_writers_killed_in_the_middle_take_nothing_with_them(folder):
    moments = random.Random(1)
    writers = [start(WRITER, folder, name, 10_000, 0) for name in "abcd"]
    said = [writer.stdout.readline().split()[1:] for writer in writers]
    for victim in (0, 1):
        said[victim] += [
            writers[victim].stdout.readline().strip() for _ in range(moments.randrange(5, 40))
        ]
        writers[victim].send_signal(signal.SIGKILL)
    for _ in range(3):
        torn = start(TEARER, folder)
        torn.communicate()
        assert torn.returncode == -signal.SIGKILL
        said[2] += [writers[2].stdout.readline().strip() for _ in range(20)]
    for writer, names in zip(writers, said, strict=True):
        writer.kill()
        names += [line for line in writer.communicate()[0].splitlines(keepends=False) if line]
    # The last word of a killed writer may itself be torn.
    everything = [name for names in said for name in names[:-1]]
    assert len(everything) > 60
    assert missing(everything, folder) == []
    load(folder).set_user_attr("after", 1)
    assert load(folder).user_attrs["after"] == 1


def test_a_full_disk_is_said_in_a_sentence_and_what_was_written_stays(folder):
    size = (folder / JOURNAL).stat().st_size
    writer = start(WRITER, folder, "a", 1000, size + 3000)
    lines = writer.communicate()[0].splitlines()
    assert lines[-1].startswith("error")
    for word in (JOURNAL, "Finished trials are safe", "same command"):
        assert word in lines[-1]
    assert len(lines) > 5
    assert missing(lines[1:-1], folder) == []
    load(folder).set_user_attr("after", 1)
    assert missing(lines[1:-1], folder) == []


def test_sqlite_keeps_a_study(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=open_storage(url)).set_user_attr("a", 1)
    assert optuna.load_study(study_name="s", storage=open_storage(url)).user_attrs == {"a": 1}


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////nowhere/at/all.db",
        "postgresql+psycopg://me:s3cret@127.0.0.1:1/db",
        "postgresql://me:s3cret@127.0.0.1:1/db",
        "postgresql+psycopg://127.0.0.1:1/db?user=me&password=s3cret",
        "mysql+pymysql://me:s3cret@127.0.0.1:1/db",
        "nonsense://me:s3cret@127.0.0.1/db",
        "postgresql://me:s3cret@127.0.0.1:port/db",
        "redis://:s3cret@127.0.0.1:1",
        "://s3cret",
    ],
)
def test_a_url_that_cannot_be_opened_is_named_without_its_password(url):
    with pytest.raises(RunError) as caught:
        open_storage(url)
    assert "s3cret" not in str(caught.value)
    assert url.partition("://")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [StorageInternalError, OperationalError])
@pytest.mark.parametrize("url", ["x://me:s3cret@h/d", "x://me@h/d?password=s3cret"])
def test_a_complaint_of_a_database_is_one_sentence_without_the_password(error, url):
    text = f"no answer from {url} with s3cret\nand more"
    arguments = [text, {}, Exception(text)] if error is OperationalError else [text]
    with pytest.raises(RunError, match="no answer") as caught, in_words(url):
        raise error(*arguments)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Finished trials are safe" in str(caught.value)


def test_a_place_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(RunError, match="journal"):
            open_storage(place)


def test_a_directory_that_cannot_be_written_can_be_read(folder):
    script = (
        "import sys, optuna; from archsearch.search.storage import open_storage;"
        "s = optuna.load_study(study_name='s', storage=open_storage(sys.argv[1]));"
        "print(len(s.trials));"
        "\ntry: s.ask()\nexcept Exception as error: print(type(error).__name__)"
    )
    command = [sys.executable, "-B", "-c"]
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--clear-groups", *command]
        for path in (folder, *folder.parents[:3]):
            path.chmod(0o755)
        able = shutil.which("setpriv") and subprocess.run([*command, "import archsearch"])
        if not able or able.returncode:
            pytest.skip("root may write everywhere, and no other user can run this Python")
    before = (folder / JOURNAL).read_bytes()
    folder.chmod(0o555)
    (folder / JOURNAL).chmod(0o444)
    done = subprocess.run(
        [*command, script, str(folder)], capture_output=True, text=True, cwd=folder
    )
    assert done.stdout.split() == ["2", "RunError"], done.stderr
    assert (folder / JOURNAL).read_bytes() == before

"""What goes wrong is said in a sentence that names the thing and the way out, with an exit code."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import archsearch, in_process
from tests.search.helpers import begin, opened

TINY = """\
version: 1
name: tiny
model:
  d_model: 16
  stack:
    - pattern:
        - ffn: {swiglu: {mult: [1, 2, 3, 4, 5], act: [silu, gelu, relu2]}}
tasks: {use: [mad/in-context-recall: {vocab: 8, seq_len: 16}]}
recipe: {steps: 4, evals: 2, batch: 4, eval_rows: 16}
search: {trials: 4, finalists: 0}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory with a finished run in it; a test takes a copy."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    done = archsearch("run", "tiny.yaml", "--workers", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "here")
    return tmp_path / "here"


def contents(folder):
    """Every file but empty ones, byte for byte."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    return {path: path.read_bytes() for path in files}


def refused(*command, cwd, code, words, run=in_process, **environment):
    """Require that a command ends with a code and a sentence with these words."""
    done = run(*map(str, command), cwd=cwd, **environment)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    for word in words:
        assert word in " ".join(done.stderr.split()), said
    return done


def trials(folder):
    """How many finished trials the study in runs/tiny holds."""
    return len(opened(folder / "runs" / "tiny").records())


def test_a_run_directory_of_another_space(here):
    (here / "tiny.yaml").write_text(
        TINY.replace("steps: 4", "steps: 5").replace("act: [silu, ", "act: [")
    )
    before = contents(here / "runs")
    words = ["recipe.steps: 4 -> 5", "swiglu.act", "--name", "Nothing was changed"]
    refused("run", "tiny.yaml", cwd=here, code=3, words=words)
    assert contents(here / "runs") == before
    renamed = archsearch("run", "tiny.yaml", "--name", "other", "--trials", "1", cwd=here)
    assert renamed.returncode == 0, renamed.stderr
    assert (here / "runs" / "other" / "best" / "model.yaml").is_file()


@pytest.mark.parametrize("command", ["run tiny.yaml", "show runs/tiny"])
def test_a_damaged_study_file(here, command):
    journal = here / "runs" / "tiny" / "journal.log"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:20], "~" * 30, *lines[21:]]) + "\n")
    before = contents(here)
    words = ["journal.log:21: ", "damaged", "Nothing was changed", "head -n 20"]
    refused(*command.split(), cwd=here, code=3, words=words)
    assert contents(here) == before


def test_a_torn_study_file_is_mended_and_the_run_goes_on(here):
    journal = here / "runs" / "tiny" / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-40])
    before = trials(here)
    again = archsearch("run", "tiny.yaml", "--workers", "1", cwd=here)
    assert again.returncode == 0, again.stderr
    assert (before, trials(here)) == (3, 4)


def test_a_place_that_is_a_file(here):
    (here / "file").write_text("")
    words = ["file/below", "cannot be written", "--dir"]
    refused("run", "tiny.yaml", "--dir", "file/below", cwd=here, code=3, words=words)


def as_somebody_else(*command, cwd):
    """Run the command line as a user who may read everything here and write nothing."""
    prefix = []
    if os.geteuid() == 0:
        prefix = ["setpriv", "--reuid=65534", "--clear-groups"]
        for path in (cwd, *cwd.parents[:4]):
            if path.is_relative_to("/tmp") and path != Path("/tmp"):
                path.chmod(0o755)
        can = shutil.which("setpriv") and subprocess.run(
            [*prefix, sys.executable, "-Bc", "import archsearch.search.run"], capture_output=True
        )
        if not can or can.returncode:
            pytest.skip("root may write everywhere, and no other user can run this Python")
    else:
        for path in [cwd, *cwd.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)
    command = [*prefix, sys.executable, "-B", "-m", "archsearch", *command]
    env = os.environ | {"COLUMNS": "80", "HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)


def test_a_directory_that_cannot_be_written(here):
    before = contents(here)
    shown = as_somebody_else("show", "runs/tiny", cwd=here)
    assert shown.returncode == 0, shown.stderr
    assert "4 trials" in shown.stdout
    for command, code, words in (
        (["run", "tiny.yaml"], 3, ["runs/tiny", "--dir", "Permission denied"]),
        (["export", "runs/tiny", "out"], 4, ["out cannot be written", "Permission denied"]),
    ):
        done = as_somebody_else(*command, cwd=here)
        said = " ".join(done.stderr.split())
        assert done.returncode == code, said
        assert "Traceback" not in said
        assert all(word in said for word in words), said
    assert contents(here) == before


def test_a_full_disk(tmp_path):
    """Files may grow to 24 KiB and no further, which the study file of fifteen trials does.

    With one evaluation there are no checkpoints, which would be larger.
    """
    text = TINY.replace("trials: 4", "trials: 15").replace("evals: 2", "evals: 1")
    (tmp_path / "tiny.yaml").write_text(text)
    command = [sys.executable, "-m", "archsearch", "run", "tiny.yaml", "--workers", "1"]
    limited = ["bash", "-c", 'ulimit -f 24; exec "$@"', "bash", *command]
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    for word in ("journal.log cannot be written", "Finished trials are safe", "same command"):
        assert word in said
    safe = trials(tmp_path)
    assert 0 < safe < 15
    again = archsearch("run", "tiny.yaml", "--workers", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert trials(tmp_path) == 15
    for line in done.stdout.splitlines():
        if line.startswith("["):
            score = line.partition("score ")[2].split()[0]
            assert score in again.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_small_disk_that_is_full(tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=240k", "tmpfs", str(runs)])
    if mounted.returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        (tmp_path / "tiny.yaml").write_text(TINY.replace("trials: 4", "trials: 15"))
        words = ["cannot be written", "No space left on device"]
        command = ["run", "tiny.yaml", "--workers", "1"]
        refused(*command, cwd=tmp_path, code=3, words=words, run=archsearch)
        safe = trials(tmp_path)
        assert safe < 15
        subprocess.run(["mount", "-o", "remount,size=8m", str(runs)], check=True)
        again = archsearch(*command, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert trials(tmp_path) == 15
        assert "oom" not in again.stdout
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def test_an_export_into_a_directory_with_other_things(here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("years of work")
    before = contents(here)
    for flags in ([], ["--force"]):
        words = ["mine is not empty", "nothing was written", "Choose another place"]
        refused("export", "runs/tiny", "mine", *flags, cwd=here, code=4, words=words)
    assert contents(here) == before


def test_an_export_over_an_export(here):
    first = archsearch("export", "runs/tiny", "out", cwd=here)
    assert first.returncode == 0, first.stderr
    words = ["out is not empty", "--force"]
    refused("export", "runs/tiny", "out", cwd=here, code=4, words=words)
    forced = archsearch("export", "runs/tiny", "out", "--trial", "1", "--force", cwd=here)
    assert forced.returncode == 0, forced.stderr


@pytest.mark.parametrize("which", ["99", "²"])
def test_an_unknown_trial(here, which):
    words = [f"'{which}'", "0, 1, 2, 3"]
    refused("export", "runs/tiny", "out", "--trial", which, cwd=here, code=3, words=words)
    assert not (here / "out").exists()


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_run_without_a_finished_trial(tmp_path):
    begin(tmp_path / "runs" / "tiny", TINY)
    shown = archsearch("show", "runs/tiny", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "no trial has finished yet" in shown.stdout
    words = ["tiny has no trial that ended well yet"]
    refused("export", "runs/tiny", "out", cwd=tmp_path, code=3, words=words)
    words = ["no finished trial '0'"]
    refused("export", "runs/tiny", "out", "--trial", "0", cwd=tmp_path, code=3, words=words)


@pytest.mark.parametrize(
    "command", [("show", "runs/nowhere"), ("show", "tiny.yaml"), ("dashboard", ".")]
)
def test_a_place_without_a_run(here, command):
    words = [f"{command[1]} is no run directory", "runs/tiny"]
    refused(*command, cwd=here, code=3, words=words)


@pytest.mark.parametrize("verb", ["show", "report", "explain", "dashboard"])
def test_without_a_run_the_runs_are_listed(here, verb):
    done = in_process(verb, cwd=here)
    assert (done.returncode, done.stderr) == (3, "name a run; runs here: runs/tiny\n")


def test_who_reads_makes_no_database(here):
    done = in_process("show", "runs/tiny", "--storage", "sqlite:///nope.db", cwd=here)
    assert (done.returncode, "nope.db is no file" in done.stderr) == (3, True)
    assert not (here / "nope.db").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("eval runs/tiny --windows 1", "'--windows': it must be 2 or more"),
        ("eval runs/tiny --windows x", "'--windows': it must be a whole number"),
        ("export runs/tiny out --format onnx", "'--format': 'onnx' is not one of 'auto'"),
    ],
)
def test_a_wrong_value_is_refused_in_our_words(here, command, words):
    done = in_process(*command.split(), cwd=here)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_port_in_use(here):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [f"port {port}", "--port"]
        refused("dashboard", "runs/tiny", "--port", port, cwd=here, code=3, words=words)


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (("run", "tiny.yaml", "--storage"), "sqlite:////nowhere/at/all.db"),
        (("show", "runs/tiny", "--storage"), "postgresql+psycopg://me:s3cret@127.0.0.1:1/db"),
        (("run", "tiny.yaml"), "nonsense://me:s3cret@somewhere/db"),
    ],
)
def test_a_storage_that_cannot_be_opened(here, command, url):
    given, environment = (url,), {}
    if "--storage" not in command:
        given, environment = (), {"ARCHSEARCH_STORAGE": url, "run": archsearch}
    words = ["the storage", url.partition("://")[0]]
    done = refused(*command, *given, cwd=here, code=3, words=words, **environment)
    assert "s3cret" not in done.stdout + done.stderr


def test_a_study_that_is_not_there(here):
    words = ["no study 'other' here", "known: tiny"]
    arguments = ["--study", "other", "--dir", "runs/tiny"]
    refused("worker", "runs/tiny", *arguments, cwd=here, code=3, words=words)


def test_a_reader_that_leaves_early_is_no_error(here):
    show = [sys.executable, "-m", "archsearch", "show", "runs/tiny"]
    with subprocess.Popen(show, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        done.stdout.close()
        assert b"Traceback" not in done.stderr.read()

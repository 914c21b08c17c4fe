"""`archsearch fidelity` as a stranger would see it."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from archsearch.errors import CorpusError, RunError, SpaceError
from archsearch.report import fidelity as report
from archsearch.report.fidelity import Wanted, instead
from archsearch.scale.verdict import Verdict
from archsearch.search.storage import open_storage
from archsearch.search.study import Study
from archsearch.space_yaml import parse
from tests.helpers import archsearch
from tests.scale.helpers import PROSE

SIZES = ("--genomes", "4", "--steps", "2", "--context", "16", "--batch", "2")
COMMAND = ("fidelity", "runs/tiny", *SIZES, "--text", "prose.txt", "--workers", "1")
WANTED = Wanted(
    genomes=4, width=None, steps=2, seeds=2, context=16, batch=2, text=("prose.txt",),
    tokenizer="byte",
)  # fmt: skip
TEXTS = 24
"""Four genomes and two anchors at two widths, two seeds each."""


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """A directory with a finished run and a text, and nothing said of its fidelity."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    (tmp_path / "prose.txt").write_text(PROSE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stopped(here, line):
    """What was said up to a line, and the exit code, of a command that is interrupted there."""
    env = os.environ | {"COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "archsearch", *COMMAND]
    process = subprocess.Popen(
        command, cwd=here, env=env, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = []
    for told in process.stdout:
        said.append(told)
        if told.startswith(line):
            os.killpg(process.pid, signal.SIGINT)
            break
    said.append(process.communicate(timeout=60)[0])
    return "".join(said), process.returncode


def test_a_stopped_call_goes_on_with_the_same_panel_and_a_second_one_trains_nothing(here):
    home = here / "runs/tiny/fidelity"
    said, code = stopped(here, "[text 3/")
    assert code == 130, said
    assert "what was trained is kept. The same command continues" in said
    assert "Traceback" not in said
    panel, kept = (home / "panel.json").read_text(), len(_lines(home))
    assert 3 <= kept < TEXTS
    assert not (home / "fidelity.json").exists()

    rest = measure(here)
    assert len(re.findall(r"^\[text ", rest, re.MULTILINE)) == TEXTS - kept
    assert "[proxy " not in rest
    assert len(_lines(home)) == TEXTS

    trained = (home / "targets.jsonl").stat().st_mtime_ns
    again = measure(here)
    assert "0 of 12 trainings to do" in again
    assert re.search(r"^\[", again, re.MULTILINE) is None
    assert _table(again) == _table(rest)
    assert (home / "targets.jsonl").stat().st_mtime_ns == trained
    assert (home / "panel.json").read_text() == panel
    _is_whole(home, rest)


def _lines(home):
    return (home / "targets.jsonl").read_text().splitlines()


def _table(said):
    return said[said.index("ranked by") : said.index("written to")]


def _is_whole(home, said):
    """The files hold what was printed."""
    assert max(map(len, _table(said).splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in said
    told = json.loads((home / "fidelity.json").read_text())
    assert told["genomes"] == len(told["panel"]) == 6
    assert told["command"].startswith("archsearch fidelity")
    assert told["verdict"]["kind"] == "too few"
    assert told["verdict"]["text"] in " ".join(said.split())
    for row in told["panel"]:
        assert len(row["target"]) == len(row["scores"]["score"]) == 2
        assert row["target_width"] == 4 * row["width"]
    names = [standing["name"] for standing in (told["proxy"], *told["baselines"])]
    assert "first gradient" in names
    assert all(name in said for name in names)
    picture = ElementTree.fromstring((home / "fidelity.svg").read_text())
    assert len([part for part in picture.iter() if part.tag.endswith("circle")]) == 6


@pytest.mark.parametrize("kind", ["useless", "misleading", "poor pick"])
def test_where_a_proxy_fails_text_is_named_as_one_by_a_command_that_works(here, kind):
    folder = here / "runs/tiny"
    experiment = Study(open_storage(folder), folder.name).experiment()
    (command, *_) = instead(Verdict(kind, ""), experiment, folder).split("    ")
    _, verb, space, *options = shlex.split(command.removeprefix("next: "))
    assert verb == "run"
    on_text = parse((folder / "space.yaml").read_text(), overrides=options[1:2])
    assert [task.name for task in on_text.tasks] == ["text"]
    assert Path(space) == folder / "space.yaml"
    assert instead(Verdict(kind, ""), on_text, folder) == ""


@pytest.mark.parametrize("kind", ["trusted", "too few", "unresolvable"])
def test_else_nothing_is_advised(here, kind):
    folder = here / "runs/tiny"
    experiment = Study(open_storage(folder), folder.name).experiment()
    assert instead(Verdict(kind, ""), experiment, folder) == ""


def measure(here, *, dry_run=False, workers=1, **given):
    """Run the command in this process; what it printed."""
    folder = here / "runs/tiny"
    console = Console(width=80, file=io.StringIO())
    study = Study(open_storage(folder), folder.name)
    wanted = replace(WANTED, **given)
    report.fidelity(study, folder, wanted, workers, console, dry_run=dry_run)
    return console.file.getvalue()


def test_the_panel_is_written_before_anything_is_trained(here, monkeypatch):
    class Reached(Exception):
        pass

    def train(*given):
        raise Reached

    monkeypatch.setattr(report, "train", train)
    panel = here / "runs/tiny/fidelity/panel.json"
    measure(here, dry_run=True)
    assert not panel.exists()
    with pytest.raises(Reached):
        measure(here)
    assert len(json.loads(panel.read_text())["members"]) == 6
    assert not (panel.parent / "targets.jsonl").exists()


def test_a_dry_run_shows_who_is_compared_and_what_it_takes(here):
    said = measure(here, dry_run=True)
    assert "panel of tiny, seed 0: 2 of the space, 2 of the best quarter of 6 trials" in said
    assert said.count("anchor  ") == 2
    assert f"{TEXTS} of {TEXTS} trainings to do" in said
    assert "time: about" in said


def test_what_cannot_be_measured_is_said_before_anything_is_trained(here):
    with pytest.raises(RunError, match=r"too few for a panel of 40; legal here: --genomes 3 to"):
        measure(here, genomes=40)
    with pytest.raises(SpaceError, match=r"cannot be 60 wide.*legal widths: 56, 64"):
        measure(here, width=60)
    with pytest.raises(CorpusError, match="length here: 1 to"):
        measure(here, context=10**6)
    with pytest.raises(CorpusError, match=r"missing\.txt"):
        measure(here, text=("missing.txt",))
    assert not (here / "runs/tiny/fidelity").exists()


def test_a_panel_of_another_size_is_not_drawn_over_one_that_was_kept(here, monkeypatch):
    monkeypatch.setattr(report, "train", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit):
        measure(here)
    with pytest.raises(RunError, match=r"panel of 4 genomes .* not of 5; leave out --genomes"):
        measure(here, genomes=5)
    assert "2 of the space" in measure(here, genomes=None, dry_run=True)


def test_a_directory_without_a_run_is_said(tmp_path):
    wrong = archsearch("fidelity", "runs/none", cwd=tmp_path)
    assert wrong.returncode == 3
    assert "runs/none is no run directory" in wrong.stderr

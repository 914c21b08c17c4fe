"""What a person sees of a run, as a stranger would see it: 80 columns, an empty directory."""

import json
import re
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

from archsearch.genome import Gene, Genome
from archsearch.report.dashboard import view
from archsearch.report.overview import note
from archsearch.search.storage import open_storage
from archsearch.search.study import Study
from archsearch.space_yaml import dump
from tests.helpers import archsearch, browser
from tests.search.helpers import LISTED, searched

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def study(finished):
    return Study(open_storage(finished / "runs" / "tiny"), "tiny")


def test_a_run_ends_with_a_table_a_model_and_the_next_command(finished):
    out = (finished / "out.txt").read_text()
    assert "6 trials (6 ok)" in out or "pruned" in out
    assert re.search(r"front of \d+ +params +state +score +\+/- s\.e\.", out)
    assert "model runs/tiny/best/model.yaml" in out
    assert out.rstrip().splitlines()[-1] == "next: archsearch dashboard runs/tiny"
    assert (finished / "runs/tiny/best/model.yaml").is_file()


def test_without_a_terminal_every_trial_is_one_line(finished):
    lines = (finished / "out.txt").read_text().splitlines()
    ended = [line for line in lines if re.match(r"\[\d+/6\] #\d+ ", line)]
    assert len(ended) == 6
    assert not any("\x1b" in line for line in lines)


def test_the_same_command_again_trains_nothing(finished):
    again = archsearch("run", "tiny.yaml", "--workers", "1", cwd=finished)
    assert again.returncode == 0
    assert not re.search(r"^\[(finals )?\d+/6\]", again.stdout, re.MULTILINE)
    assert "next: archsearch dashboard" in again.stdout


def test_show_prints_the_table_of_the_run(finished, study):
    shown = archsearch("show", "runs/tiny", cwd=finished)
    assert shown.returncode == 0
    for record in study.front():
        assert f"{record.score:.3f}" in shown.stdout
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80
    tables, _, _ = shown.stdout.partition("finals on")
    assert re.findall(r"^> *(\d+) ", tables, re.MULTILINE) == [str(study.best().index)]
    legend = "> winner, named on fresh seeds, so it need not be on the front; params: without embed"
    assert legend in " ".join(tables.split())


def test_the_front_holds_exactly_the_trials_that_none_dominates(study):
    done = [r for r in study.records().values() if r.status == "ok"]
    front = study.front()
    assert front
    for record in done:
        beaten = [o for o in done if study.dominates(o.values, record.values)]
        assert (record in front) == (not beaten)


def test_every_trial_has_its_drawing_as_artifact_0_and_a_note(finished, study):
    from optuna.artifacts import get_all_artifact_meta
    from optuna_dashboard._note import get_note_from_system_attrs

    attrs = study.storage.get_study_system_attrs(study.optuna._study_id)
    for record in study.records().values():
        trial = study.trials()[record.number]
        names = [m.filename for m in get_all_artifact_meta(trial, storage=study.storage)]
        assert sorted(names) == ["curves.csv", "genome.svg", "genome.yaml", "per_task.csv"]
        note = get_note_from_system_attrs(attrs, trial._trial_id)["body"]
        assert record.genome.text() in note
        assert record.genome.key in note
        assert "/artifacts/" in note


@contextmanager
def dashboard(folder):
    """The port at which the dashboard of the run in `folder` is served."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "archsearch", "dashboard", "runs/tiny", "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}/dashboard" in server.stdout.readline()
        yield port
    finally:
        server.kill()
        server.communicate()


def test_the_dashboard_serves_the_run_on_this_machine_only(finished, study):
    with dashboard(finished) as port:
        url = f"http://127.0.0.1:{port}/api/studies/0?after=0"
        with urllib.request.urlopen(url, timeout=30) as answer:
            page = json.loads(answer.read())
        second = archsearch("dashboard", "runs/tiny", "--port", str(port), cwd=finished)
    assert second.returncode == 3
    assert "--port" in second.stderr
    assert page["objective_names"] == ["score", "state_bytes"]
    assert page["trials"][0]["artifacts"][0]["filename"] == "genome.svg"
    numeric = {attr["key"] for attr in page["union_user_attrs"] if attr["sortable"]}
    assert {
        "params",
        "state_bytes",
        "score",
        "seconds",
        "accuracy/mad/in-context-recall",
    } <= numeric
    for record in study.front():
        assert f"[#{record.index}]" in page["note"]["body"]
    assert {"mixer", "ffn", "blocks", "score_0"} == {g["id"] for g in page["plotly_graph_objects"]}
    heat = next(g for g in page["plotly_graph_objects"] if g["id"] == "ffn")
    assert json.loads(heat["graph_object"])["data"][0]["y"] == ["swiglu"]
    shown = {attr["key"] for trial in page["trials"] for attr in trial["user_attrs"]}
    assert "genome" in shown
    assert not shown & {"genome_json", "owner", "scores"}
    assert {"tasks", "seed", "versions"} <= {attr["key"] for attr in page["user_attrs"]}


def test_the_dashboard_knows_what_may_not_win(tmp_path):
    (tmp_path / "stranger.yaml").write_text(dump(Genome(16, (Gene.of("swiglu", mult=7),))))
    start = f"search.start_from=[{tmp_path}/stranger.yaml]"
    study = searched(tmp_path / "run", LISTED, start, "search.trials=2")
    before = (tmp_path / "run" / "journal.log").read_bytes()
    storage = view(study, "runs/listed")
    shown = storage.get_all_trials(0)
    assert [trial.system_attrs.get("constraints") for trial in shown] == [[1.0], None, None]
    (listed,) = storage.get_all_studies()
    assert "not in the space" in note(study, 0, "runs/listed")
    assert any("not in the space" in str(value) for value in listed.system_attrs.values())
    assert (tmp_path / "run" / "journal.log").read_bytes() == before
    assert all("genome_json" in trial.user_attrs for trial in study.trials())


@pytest.mark.skipif(not browser.installed(), reason="there is no Chromium on this machine")
def test_a_real_browser_shows_trial_note_pictures_and_gallery(finished, study):
    with dashboard(finished) as port, browser.Browser() as page:
        base = f"http://127.0.0.1:{port}/dashboard/studies/0"
        page.open(f"{base}/trials?numbers=0")
        page.until("/attention|swiglu/.test(document.querySelector('h2')?.textContent)")
        page.until("document.querySelector('img[src^=\"/artifacts/\"]')?.naturalWidth > 100")
        page.until("document.body.innerText.includes('archsearch export runs/tiny DIR --trial 0')")
        assert page.run("document.documentElement.scrollWidth") == 1280
        page.open(base)
        for title in ("Mean score by mixer and place", "score against state_bytes"):
            page.until(f"document.body.textContent.includes('{title}')")
        page.open(f"{base}/note")
        page.until("document.body.innerText.includes('The best 10 by score')")
        page.open(f"{base}/smartSelection")
        switch = "[...document.querySelectorAll('label')].find(e => /Artifacts/.test(e.innerText))"
        page.until(f"{switch} !== undefined")
        page.run(f"{switch}.querySelector('input').click()")
        drawings = "[...document.querySelectorAll('img')].filter(e => e.naturalWidth > 100).length"
        page.until(f"{drawings} === {len(study.records())}")

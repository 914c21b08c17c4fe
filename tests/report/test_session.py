"""What a person sees of a run, as a stranger would see it: 80 columns, an empty directory."""

import re
import shutil

import pytest

from archsearch.search.storage import open_storage
from archsearch.search.study import Study
from tests.helpers import archsearch


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


def test_the_dashboard_serves_the_run_on_this_machine_only(finished):
    import socket
    import subprocess
    import sys
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "archsearch", "dashboard", "runs/tiny", "--port", str(port)]
    server = subprocess.Popen(command, cwd=finished, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}/dashboard" in server.stdout.readline()
        url = f"http://127.0.0.1:{port}/api/studies/0?after=0"
        with urllib.request.urlopen(url, timeout=30) as answer:
            page = answer.read().decode()
        assert '"genome.svg"' in page
        assert "state_bytes" in page
        second = archsearch("dashboard", "runs/tiny", "--port", str(port), cwd=finished)
        assert second.returncode == 3
        assert "--port" in second.stderr
    finally:
        server.kill()
        server.communicate()


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium on this machine")
def test_the_trial_page_shows_note_and_drawing_in_a_real_browser(finished, tmp_path):
    import socket
    import subprocess
    import sys

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "archsearch", "dashboard", "runs/tiny", "--port", str(port)]
    server = subprocess.Popen(command, cwd=finished, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        page = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000",
                "--dump-dom", f"http://127.0.0.1:{port}/dashboard/studies/0/trials?numbers=0",
            ],
            capture_output=True, text=True, timeout=120,
        ).stdout  # fmt: skip
    finally:
        server.kill()
        server.communicate()
    assert re.search(r"<h2[^>]*>[^<]*(attention|swiglu)", page)
    assert re.search(r'<img[^>]*src="/artifacts/', page)

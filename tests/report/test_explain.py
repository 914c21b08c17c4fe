"""`archsearch explain` as a stranger would see it."""

import re
import shutil

from tests.helpers import archsearch


def test_explain_prints_its_page_keeps_it_and_trains_nothing_twice(finished, tmp_path):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    told = archsearch("explain", "runs/tiny", "--seeds", "2", "--workers", "2", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    page = (tmp_path / "runs/tiny/explain.md").read_text()
    assert page in told.stdout
    for title in ("# Why ", "## One edit away", "## Where it comes from"):
        assert title in page
    assert re.search(r"^\| \d+: \w+ removed +\| +-", page, re.MULTILINE)
    before = (tmp_path / "runs/tiny/fresh.json").stat().st_mtime_ns
    again = archsearch("explain", "runs/tiny", "--seeds", "2", cwd=tmp_path)
    assert page in again.stdout
    assert (tmp_path / "runs/tiny/fresh.json").stat().st_mtime_ns == before


def test_explain_says_what_may_be_asked_for(finished):
    wrong = archsearch("explain", "runs/tiny", "--trial", "99", cwd=finished)
    assert wrong.returncode == 3
    assert "no finished trial '99' in tiny; best, or one of: 0" in wrong.stderr

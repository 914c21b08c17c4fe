"""What installs the project, and what it promises before it is installed."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imported(code):
    """The names of the modules that a fresh Python holds after running `code`."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_every_declared_entry_point_is_installed_and_loads():
    for group, declared in PROJECT["entry-points"].items():
        installed = {p.name: p for p in entry_points(group=group)}
        assert set(declared) <= set(installed), "install again: pip install -e ."
        for name in declared:
            assert installed[name].load() is not None


def test_every_block_and_task_file_has_an_entry_point():
    modules = {v.split(":")[0] for v in PROJECT["entry-points"]["archsearch.blocks"].values()}
    files = {f"archsearch.blocks.{p.stem}" for p in (ROOT / "archsearch/blocks").glob("[!_]*.py")}
    assert files == modules


@pytest.mark.parametrize(
    "code",
    [
        "import archsearch",
        "import archsearch.cli",
        "from archsearch.space_yaml import load; load('quickstart')",
        "from archsearch.report.lists import block_table, task_table; block_table(); task_table()",
        "from archsearch.schema import json_schema; json_schema()",
    ],
)
def test_answers_that_need_no_torch_import_none(code):
    assert "torch" not in imported(code)


def test_the_import_check_itself_sees_torch():
    assert "torch" in imported("import archsearch.model")


def test_torch_is_pinned_in_the_constraints_and_free_in_the_package():
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch>=2.9" in PROJECT["dependencies"]


def test_every_dependency_is_pinned():
    pins = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    names = {re.split(r"[<>=!\[; ]", spec)[0].lower() for spec in wanted}
    assert names <= pins


@pytest.mark.skipif(not shutil.which("nix-instantiate"), reason="nix is not on this machine")
def test_the_flake_parses():
    done = subprocess.run(
        ["nix-instantiate", "--parse", str(ROOT / "flake.nix")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_changelog_speaks_of_this_version():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == PROJECT["version"]

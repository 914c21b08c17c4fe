"""The tutorial, followed to the letter: its block, its test, its space, in a package of its own."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers import archsearch

PAGE = (Path(__file__).parent.parent / "docs" / "adding-a-block.md").read_text()
FENCES = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
BLOCK, TEST = (text for language, text in FENCES if language == "python")
(POINTS,) = (text for language, text in FENCES if language == "toml")
(SPACE,) = (text for language, text in FENCES if language == "yaml")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the files of the page, installed; and the environment that finds it."""
    folder = tmp_path_factory.mktemp("tutorial")
    info = folder / "site" / "tutorial-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / "shift.py").write_text(BLOCK)
    (folder / "test_shift.py").write_text(TEST)
    (folder / "space.yaml").write_text(SPACE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tutorial\nVersion: 1.0\n")
    groups = tomllib.loads(POINTS)["project"]["entry-points"]
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{name} = {where}" for name, where in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    root = str(Path(__file__).parent.parent)
    paths = [str(folder / "site"), root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return folder, {"PYTHONPATH": os.pathsep.join(paths)}


def test_the_file_of_the_block_is_under_40_lines():
    assert len(BLOCK.splitlines()) < 40
    assert max(map(len, BLOCK.splitlines())) <= 100


def test_it_is_listed_and_described_with_its_cost(package):
    folder, found = package
    done = archsearch("blocks", cwd=folder, **found)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^shift +66K +1\.0K +2305\.13048 +Token", done.stdout, re.MULTILINE)
    assert re.search(r"^mamba2 ", done.stdout, re.MULTILINE)
    page = archsearch("blocks", "shift", cwd=folder, **found)
    assert "https://arxiv.org/abs/2305.13048" in page.stdout
    assert "Weight of the token before" in " ".join(page.stdout.split())


def test_a_space_that_names_it_checks_and_trains(package):
    folder, found = package
    done = archsearch("check", "space.yaml", cwd=folder, **found)
    assert done.returncode == 0, done.stderr
    command = ["run", "space.yaml", "--trials", "2", "--workers", "1", "--set", "recipe.steps=4"]
    done = archsearch(*command, "--set", "recipe.evals=2", cwd=folder, **found)
    assert done.returncode == 0, done.stderr


def test_it_passes_the_contract_and_a_broken_one_does_not(package):
    folder, found = package
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shift.py"]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | found

    def run(*, broken):
        text = BLOCK.replace('{"last": x_BD}', "state") if broken else BLOCK
        assert (text != BLOCK) == broken
        (folder / "site" / "shift.py").write_text(text)
        extra = ["-k", "decodes or costs"] if broken else []
        done = subprocess.run(
            [*command, *extra], cwd=folder, env=env, capture_output=True, text=True, timeout=300
        )
        (folder / "site" / "shift.py").write_text(BLOCK)
        return done

    good = run(broken=False)
    assert good.returncode == 0, good.stdout[-3000:]
    laws = int(re.search(r"(\d+) passed", good.stdout)[1])
    assert laws > 50
    bad = run(broken=True)
    assert bad.returncode == 1
    assert re.search(r"FAILED .*decodes", bad.stdout)
    assert not re.search(r"FAILED .*costs", bad.stdout)


def test_every_link_on_the_page_leads_somewhere():
    docs = Path(__file__).parent.parent / "docs"
    assert all((docs / path).exists() for path in re.findall(r"\]\(([\w./-]+)\)", PAGE))
    for path in re.findall(r"`(archsearch/[\w/]+\.py)`", PAGE):
        assert (docs.parent / path).exists()

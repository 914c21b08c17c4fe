"""What `archsearch compare-samplers` prints and writes."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from archsearch.report.lines import Line, draw_lines
from tests.helpers import archsearch
from tests.search.helpers import LISTED

RUN = ("compare-samplers", "space.yaml", "--trials", "8", "--set", "recipe.seeds=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a space of twelve members and a comparison of strategies on it."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "space.yaml").write_text(LISTED)
    done = archsearch(
        *RUN, "--seeds", "7", "--strategies", "evolution,local", "--out", "out", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (folder / "page").write_text(done.stdout)
    return folder


def test_the_page_fits_and_says_what_may_be_said(folder):
    page = (folder / "page").read_text()
    announced, *lines = [line for line in page.splitlines() if line.strip()]
    assert announced.startswith("runs/listed/table.jsonl holds 0 members; at most 12 more")
    assert max(map(len, lines)) <= 80
    for name in ("evolution", "local"):
        assert re.search(
            rf"^{name} +not distinguishable +2 \(1\), 4 \(1\), 8 \(1\), X \(1\)", page, re.M
        )
    assert "7 paired seeds of 8 trials each" in page
    assert lines[-1] == "next: the same command with --seeds 14"


def test_the_curves_are_written(folder):
    found = json.loads((folder / "out" / "compare.json").read_text())
    assert found["value"] == "hypervolume"
    assert set(found["strategies"]) == {"evolution", "local", "random"}
    for figures in found["strategies"].values():
        assert len(figures["curves"]) == 7
        assert {len(curve) for curve in figures["curves"]} == {8}
        for low, mean, high in zip(*(figures[k] for k in ("low", "mean", "high")), strict=True):
            assert low <= mean <= high
    ET.fromstring((folder / "out" / "compare.svg").read_text())


def test_a_second_comparison_trains_what_is_missing_alone(folder):
    table = folder / "runs" / "listed" / "table.jsonl"
    before = table.read_bytes()
    done = archsearch(*RUN, "--seeds", "7", "--strategies", "local", cwd=folder)
    assert done.returncode == 0
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--strategies", "evolutoin"), 2, "did you mean 'evolution'?"),
        (("--set", "recipe.steps=6"), 3, "recipe.steps: 4 -> 6"),
    ],
)
def test_what_cannot_be_compared_is_said(folder, more, code, words):
    done = archsearch(*RUN, *more, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_of_one_level_can_be_drawn():
    flat = Line("a < b", [1.0, 1.0], [1.0, 1.0], [1.0, 1.0])
    picture = ET.fromstring(draw_lines([flat], "flat & even", "trials", 1.0))
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "flat & even"} <= set(texts)

"""`archsearch mup-check` as a person meets it, on a net of a few thousand parameters."""

import io
import json
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest
from rich.console import Console

from archsearch.report import bar
from archsearch.report.curves import Curve, Panel, draw_curves
from archsearch.testing.text import Markov
from archsearch.train import generator
from tests.helpers import in_process

NET = """\
model:
  d_model: 16
  stack:
    - pattern: [mixer: {attention: {heads: 2}}, ffn: {swiglu: {mult: 1}}]
"""
SIZE = ("--context", "16", "--text", "text.txt", "--workers", "1", "--lrs", "-7:-4", "--seeds", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mup-check")
    (folder / "net.yaml").write_text(NET)
    source = Markov.draw(8, generator("test", "mup-check"))
    (folder / "text.txt").write_bytes(source.sample(20_000, generator("test", "text")))
    return folder


def check(place, *args):
    """Sweep the net with few steps."""
    few = ("--set", "recipe.steps=4", "--set", "recipe.batch=2", "--widths", "16,32", "--depths",
           "2,4")  # fmt: skip
    return in_process("mup-check", "net.yaml", *SIZE, *few, *args, cwd=place)


@pytest.fixture(scope="module")
def page(place):
    done = check(place)
    assert done.returncode == 0, done.stderr
    swept = place / "runs" / "net" / "mup-check" / "swept.jsonl"
    (place / "first.jsonl").write_bytes(swept.read_bytes())
    return done.stdout


def told(page):
    """A page without the lines on progress."""
    return page[page.index("\nattention") : page.index("written to")]


def test_the_page_has_every_size_in_every_scheme_and_a_verdict(place, page):
    assert page.startswith("attention[heads=2] swiglu[mult=1]: 23 of 23 trainings to do")
    tables = re.findall(r"^(?: +\d|width |depth ).*", page, re.M)
    assert len(tables) > 15
    assert max(map(len, tables)) <= 80
    for size, scheme in ((16, "base"), (32, "SP"), (32, "muP"), (4, "muP"), (4, "CompleteP")):
        assert re.search(rf"^ +{size}  {scheme} ", page, re.M), page
    for name in ("shift", "gap", "wider", "sensitivity", "decay", "deeper"):
        assert re.search(rf"^(width|depth) {name} ", page, re.M)
    assert "transfer here" in page or "controls did not" in page or "cannot be told" in page


def test_rows_and_pictures_are_written(place, page):
    home = place / "runs" / "net" / "mup-check"
    head, *rows = map(json.loads, (place / "first.jsonl").read_text().splitlines())
    assert head["format"] == 1
    assert len(rows) == 23
    assert {"genome", "width", "depth", "scheme", "lr", "seed", "loss"} <= rows[0].keys()
    assert {row["scheme"] for row in rows} == {"sp", "mup", "completep"}
    for name in ("width.svg", "depth.svg"):
        assert ET.parse(home / name).getroot().tag.endswith("svg")


def test_the_same_command_trains_nothing_and_says_the_same(place, page):
    memory = place / "runs" / "net" / "mup-check" / "trainings.jsonl"
    before = memory.read_bytes()
    again = check(place)
    assert again.returncode == 0, again.stderr
    assert "0 of 23 trainings to do" in again.stdout
    assert told(again.stdout) == told(page)
    assert memory.read_bytes() == before


def test_what_is_new_is_trained_alone(place, page):
    more = check(place, "--schemes", "sp,mup,completep,depth_mup")
    assert more.returncode == 0, more.stderr
    assert "4 of 27 trainings to do" in more.stdout
    assert "depth-muP" in more.stdout


def test_stored_rows_are_judged_anew_without_training(place, page):
    again = in_process("mup-check", "first.jsonl", cwd=place)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == told(page).strip()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--widths", "16,20"), 2, "cannot be 20 wide"),
        (("--widths", "16,x"), 3, "no list of whole numbers"),
        (("--schemes", "sp,mop"), 3, "unknown scheme 'mop'; did you mean 'mup'?"),
        (("--context", "5000"), 5, "a window of length 5000"),
        (("--set", "recipe.stesp=3"), 2, "did you mean 'steps'?"),
    ],
)
def test_what_cannot_be_checked_is_said_in_a_sentence(place, args, code, words):
    done = check(place, *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_another_version_is_refused(place):
    (place / "old.jsonl").write_text('{"format": 0}\n')
    done = in_process("mup-check", "old.jsonl", cwd=place)
    assert done.returncode == 3
    assert "old.jsonl has format 0; this archsearch reads 1" in done.stderr


def test_the_start_of_processes_is_no_part_of_the_time_that_is_left(monkeypatch):
    """It takes 40 s; a training takes 1 s, and four are to do."""
    clock = iter((0.0, 41.0, 41.0, 42.0))
    monkeypatch.setattr(bar, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    console = Console(width=80, file=io.StringIO())
    told = bar.Bar("sweep", [1.0] * 4, console)
    told.end("one", "loss 2", 1.0, 1.0, failed=False)
    told.end("two", "loss 2", 1.0, 1.0, failed=False)
    assert re.findall(r"about \d+ s left", console.file.getvalue()) == [
        "about 3 s left", "about 2 s left"
    ]  # fmt: skip


def test_a_picture_has_a_panel_a_title_and_the_names_of_all_curves():
    flat = Curve("a < b", [(0.0, 1.0), (1.0, 1.0)], (0.5, 1.0))
    drawn = draw_curves(
        [Panel("one", [flat]), Panel("two", [flat])], "flat & even", "across", "up",
        ticks=[(0.0, "0"), (1.0, "1")],
    )  # fmt: skip
    texts = [
        element.text for element in ET.fromstring(drawn).iter() if element.tag.endswith("text")
    ]
    assert {"a < b", "flat & even", "one", "two", "across", "up"} <= set(texts)
    assert texts.count("a < b") == 1

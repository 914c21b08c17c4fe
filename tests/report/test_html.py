"""The report of a run: one file that needs nothing else and says all that there is."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.errors import RunError
from archsearch.report.explain import edits_of
from archsearch.report.html import page
from archsearch.report.html_parts import genome, join, mark, table, tag, track
from archsearch.report.html_plot import Axis, Dot, scatter
from archsearch.report.html_sheet import Sheet
from archsearch.search.finals import Fresh
from archsearch.search.fresh import recall, remember
from archsearch.search.storage import open_storage
from archsearch.search.study import Study
from tests.helpers import archsearch, browser
from tests.search.helpers import LISTED, begin, searched

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
VOID = {"meta"}
"""Elements of the page that have no end."""


class Page(HTMLParser):
    """A page taken apart; every element must end where its parent has not ended yet."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.titles = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute of {name} stands twice"
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            (self.titles if self.open[-1] == "title" else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def sections(self):
        return [a["id"] for name, a in self.elements if name == "section"]


def opened(folder):
    return Study.only(open_storage(folder))


def drawn(folder, run="runs/tiny"):
    return page(Sheet(opened(folder), folder, run))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished / "runs" / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny"


def test_the_command_writes_the_page_and_says_where(finished, tmp_path):
    out = tmp_path / "sent.html"
    done = archsearch("report", "runs/tiny", "--out", str(out), cwd=finished)
    assert done.returncode == 0, done.stderr
    assert f"wrote {out}" in done.stdout.replace("\n", "")
    assert out.read_text() == drawn(finished / "runs/tiny")
    nowhere = archsearch("report", "runs/tiny", "--out", "no/where.html", cwd=finished)
    assert nowhere.returncode == 3
    assert "no cannot be written" in nowhere.stderr


def test_the_page_is_whole_and_asks_the_network_for_nothing(finished):
    text = drawn(finished / "runs/tiny")
    parsed = Page(text)
    assert text.isascii()
    wanted = {name for name, _ in parsed.elements}
    assert not wanted & {"link", "iframe", "img", "object", "embed", "base", "form", "a"}
    assert not {key for _, given in parsed.elements for key in given} & {"src", "href", "onclick"}
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("broken", ["<p><b></p></b>", "<div>", "<i class='a' class='b'></i>"])
def test_a_page_that_is_not_whole_is_caught(broken):
    with pytest.raises((AssertionError, IndexError)):
        Page(broken)


def test_every_member_of_the_front_and_every_part_is_there(finished):
    folder = finished / "runs/tiny"
    study, parsed = opened(folder), Page(drawn(finished / "runs/tiny"))
    assert parsed.sections == [
        "front", "winner", "finals", "why", "lineage", "budget", "reproduce",
    ]  # fmt: skip
    varying = study.experiment().space.varying
    for record in study.front():
        assert any(told.startswith(f"#{record.index} ") for told in parsed.titles)
        assert f"#{record.index} {record.genome.text(varying)}" in parsed.text
    best = study.best()
    assert best.genome.key in parsed.text
    assert f"{study.finals().winner.score[0]:.3f}" in parsed.text
    assert "archsearch explain runs/tiny" in parsed.text
    assert (
        study.about["space"].split()
        == parsed.text.split("space.yaml")[-1].split(" The ")[0].split()
    )


def test_equal_runs_give_equal_pages(finished, run):
    assert drawn(finished / "runs/tiny") == drawn(run)


NASTY = "<script>alert(1)</script>\"&'"


def test_what_comes_from_people_is_text(run):
    journal = run / "journal.log"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    named = [line | {"study_name": NASTY} if "study_name" in line else line for line in lines]
    journal.write_text("".join(json.dumps(line) + "\n" for line in named))
    study = opened(run)
    assert study.name == NASTY
    about = study.about
    study.optuna.set_user_attr(
        "experiment", about | {"space": about["space"] + f"notes: {json.dumps(NASTY)}\n",
                               "overrides": [*about["overrides"], f"notes={NASTY} too"]},
    )  # fmt: skip
    text = page(Sheet(opened(run), run, f"runs/{NASTY}"))
    parsed = Page(text)
    assert [name for name, _ in parsed.elements].count("script") == 1
    assert parsed.text.count("<script>alert(1)</script>") >= 4
    assert "<script>alert" not in text


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
def test_any_text_is_read_back_from_every_piece(text):
    pieces = [
        tag("p", text, title=text), table((text,), [(text,)]), track(mark("bar", 0.5, title=text)),
        scatter([Dot(1, 2, "front", text, text)], Axis.of(text, [1, 2]), Axis.of("y", [2]), text),
    ]  # fmt: skip
    parsed = Page(join(pieces))
    told = [value for _, given in parsed.elements for value in given.values()]
    assert told.count(text) >= 4 or not text
    assert parsed.titles.count(text) == 2 or not text
    assert {name for name, _ in parsed.elements} <= {
        "p", "div", "table", "thead", "tbody", "tr", "th", "td", "span", "i", "figure", "svg", "g",
        "line", "text", "circle", "title",
    }  # fmt: skip


def test_what_is_missing_or_damaged_is_left_out(run):
    for name in ("fresh.json", "space.yaml"):
        (run / name).unlink(missing_ok=True)
    for name in ("artifacts", "weights", "best"):
        shutil.rmtree(run / name)
    for name, text in (
        ("scale/w1-d1/result.json", "{"), ("scale/w2-d2/result.json", '{"winner": {}, "text": []}'),
        ("fidelity/fidelity.json", '{"verdict": 1}'),
    ):  # fmt: skip
        (run / name).parent.mkdir(parents=True)
        (run / name).write_text(text)
    parsed = Page(drawn(run))
    assert parsed.text.count("cannot be read by this version") == 3
    assert {"front", "winner", "finals", "scale", "fidelity"} <= {*parsed.sections}


def test_larger_models_and_fidelity_are_shown(run):
    genome = opened(run).best().genome.to_json()
    model = {"genome": genome, "params": 2e6, "tokens": 3e6, "loss": 1.0, "bits_per_byte": 1.4375,
             "stability": "stable", "seconds": 60.0}  # fmt: skip
    text = {"name": "prose", "order0": 4.5, "xz": 1.75}
    result = {"winner": model, "baseline": model | {"bits_per_byte": 1.5}, "text": text}
    (run / "scale/w64-d4").mkdir(parents=True)
    (run / "scale/w64-d4/result.json").write_text(json.dumps(result))
    standing = {"name": "score", "tau": [0.5, 0.25, 0.75]}
    member = {"genome": "attention", "origin": "top", "unstable": "", "target": [2.5, 2.25],
              "scores": {"score": [0.5, 0.75]}}  # fmt: skip
    told = {
        "verdict": {"text": "ranks well"}, "proxy": standing, "genomes": 2, "seeds": 2,
        "baselines": [standing | {"name": "parameters"}], "panel": [member, member],
    }  # fmt: skip
    (run / "fidelity").mkdir()
    (run / "fidelity/fidelity.json").write_text(json.dumps(told))
    parsed = Page(drawn(run))
    assert "the winner is 0.062 bits per byte below the baseline" in parsed.text
    assert "1.750" in parsed.text
    assert "score : ranks well" in parsed.text
    assert "0.25 to 0.75" in parsed.text


def test_the_edits_are_shown_once_they_were_trained(run):
    study = opened(run)
    best, edited = study.best(), edits_of(study, study.best())
    known = recall(run, study)
    assert edited
    for edit in edited:
        known[edit.genome.key] = {
            k: Fresh(fresh.score - 0.125, 1.0, None) for k, fresh in known[best.genome.key].items()
        }
    remember(run, study.experiment(), known)
    parsed = Page(drawn(run))
    assert f"Of {len(edited)} edits {len(edited)} make it clearly worse" in parsed.text
    assert "over 2 paired fresh seeds" in parsed.text
    assert all(edit.what in parsed.text for edit in edited)
    assert parsed.text.count("\N{MINUS SIGN}0.125") == len(edited)


def test_one_objective_without_finals(tmp_path):
    text = LISTED.replace("[{maximize: score}, {minimize: params}]", "[{minimize: loss}]")
    searched(tmp_path, text, "search.finalists=0", "search.trials=6")
    parsed = Page(drawn(tmp_path))
    assert "no finals on fresh seeds were held" in parsed.text
    assert "The best trials" in parsed.text
    assert "finals" not in parsed.sections


def test_rungs_and_what_waits_at_them(tmp_path):
    searched(tmp_path, LISTED, "search.rungs=[2]", "search.prune=none")
    parsed = Page(drawn(tmp_path))
    assert "waiting at a rung" in parsed.text
    assert re.search(r"\d times a trial went on from its checkpoint", parsed.text)
    assert any("early" in given.get("class", "") for _, given in parsed.elements)


def test_a_run_in_which_nothing_ended_well(tmp_path):
    text = LISTED.replace("{minimize: params}", "{minimize: params / count(attention)}")
    searched(tmp_path, text, "search.trials=3")
    parsed = Page(drawn(tmp_path))
    assert "No trial ended well" in parsed.text
    assert "has no value here" in parsed.text
    assert parsed.sections == ["budget", "reproduce"]


def test_a_run_without_a_finished_trial_is_refused(tmp_path):
    study, _ = begin(tmp_path, LISTED)
    with pytest.raises(RunError, match="no trial has finished yet"):
        Sheet(study, tmp_path, "runs/listed")


@given(low=st.floats(1e-6, 1e6), span=st.floats(1e-3, 1e6), most=st.integers(2, 9))
@pytest.mark.parametrize("name", ["score", "state_bytes"])
def test_ticks_are_few_and_in_range(name, low, span, most):
    axis = Axis.of(name, [low, low + span])
    ticks = axis.ticks(most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    assert all(0 <= axis.share(tick) <= 1 for tick in ticks)


@pytest.mark.skipif(not browser.installed(), reason="there is no Chromium on this machine")
def test_a_real_browser_shows_it_at_every_width_and_tells_what_is_tapped(finished, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(drawn(finished / "runs/tiny"))
    with browser.Browser() as page:
        for width, shown in ((1280, "wide"), (390, "narrow")):
            for dark in (False, True):
                page.open(file.as_uri(), width, dark=dark)
                assert page.run("document.documentElement.scrollWidth") == width
                inside = "[...document.querySelectorAll('.scroll')]"
                assert page.run(f"{inside}.every(e => e.scrollWidth <= e.clientWidth + 1)")
                colour = page.run("getComputedStyle(document.body).backgroundColor")
                assert (int(re.search(r"\d+", colour)[0]) < 60) == dark
            page.run(f"document.querySelector('.{shown} .winner').dispatchEvent("
                     "new MouseEvent('click', {bubbles: true}))")  # fmt: skip
            told = page.run("document.querySelector('.told').textContent")
            assert told == page.run("document.querySelector('.dot.winner title').textContent")
        assert {request.split(":")[0] for request in page.requests} == {"file"}


def test_a_genome_breaks_between_its_blocks_and_not_within_brackets():
    said = genome("5x(a[b=1] c[d=<,e=2]) f")
    assert said == (
        '<code><span class="whole">5x(a[b=1]</span> '
        '<span class="whole">c[d=&lt;,e=2])</span> f</code>'
    )

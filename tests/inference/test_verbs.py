"""The verbs for a trained model as a person meets them: text, tables of 80 columns, pictures."""

from __future__ import annotations

import io
import json
import struct
import xml.etree.ElementTree as ET
import zlib

import pytest
import torch
from rich.console import Console

from archsearch.errors import ModelError
from archsearch.genome import Gene, Genome
from archsearch.inference import load
from archsearch.inference.decoding import generate
from archsearch.inference.evaluation import text_score
from archsearch.inference.loading import Loaded
from archsearch.inference.vocabulary import Vocabulary
from archsearch.model import build
from archsearch.mup import Base
from archsearch.report.attend import attend, coloured, png
from archsearch.report.bench import bench, contexts_of
from archsearch.report.evaluate import on_task, on_text, write_scores
from archsearch.report.generate import Asked, answer, go_on
from archsearch.report.panels import Curve, Panel, draw_panels
from archsearch.train import generator
from tests.helpers import archsearch

PLAIN = {
    "tokens": 20, "temperature": 0.0, "top_p": 1.0, "seed": 0, "speculate": 0, "exit_layer": None,
    "context": None,
}  # fmt: skip


def said(run):
    """What a function prints on a terminal of 80 columns, and aside."""
    out, aside = io.StringIO(), io.StringIO()
    run(Console(file=out, width=80), Console(file=aside, width=80))
    return out.getvalue(), aside.getvalue()


def going_on(loaded, prompt, **given):
    return said(lambda out, aside: go_on(loaded, prompt, Asked(**PLAIN | given), out, aside))


def elements(svg, tag):
    return [e for e in ET.fromstring(svg).iter() if e.tag.endswith(tag)]


def test_text_goes_on_and_figures_stand_aside(of_text):
    loaded = load(of_text[0])
    ids = loaded.vocabulary.encode("abca")
    want = loaded.vocabulary.decode(list(generate(loaded.model, ids, 20)))
    out, aside = going_on(loaded, "abca")
    assert out == want + "\n"
    assert "20 tokens after 4 of the prompt" in aside
    assert "state" in aside
    for given in ({"speculate": 3}, {"speculate": 3, "exit_layer": 1}):
        guessed, aside = going_on(loaded, "abca", **given)
        assert guessed == out
        assert "verifications, " in aside
        assert "tokens each" in aside
    assert "without exit_loss" in aside
    _, aside = going_on(loaded, "abca" * 8)
    assert "trained on 32 tokens at a time" in aside


def test_what_a_person_gets_wrong_is_said(of_text, of_tasks):
    text, task = load(of_text[0]), load(of_tasks)
    for loaded, prompt, given, words in (
        (text, "", {}, "text is empty"),
        (text, "abc", {"context": 5}, "ask for at most 3 tokens"),
        (text, "abc", {"exit_layer": 1}, "--speculate"),
        (text, "abc", {"speculate": 2, "exit_layer": 3}, "legal: 1 to 2"),
        (text, "abc", {"speculate": 2, "temperature": 1.0}, "leave --temperature out"),
        (task, "hello", {}, "reads ids, whole numbers from 0 to 7"),
        (task, "1 8", {}, "'8' is none"),
    ):
        with pytest.raises(ModelError, match=words):
            going_on(loaded, prompt, **given)
    with pytest.raises(ModelError, match="trained on text"):
        said(lambda out, _: answer(text, 2, 8, Asked(**PLAIN), out))


def test_a_terminal_is_not_steered_by_a_text(of_text, monkeypatch):
    loaded = load(of_text[0])
    monkeypatch.setattr(
        "archsearch.report.generate.generate", lambda *given: iter(b"a\x1b[2Jb\nc\r")
    )
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)
    go_on(loaded, "abc", Asked(**PLAIN), console, Console(file=io.StringIO()))
    assert out.getvalue() == "a\ufffd[2Jb\nc\ufffd\n"
    assert "\x1b" in going_on(loaded, "abc")[0], "a file gets what was said"


def test_answers_to_a_task_with_a_verifier(of_tasks):
    out, _ = said(lambda out, _: answer(load(of_tasks), 4, 32, Asked(**PLAIN), out))
    for word in ("greedy", "one answer", "best of 4, verified", "majority of 4", "guessing"):
        assert word in out
    assert out == said(lambda out, _: answer(load(of_tasks), 4, 32, Asked(**PLAIN), out))[0]


def test_scores_of_text_and_of_tasks(of_text, of_tasks, tmp_path):
    folder, _, corpus = of_text
    source = [str(folder.parent.parent / "text.txt")]
    loaded, scores = load(folder), {}

    def run(out, aside):
        scores["text"] = on_text(loaded, source, [], 16, loaded.cache, out)
        scores["task"] = on_task(load(of_tasks), 16, 0, out)
        write_scores(tmp_path / "out", scores["text"], {"t": scores["task"]}, [], out)

    out, _ = said(run)
    for word in ("held out from training", "context 32 (training)", "context 128", "xz", "as in "):
        assert word in out
    assert f"{corpus.xz:.3f}" in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    told = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert told["text"][0]["bits"] == scores["text"][0].bits
    assert [score["length"] for score in told["tasks"]["t"]] == [15, 15, 31, 63, 127]
    assert len(elements((tmp_path / "out" / "eval.svg").read_text(), "polyline")) == 3
    (tmp_path / "other.txt").write_text("some other text, long enough for a window. " * 80)
    other = [str(tmp_path / "other.txt")]
    out, _ = said(lambda out, _: on_text(loaded, other, [16], 8, tmp_path / "cache", out))
    assert "another text than that of training" in out
    one = [text_score(loaded.model, corpus, n, windows, 64) for n, windows in ((32, 1), (64, 1))]
    assert [score.error is None for score in one] == [False, True], "one window has no spread"
    said(lambda out, _: write_scores(tmp_path / "one", one, {}, [], out))
    assert json.loads((tmp_path / "one" / "eval.json").read_text())["text"][1]["error"] is None
    with pytest.raises(ModelError, match="leave --text out"):
        on_text(load(of_tasks), other, [], 8, tmp_path / "cache", Console(file=io.StringIO()))


def test_a_benchmark_is_a_table_of_80_columns_a_picture_and_json(of_text, tmp_path):
    out, _ = said(
        lambda out, _: bench(load(of_text[0]), [32, 8, 16], "transformer_pp", 60, tmp_path, out)
    )
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if "context" in line)
    assert max(map(len, lines[start - 1 : start + 4])) <= 80
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ["8", "16", "32"]
    assert "times as long as one at 8" in out
    told = json.loads((tmp_path / "bench.json").read_text())
    assert set(told["models"]) == {"this", "baseline"}
    assert len(elements((tmp_path / "bench.svg").read_text(), "polyline")) == 6


def test_what_takes_too_long_is_said_so(of_text, tmp_path):
    out, _ = said(lambda out, _: bench(load(of_text[0]), [8, 16], "", 1e-9, tmp_path, out))
    assert "- would take more than 1e-09 s" in out
    assert "times as long" not in out


def test_contexts_are_read_as_people_write_them():
    assert contexts_of("1K, 300,64k") == [1024, 300, 65536]
    for wrong in ("", "1M", "0", "-3", "1K,,2K", "99999K"):
        with pytest.raises(ModelError, match="is no context"):
            contexts_of(wrong)


def test_the_page_shows_every_mixer_and_says_what_it_leaves_out(of_text, tmp_path):
    place = tmp_path / "new" / "page.svg"
    out, _ = said(lambda out, _: attend(load(of_text[0]), "ab<a\n", place, out))
    assert "2 mixers, 5 tokens" in out
    page = place.read_text()
    texts = [e.text for e in elements(page, "text")]
    assert {"1 mamba2, 4 heads", "2 attention, 2 heads"} <= set(texts)
    assert texts.count("<") == texts.count("\u21b5") == 4
    assert len(elements(page, "image")) == 2 + 4 + 2
    long = "ab" * 60
    attend(load(of_text[0]), long, place, Console(file=io.StringIO()))
    assert {"0", "20", "100"} <= {e.text for e in elements(place.read_text(), "text")}


def test_a_picture_holds_its_pixels():
    """Decoded by the rules of the format: signature, header, checksums, unfiltered rows."""
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 4, 3) * 10
    data, at, chunks = png(pixels), 8, {}
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            kind + body
        )
        chunks[kind] = body
        at += 12 + length
    assert struct.unpack(">IIBB", chunks[b"IHDR"][:10]) == (4, 2, 8, 2)
    rows = zlib.decompress(chunks[b"IDAT"])
    assert [rows[0], rows[13]] == [0, 0]
    assert rows[1:13] + rows[14:] == bytes(pixels.flatten().tolist())
    shades = coloured(torch.tensor([[0.0, 0.5, 1.0, -1.0]]))[0].tolist()
    assert shades[0] == [255, 255, 255]
    assert sum(shades[1]) > sum(shades[2])
    assert shades[2] != shades[3]


def test_panels_hold_every_point_within_their_axes():
    for log in (0, 2, 10):
        points = [(2.0**i, 10.0 ** (i - 2), 0.0) for i in range(7)]
        panels = [Panel("one", "x", [Curve("a", points), Curve("b", points[:1])], log=log)] * 4
        svg = draw_panels(panels)
        circles = [e for e in elements(svg, "circle") if e.get("r") == "3"]
        assert len(circles) == 4 * 8
        assert all(0 <= float(e.get("cx")) <= 330 for e in circles)
        assert all(40 - 1 <= float(e.get("cy")) <= 300 - 44 + 1 for e in circles)


def test_the_command_line_knows_the_verbs_and_ends_in_sentences(of_text, tmp_path):
    done = archsearch(
        "generate", str(of_text[0]), "--prompt", "abca", "--tokens", "8", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 9
    assert "8 tokens after 4" in done.stderr
    done = archsearch("attend", str(tmp_path / "nowhere"), "--text", "a", cwd=tmp_path)
    assert done.returncode == 4
    assert "is no directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mixer_with_many_heads_says_how_many_are_drawn(tmp_path):
    genome = Genome(64, (Gene.of("attention", heads=16),))
    model = build(genome, 8, generator=generator("heads")).eval()
    loaded = Loaded(
        folder=tmp_path,
        model=model,
        vocabulary=Vocabulary.of_ids(8),
        context=None,
        base=Base(64, 1),
    )
    attend(loaded, "1 2 3", tmp_path / "page.svg", Console(file=io.StringIO()))
    assert "8 of 16 heads" in (tmp_path / "page.svg").read_text()

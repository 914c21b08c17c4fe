"""Text as a task: rows are windows of one part of it, and a study knows which text it was."""

import random
from itertools import pairwise

import pytest
import torch

from archsearch.errors import CorpusError
from archsearch.scale.text import Text, opened
from archsearch.train import generator
from tests.helpers import TINY, in_process

TRAIN, HELD_OUT = b"abcdefghij", b"0123456789"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file whose last 5 %, which are held out, are digits, and the rest letters."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_bytes(TRAIN * 1900 + HELD_OUT * 100)
    return path


def write(source, content):
    """Write a text that a new process would read."""
    source.write_bytes(content)
    opened.cache_clear()


def test_rows_are_windows_of_their_own_part_and_every_byte_is_asked(source):
    task = Text(source=str(source), seq_len=24)
    for train, part in ((True, TRAIN), (False, HELD_OUT)):
        inputs_BT, targets_BT = task.sample(200, generator("rows"), train=train)
        assert inputs_BT.shape == targets_BT.shape
        assert inputs_BT.shape[1] == task.length
        assert torch.equal(inputs_BT[:, 1:], targets_BT[:, :-1])
        rows = {bytes(row) for row in torch.cat((inputs_BT, targets_BT[:, -1:]), 1).tolist()}
        assert all(row in part * 4 for row in rows if row[0])
        if train:
            assert len(inputs_BT) == 200
            starts = {part.index(row[:1]) for row in rows if row[0]}
            assert starts == set(range(len(part))), "they begin anywhere"


def test_held_out_rows_do_not_overlap_so_that_their_number_is_what_they_say(tmp_path):
    text = bytes(random.Random(0).choices(range(1, 128), k=8000))
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    task = Text(source=str(path), seq_len=16)
    inputs_BT, _ = task.sample(1000, generator("rows"))
    starts = sorted(text.index(bytes(row)) for row in inputs_BT.tolist())
    assert len(starts) == 400 // 16 - 1, "all that there are"
    assert all(b - a >= 16 for a, b in pairwise(starts))
    assert len(task.sample(10, generator("rows"))[0]) == 10


def test_what_there_is_is_said_in_one_line(source):
    (source.parent / "notes").mkdir()
    (source.parent / "notes" / "picture.png").write_bytes(b"\x89PNG\0")
    source.rename(source.parent / "notes" / "text.txt")
    said = Text(source=str(source.parent / "notes"), seq_len=24).about()
    assert "1 documents; 41 held-out rows of 24 bytes" in said
    assert said.endswith("no text, so left out: picture.png")


def test_rows_are_a_function_of_the_generator(source):
    task = Text(source=str(source), seq_len=5)
    one, again, other = (task.sample(8, generator(name))[0] for name in ("a", "a", "b"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_harder_task_has_longer_rows_of_the_same_text(source):
    task = Text(source=str(source), seq_len=5)
    assert task.harder() == Text(source=str(source), seq_len=10)
    assert task.harder().digest() == task.digest()
    assert Text(source=str(source), seq_len=100).harder() is None, "there are five rows of 200"


def test_a_text_is_known_by_what_it_holds(source):
    task = Text(source=str(source), seq_len=24)
    before = task.digest()
    write(source, source.read_bytes().replace(b"a", b"A", 1))
    assert task.digest() != before
    write(source, source.read_bytes().replace(b"A", b"a", 1))
    assert task.digest() == before


def test_a_text_that_is_too_short_or_missing_is_named(source):
    with pytest.raises(CorpusError, match="7 rows of 130 bytes, where at least 8"):
        Text(source=str(source), seq_len=130).digest()
    with pytest.raises(CorpusError, match=r"nowhere\.txt: no such file"):
        Text(source=str(source.with_name("nowhere.txt"))).digest()
    with pytest.raises(ValueError, match="at least 1"):
        Text(seq_len=0)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_run_searches_on_text_and_refuses_to_go_on_with_another(source, tmp_path):
    space = TINY.replace("mad/in-context-recall: {vocab: 8, seq_len: 16}",
                         "text: {source: text.txt, seq_len: 16}")  # fmt: skip
    (tmp_path / "space.yaml").write_text(space.replace("trials: 6, finalists: 3", "trials: 2"))
    run = ("run", "space.yaml", "--workers", "1", "--set", "search.finalists=0")
    done = in_process(*run, "--set", "tasks.use=[text: {source: nowhere}]", cwd=tmp_path)
    assert "nowhere: no such file" in done.stderr
    assert not (tmp_path / "runs").exists(), "nothing is left of a run that could not begin"
    done = in_process(*run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "text" in done.stdout
    write(source, source.read_bytes() + b"more")
    again = in_process(*run, "--trials", "3", cwd=tmp_path)
    assert again.returncode != 0
    assert "other data behind Text(source='text.txt', seq_len=16)" in " ".join(again.stderr.split())
    write(source, source.read_bytes()[:-4])
    assert in_process(*run, "--trials", "3", cwd=tmp_path).returncode == 0
    for given in (("runs/tiny", "model"), ("model", "again", "--format", "hf")):
        exported = in_process("export", *given, cwd=tmp_path)
        assert exported.returncode == 0, exported.stderr
    assert "next: archsearch generate again --prompt" in exported.stdout
    write(source, source.read_bytes() + b"more")
    explained = in_process("explain", "runs/tiny", "--workers", "1", cwd=tmp_path)
    assert "other data behind" in " ".join(explained.stderr.split())
    scored = in_process("eval", "runs/tiny", cwd=tmp_path)
    assert "text: another text than that of training" in scored.stdout
    assert "bits per byte" in scored.stdout

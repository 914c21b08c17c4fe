"""What is text goes in, in order; what is not is named, or skipped where it was only found."""

from __future__ import annotations

import gzip
import lzma
import os
import sys
import types

import pytest

from archsearch.errors import CorpusError
from archsearch.scale.corpus import Corpus
from archsearch.scale.sources import listed, standard_library
from tests.scale.helpers import contents, whole


def test_a_directory_is_read_in_order_without_what_is_hidden_or_no_text(opened, tmp_path):
    folder = tmp_path / "texts"
    (folder / "a" / ".git").mkdir(parents=True)
    (folder / "b.md").write_text("B")
    (folder / "a" / "z.rst").write_text("Z")
    (folder / "a" / "empty.py").touch()
    (folder / "a" / ".git" / "config").write_text("hidden")
    (folder / "a" / "picture.png").write_bytes(b"\x89PNG" + bytes(9))
    (folder / "late.txt").write_bytes(b"x" * (3 << 20) + b"\xff")
    (folder / "c.txt.gz").write_bytes(gzip.compress(b"C"))
    (folder / "d.jsonl.xz").write_bytes(lzma.compress(b'{"text": "D"}\n\n{"text": "\\u0000"}\n'))
    (folder / "e.gz").write_bytes(gzip.compress(b"half of it" * 99)[:20])
    corpus = opened(folder)
    assert whole(corpus).tobytes() == "\0Z\0B\0C\0D\0\ufffd".encode()
    assert corpus.skipped == ("a/picture.png", "e.gz", "late.txt")
    assert corpus.documents == 5


@pytest.mark.parametrize(
    "written",
    [
        ("runs/x/space.yaml", "runs/x/journal.log", "runs/x/best/model.yaml"),
        ("text/mine-0123/corpus.json", "text/mine-0123/train.bin"),
        ("sweep/trainings.jsonl", "sweep/fit.svg"),
        ("large/winner/step-00000003/state.json", "large/result.json"),
        ("large/winner/step-00000003/state.json", "large/tokenizer.json"),
    ],
)
def test_what_archsearch_writes_into_a_text_is_no_part_of_it(opened, tmp_path, written):
    folder = tmp_path / "texts"
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "a.txt").write_text("A")
    (folder / "space.yaml").write_text("mine")
    before = opened(folder)
    for name in written:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    assert opened(folder).key == before.key
    (folder / "text" / "b.txt").write_text("B")
    assert opened(folder).key != before.key


def test_sources_are_read_in_the_order_in_which_they_are_named(opened, tmp_path):
    for name in "xy":
        (tmp_path / name).write_text(name)
    corpus = opened(tmp_path / "y", tmp_path / "x", tmp_path / "y")
    assert whole(corpus).tobytes() == b"\0y\0x\0y"
    assert corpus.name == "y+2"


def test_nothing_named_is_the_standard_library(tmp_path):
    corpus = Corpus.open([], "byte", tmp_path)
    names = [source.name for source in standard_library()]
    assert names == [source.name for source in listed([])] == sorted(names)
    assert "json/decoder.py" in names
    assert not {p for name in names for p in name.split("/")} & {"tests", "test", "site-packages"}
    assert not any("_sysconfigdata" in name for name in names)
    assert corpus.name == f"python3.{sys.version_info.minor}-stdlib"
    assert corpus.skipped == ()
    assert corpus.text_bytes == len(whole(corpus)) > 5_000_000
    assert 0.5 < corpus.xz < corpus.order0 < 6


def test_rows_of_parquet(opened, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"]}), tmp_path / "a.parquet")
    assert whole(opened(tmp_path / "a.parquet")).tobytes() == b"\0one\0two"
    parquet.write_table(pyarrow.table({"body": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(CorpusError, match=r"b\.parquet: no column 'text'; there is: body"):
        opened(tmp_path / "b.parquet")


class Rows(list):
    """What `datasets.load_dataset` returns, as far as it is used."""

    column_names = ("text", "id")

    def select_columns(self, names):
        return [{name: row[name] for name in names} for row in self]


def test_a_data_set_is_known_by_its_name(opened, monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        return Rows([{"text": "tiny", "id": 1}, {"text": "stories", "id": 2}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    corpus = opened("hf:some/stories")
    assert whole(corpus).tobytes() == b"\0tiny\0stories"
    assert corpus.name == "some/stories"
    opened("hf:some/stories:en:test")
    opened("hf:some/stories::test")
    opened("hf:some/stories")  # from the cache, so it needs no network
    assert asked == [
        ("some/stories", None, "train"),
        ("some/stories", "en", "test"),
        ("some/stories", None, "test"),
    ]


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("latin.txt", b"caf\xe9 au lait", r"latin\.txt is no text in UTF-8: .* at offset 3\. Conv"),
        ("half.md", "wört☃".encode()[:-1], "unexpected end at offset 5"),
        ("late.txt", b"x" * (1 << 20) + "☃".encode()[:2] + b"x", "at offset 1048576"),
        ("data.bin", b"GIF89a\0\0", "a zero byte at offset 6"),
        ("wide.txt", "text".encode("utf-16-le"), "a zero byte at offset 1"),
        ("packed.gz", gzip.compress(b"\xff" * 9, mtime=0), "at offset 0 of what is packed"),
        ("half.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], r"half\.gz cannot be unpacked"),
        ("no.gz", b"text", r"no\.gz cannot be unpacked"),
        ("no.xz", b"text", r"no\.xz cannot be unpacked"),
        ("empty.txt", b"", "holds no text"),
        ("rows.jsonl", b'{"text": "a"}\n{"text', r"rows\.jsonl:2: no JSON"),
        ("rows.jsonl", b'{"body": "a", "id": 1}', r"jsonl:1: no field 'text' .* is: body, id"),
        ("rows.jsonl", b'\n{"text": 7}', r"jsonl:2: no field 'text' that holds a string"),
        ("rows.jsonl", b'["a"]', "jsonl:1: no field 'text' .* there is: a list"),
        ("rows.jsonl", b'{"text": ""}', "holds no text"),
    ],
)
def test_a_file_that_is_no_text_is_named_with_its_place(opened, tmp_path, name, raw, words):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(CorpusError, match=words):
        opened(tmp_path / name)
    assert contents(tmp_path / "cache") == []


def test_a_directory_without_text(opened, tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(CorpusError, match=r"/.*/pictures holds no files with text\. Name"):
        opened(tmp_path / "pictures")
    (tmp_path / "pictures" / "a.png").write_bytes(bytes(9))
    with pytest.raises(CorpusError, match=r"/.*/pictures holds no files with text \(1 without\)"):
        opened(tmp_path / "pictures")


def test_paths_that_are_missing_or_no_files(opened, tmp_path):
    with pytest.raises(CorpusError, match=r"gone\.txt: no such file.*hf:NAME"):
        opened(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorpusError, match="pipe is neither a file nor a directory"):
        opened(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(opened, prose):
    prose.chmod(0)
    with pytest.raises(CorpusError, match=r"prose\.txt cannot be read: Permission denied"):
        opened(prose)


def test_a_file_that_fails_while_it_is_read(opened, prose, monkeypatch):
    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hashlib.file_digest", fails)
    with pytest.raises(CorpusError, match=r"prose\.txt cannot be read: Input/output error"):
        opened(prose)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:", "is written hf:NAME"),
        ("hf:a:b:c:d", "is written hf:NAME"),
        ("hf:a/b", "hf:a/b cannot be loaded: no network. Without a network, name text files"),
        ("hf:a/c", "no column 'text'; there is: id"),
        ("hf:a/d", "column 'text' holds int"),
    ],
)
def test_a_data_set_that_cannot_be_used(opened, monkeypatch, spec, words):
    def load_dataset(name, *_, **__):
        if name == "a/b":
            raise ConnectionError("no\n network.")
        rows = Rows([{"text": 7, "id": 7}])
        if name == "a/c":
            rows.column_names = ("id",)
        return rows

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(CorpusError, match=words):
        opened(spec)

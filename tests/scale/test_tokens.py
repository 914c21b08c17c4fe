"""Tokens are the text that went in, in files that other trainers read."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archsearch.errors import CorpusError
from archsearch.scale import tokens
from archsearch.scale.corpus import Corpus
from tests.scale.helpers import PROSE, contents, whole


@given(documents=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"))))
def test_bytes_are_the_documents_with_a_zero_before_each(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("in")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in [*documents, "the last"])
    (folder / "rows.jsonl").write_text(rows)
    corpus = Corpus.open([str(folder)], "byte", folder / "cache")
    wanted = [text.encode() for text in [*documents, "the last"] if text]
    assert whole(corpus).tobytes() == b"".join(b"\0" + text for text in wanted)
    assert (corpus.documents, corpus.vocab, corpus.bytes_per_token) == (len(wanted), 256, 1.0)
    assert corpus.train.dtype == np.uint8


def test_the_last_twentieth_is_for_validation_from_a_whole_character_on(opened, tmp_path):
    (tmp_path / "snow.txt").write_text("☃" * 1000)
    corpus = opened(tmp_path / "snow.txt")
    assert len(corpus.validation) in range(148, 151)
    assert corpus.validation.tobytes().decode() == "☃" * (len(corpus.validation) // 3)


def test_every_tokenizer_has_the_same_validation_text(opened, prose, trained):
    from tokenizers import Tokenizer

    by_byte, by_word = opened(prose), opened(prose, tokenizer=trained)
    decode = Tokenizer.from_file(str(trained)).decode
    for part in ("train", "validation"):
        ids, text = getattr(by_word, part), getattr(by_byte, part).tobytes()
        assert decode(ids.tolist()).encode() == text.lstrip(b"\0")
        assert ids.dtype == np.uint16
        assert len(ids) < len(text) / 1.5
    bits = by_byte.bits_per_byte(len(by_word.validation) / len(by_byte.validation))
    assert by_word.bits_per_byte(1.0) == pytest.approx(bits)
    assert (by_word.order0, by_word.xz) == (by_byte.order0, by_byte.xz)
    assert by_byte.bits_per_byte(math.log(2)) == pytest.approx(1)


def test_tokens_of_a_long_text_do_not_depend_on_where_it_is_cut(prose, trained, monkeypatch):
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(trained))
    fast.no_truncation()
    known, text = tokens.tokenizer(str(trained)), b"\0" + PROSE.encode() + b"\0x" * 300
    at_once = [i for part in text.decode().split("\0")[1:] for i in (0, *fast.encode(part).ids)]
    monkeypatch.setattr(tokens, "BLOCK", 700)
    assert np.concatenate(list(known.stream(text, 0, len(text)))).tolist() == at_once


def test_text_that_cannot_be_cut_well_is_cut_between_characters(monkeypatch):
    monkeypatch.setattr(tokens, "BLOCK", 10)
    text = "☃".encode() * 100
    assert b"".join(p.tobytes() for p in tokens.tokenizer("byte").stream(text, 0, 300)) == text


def test_a_text_that_spells_the_separator_does_not_end(opened, tmp_path, trained):
    (tmp_path / "spelt.txt").write_text("a<|endoftext|>b" * 50)
    corpus = opened(tmp_path / "spelt.txt", tokenizer=trained)
    assert corpus.separator == 0
    assert (whole(corpus) == 0).sum() == 1


def test_a_vocabulary_without_an_end_gets_one_more_id(opened, prose, tmp_path, trained):
    data = json.loads(trained.read_text())
    data["added_tokens"] = []
    data["model"]["vocab"]["nothing"] = data["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "plain.json").write_text(json.dumps(data))
    corpus = opened(prose, tokenizer=tmp_path / "plain.json")
    assert (corpus.vocab, corpus.separator, int(corpus.train[0])) == (401, 400, 400)


def test_a_directory_of_hugging_face(opened, prose, tmp_path, trained):
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(trained), eos_token="é")
    fast.save_pretrained(tmp_path / "saved")
    corpus = opened(prose, tokenizer=tmp_path / "saved")
    assert int(corpus.train[0]) == corpus.separator == fast.eos_token_id
    plain = opened(prose, tokenizer=trained)
    assert np.array_equal(corpus.train[1:50], plain.train[1:50])


def test_uint16_files_are_those_of_modded_nanogpt(opened, prose, tmp_path, trained):
    corpus = opened(prose, tokenizer=trained)
    (file,) = (tmp_path / "cache").glob("*/train.bin")
    header = torch.from_file(str(file), False, 256, dtype=torch.int32)
    assert header[:3].tolist() == [20240520, 1, len(corpus.train)]
    assert not header[3:].any()
    held = torch.empty(int(header[2]), dtype=torch.uint16)
    with file.open("rb", buffering=0) as raw:
        raw.seek(256 * 4)
        assert raw.readinto(held.numpy()) == 2 * len(held)
        assert not raw.read()
    assert np.array_equal(held.numpy(), corpus.train)


def test_bytes_have_a_version_of_their_own(opened, prose, tmp_path):
    opened(prose)
    for file in (tmp_path / "cache").glob("*/*.bin"):
        assert np.fromfile(file, "<i4", 2).tolist() == [20240520, 8]


def test_a_vocabulary_of_more_than_two_bytes(opened, prose, tmp_path, trained):
    data = json.loads(trained.read_text())
    data["model"]["vocab"] |= {f"word {i}": 400 + i for i in range(70_000)}
    (tmp_path / "large.json").write_text(json.dumps(data))
    corpus = opened(prose, tokenizer=tmp_path / "large.json")
    assert corpus.vocab == 70_400
    assert corpus.train.dtype == np.uint32
    (file,) = (tmp_path / "cache").glob("*/train.bin")
    assert np.fromfile(file, "<i4", 3).tolist() == [20240801, 7, len(corpus.train)]


HARM = {
    "cut": (lambda raw: raw[:-2], "header, .* by its size"),
    "longer": (lambda raw: raw + b"more", "header, .* by its size"),
    "in the header": (lambda raw: raw[:500], "never finished"),
    "empty": (lambda raw: b"", "never finished"),
    "no header yet": (lambda raw: bytes(1024) + raw[1024:], "never finished"),
    "other": (lambda raw: b"%PDF-1.7" + raw[8:], "no token file"),
    "newer": (
        lambda raw: raw[:4] + b"\2\0\0\0" + raw[8:],
        r"version 2; .*8 \(uint8\), 1 \(uint16\), 7 \(uint32\)",
    ),
}


@pytest.mark.parametrize("which", HARM)
def test_a_token_file_that_is_not_whole_is_named_and_refused(opened, prose, tmp_path, which):
    harm, words = HARM[which]
    opened(prose)
    (file,) = (tmp_path / "cache").glob("*/validation.bin")
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(CorpusError, match=rf"validation\.bin .*{words}.*Delete the directory"):
        opened(prose)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 99}', "format 99; this archsearch reads 1"),
        ("{", "damaged: JSONDecodeError"),
        ("[]", "damaged"),
        ('{"format": 1}', "damaged: KeyError"),
        (None, "No such file"),
    ],
)
def test_a_description_that_is_damaged_or_from_another_version(
    opened, prose, tmp_path, text, words
):
    opened(prose)
    (file,) = (tmp_path / "cache").glob("*/corpus.json")
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(CorpusError, match=rf"corpus\.json.*{words}.*Delete the directory"):
        opened(prose)


@pytest.mark.parametrize(
    ("missing", "source", "tokenizer"),
    [
        ("datasets", "hf:a/b", "byte"),
        ("pyarrow", "rows.parquet", "byte"),
        ("tokenizers", "prose.txt", "prose.txt"),
        ("transformers", "prose.txt", "."),
        ("transformers", "prose.txt", "hf:gpt2"),
    ],
)
def test_what_must_be_installed_is_said(prose, tmp_path, monkeypatch, missing, source, tokenizer):
    monkeypatch.chdir(tmp_path)
    Path("rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(CorpusError, match=r"pip install 'archsearch\[text\]'"):
        Corpus.open([source], tokenizer, tmp_path / "cache")


def test_tokenizers_that_are_unknown_or_broken(opened, prose, tmp_path):
    with pytest.raises(CorpusError, match=r"unknown tokenizer 'bite'; did you mean 'byte'\?.*hf:"):
        opened(prose, tokenizer="bite")
    pytest.importorskip("tokenizers")
    (tmp_path / "broken.json").write_text('{"version": "1.0"')
    with pytest.raises(CorpusError, match=r"broken\.json is no tokenizer\.json: .+"):
        opened(prose, tokenizer=tmp_path / "broken.json")
    lookup = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    (tmp_path / "words.json").write_text(json.dumps({"version": "1.0", "model": lookup}))
    with pytest.raises(CorpusError, match=r"words\.json cannot encode the text: .+"):
        opened(prose, tokenizer=tmp_path / "words.json")
    assert contents(tmp_path / "cache") == []


def test_a_directory_without_a_tokenizer(opened, prose, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CorpusError, match=r"nothing cannot be loaded: .+"):
        opened(prose, tokenizer=tmp_path / "nothing")

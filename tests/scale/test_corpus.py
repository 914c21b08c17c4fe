"""The rows of a corpus are a function of seed and step alone; its files are whole or refused."""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archsearch.errors import CorpusError
from archsearch.scale import tokens
from archsearch.scale.corpus import Corpus, reference
from archsearch.testing.text import Markov
from archsearch.train import generator
from tests.scale.helpers import PROSE, contents, whole


def built(length, held):
    """A corpus of numbers, so that a token tells where it stands."""
    train = np.arange(length, dtype=np.uint32)
    return Corpus(
        name="numbers", key="", tokenizer="", vocab=2 * length, separator=0, documents=1,
        text_bytes=0, skipped=(), bytes_per_token=1.0, order0=0.0, xz=0.0, train=train,
        validation=np.arange(held, dtype=np.uint32) + length,
    )  # fmt: skip


@given(
    windows=st.integers(1, 40), length=st.integers(1, 9), rest=st.integers(0, 8),
    world=st.integers(1, 4), share=st.integers(1, 12), seed=st.integers(0, 9),
)  # fmt: skip
def test_an_epoch_has_every_window_once_on_any_number_of_processes(
    windows, length, rest, world, share, seed
):
    corpus, rows = built(windows * length + 1 + rest % length, length + 1), share * world
    assert corpus.windows(length) == windows
    steps = -(-2 * windows // rows)
    seen = []
    for step in range(steps):
        alone = corpus.batch(seed, step, rows, length)
        shared = [corpus.batch(seed, step, rows, length, rank, world) for rank in range(world)]
        assert torch.equal(alone, torch.cat(shared))
        assert alone.dtype == torch.int64
        assert alone.shape == (rows, length + 1)
        assert torch.equal(alone, alone[:, :1] + torch.arange(length + 1))
        seen += alone[:, 0].tolist()
    everything = [length * i for i in range(windows)]
    assert sorted(seen[:windows]) == sorted(seen[windows : 2 * windows]) == everything
    assert corpus.epochs(steps, rows, length) == steps * rows / windows


def test_rows_depend_on_seed_step_and_length_and_nothing_else(opened, prose):
    first, again = opened(prose), opened(prose)
    rows = [first.batch(seed, step, 8, 64) for seed in (0, 1) for step in (0, 7, 500)]
    back = [again.batch(seed, step, 8, 64) for seed in (1, 0) for step in (500, 7, 0)]
    assert all(map(torch.equal, rows, reversed(back)))
    assert len({row.numpy().tobytes() for row in rows}) == len(rows)


def test_the_order_of_an_epoch_is_its_own():
    corpus = built(10_001, 11)
    orders = [corpus.batch(seed, step, 1000, 10)[:, 0] for seed in (0, 1) for step in (0, 1)]
    for i, one in enumerate(orders):
        assert (one.diff() == 10).float().mean() < 0.01
        assert all((one == other).float().mean() < 0.01 for other in orders[:i])


@given(held=st.integers(2, 300), length=st.integers(1, 20), rows=st.integers(1, 40))
def test_held_out_rows_are_spread_over_the_validation_text_alone(held, length, rows):
    corpus = built(300, held)
    if length >= held:
        with pytest.raises(CorpusError, match="for validation"):
            corpus.held_out(rows, length)
        return
    found = corpus.held_out(rows, length)
    there = (held - 1) // length
    assert found.shape == (min(rows, there), length + 1)
    assert found.min() == 300
    assert found.max() < 300 + held
    gaps = found[:, 0].diff()
    assert ((gaps >= length) & (gaps <= (there / len(found) + 1) * length)).all()
    assert torch.equal(found, corpus.held_out(rows, length))


def test_a_source_of_known_entropy_is_what_it_says(opened, tmp_path):
    source = Markov.draw(12, generator("a source"))
    text = source.sample(200_000, generator("a sample"))
    (tmp_path / "markov.txt").write_bytes(text)
    corpus = opened(tmp_path / "markov.txt")
    assert source.order0 - source.entropy_rate > 0.5
    lines = reference(text)
    assert lines["order0"] == pytest.approx(source.order0, abs=0.02)
    assert source.entropy_rate + 0.1 < lines["xz"] < lines["order0"]
    # A model that counts pairs of bytes in its batches reaches the rate on held-out rows.
    counts_VV = torch.full((256, 256), 1e-3)
    for step in range(46):
        rows_BT = corpus.batch(0, step, 16, 256)
        counts_VV.index_put_((rows_BT[:, :-1], rows_BT[:, 1:]), torch.ones(()), accumulate=True)
    chances_VV = counts_VV / counts_VV.sum(1, keepdim=True)
    rows_BT = corpus.held_out(64, 128)
    nats = -chances_VV[rows_BT[:, :-1], rows_BT[:, 1:]].log().mean()
    assert corpus.bits_per_byte(float(nats)) == pytest.approx(source.entropy_rate, abs=0.05)
    alone = -(counts_VV.sum(0) / counts_VV.sum())[rows_BT[:, 1:]].log().mean()
    assert corpus.bits_per_byte(float(alone)) > source.entropy_rate + 0.5  # a control


def test_reference_lines_of_texts_that_are_known():
    flat = torch.randint(256, (100_000,), generator=generator("flat"), dtype=torch.uint8)
    lines = reference(flat.numpy().tobytes())
    assert lines["order0"] == pytest.approx(8, abs=0.01)
    assert lines["xz"] == pytest.approx(8, abs=0.05)
    lines = reference(b"ab" * 50_000)
    assert lines["order0"] == pytest.approx(1)
    assert lines["xz"] < 0.02
    assert reference(b"aaaa")["order0"] == 0


def test_what_was_made_is_used_again_and_only_for_the_same_text(
    opened, prose, tmp_path, monkeypatch, trained
):
    first, other = opened(prose), opened(prose, tokenizer=trained)
    (tmp_path / "elsewhere").mkdir()
    same = Path(prose.rename(tmp_path / "elsewhere" / "prose.txt"))
    with monkeypatch.context() as forbidden:
        forbidden.setattr(tokens, "write", None)
        assert opened(same).key == first.key != other.key
        assert opened(same, tokenizer=trained).key == other.key
    same.write_text(PROSE[:-1] + "!")
    changed = opened(same)
    assert changed.key != first.key
    assert changed.validation.tobytes()[-1:] == b"!"
    assert len(list((tmp_path / "cache").glob("prose.txt-*"))) == 3


def test_one_process_works_for_all(opened, prose, monkeypatch):
    made = []
    write = tokens.write
    monkeypatch.setattr(
        tokens, "write", lambda path, *rest: made.append(path) or write(path, *rest)
    )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: opened(prose).train.tobytes(), range(4)))
    assert len(made) == 2
    assert len(set(found)) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from archsearch.scale import corpus, tokens
write = tokens.write
def killed(path, *rest):
    if path.name == "validation.bin":
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, *rest)
tokens.write = killed
corpus.Corpus.open([sys.argv[1]], "byte", Path(sys.argv[2]))
"""


def test_what_a_killed_process_left_is_never_used(opened, prose, tmp_path):
    cache = tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", KILLED, prose, cache], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert len(list(cache.glob(".building-*"))) == 1
    assert whole(opened(prose)).tobytes() == b"\0" + PROSE.encode()
    assert not list(cache.glob(".building-*"))


@pytest.mark.parametrize("room", [1000, 30_000])
def test_a_disk_without_room(opened, prose, tmp_path, room):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(CorpusError, match=r"cannot be written: File too large.*make room"):
            opened(prose)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path / "cache") == []
    assert len(whole(opened(prose))) == len(PROSE.encode()) + 1


def test_a_cache_that_cannot_be_made(opened, prose, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CorpusError, match=r"cache cannot be written: .*name another directory"):
        opened(prose)


def test_a_text_that_is_too_short_for_a_window(opened, tmp_path):
    (tmp_path / "short.txt").write_text("x" * 399)
    corpus = opened(tmp_path / "short.txt")
    assert corpus.batch(0, 0, 2, 19).shape == (2, 20)
    words = r"380 tokens to train on and 20 for validation.*\(length here: 1 to 19\)"
    for ask in (
        corpus.windows,
        lambda n: corpus.batch(0, 0, 2, n),
        lambda n: corpus.epochs(1, 2, n),
    ):
        with pytest.raises(CorpusError, match=words):
            ask(20)
    (tmp_path / "letter.txt").write_text("x")
    corpus = opened(tmp_path / "letter.txt")
    assert len(corpus.train) == len(corpus.validation) == 1
    with pytest.raises(CorpusError, match=r"1 for validation.*too short for any --context"):
        corpus.held_out(1, 1)


def test_rows_that_cannot_be_shared():
    with pytest.raises(CorpusError, match=r"6 rows cannot be shared by 4 .* multiples of 4"):
        built(99, 9).batch(0, 0, 6, 3, rank=1, world=4)


def test_a_corpus_is_a_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        built(9, 9).name = "other"

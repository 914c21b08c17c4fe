"""A text as tokens: written once, mapped into memory, cut into windows that (seed, step) decides.

CACHE/<name>-<key>/train.bin         token files, see `tokens`
CACHE/<name>-<key>/validation.bin
CACHE/<name>-<key>/corpus.json       what they hold

The key is a hash of the sources and the tokenizer. The last 5 % of the text are for validation: the
same text whatever the tokenizer. What is being written is a hidden directory that takes its name
when it is whole.

Shapes: B batch, T time.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import lzma
import math
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from archsearch.errors import CorpusError
from archsearch.scale import tokens
from archsearch.scale.sources import SEPARATOR, NotText, Source, listed, title
from archsearch.train import generator

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
HELD_OUT = 0.05
"""Share of the text, its end, that is never trained on."""
REFERENCE_BYTES = 6_000_000
"""How much of the validation text the reference lines are computed on."""
BUILDING = ".building-"


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """The tokens of a text, and what a model of it has to beat."""

    name: str
    key: str
    """Equal for equal sources and tokenizers; a checkpoint can tell whether it met this text."""
    tokenizer: str
    vocab: int
    separator: int
    """The id before every document."""
    documents: int
    text_bytes: int
    """Of the whole text, a byte for each separator included."""
    skipped: tuple[str, ...]
    """Files of the directories that hold no text."""
    bytes_per_token: float
    """Of the validation text."""
    order0: float
    """Bits per byte of the validation text if bytes are drawn by their frequencies in it."""
    xz: float
    """Bits per byte that `xz` (preset 6) needs for the same text."""
    train: tokens.Tokens
    validation: tokens.Tokens

    @classmethod
    def open(cls, sources: Sequence[str], tokenizer: str, cache: Path) -> Corpus:
        """The tokens of sources, from the cache or made now.

        Several processes may ask at once; one does the work.

        Args:
            sources: What `scale.sources` knows; none for the standard library of this Python.
            tokenizer: What `tokens.tokenizer` knows.
            cache: Directory that keeps token files.

        Raises:
            CorpusError: if a source or the tokenizer cannot be used, there is no text, files of the
                cache are damaged, or it cannot be written.
        """
        known, parts = tokens.tokenizer(tokenizer), listed(sources)
        key, name = _key(known, parts), title(sources)
        folder = cache / f"{re.sub('[^A-Za-z0-9.]+', '-', name)[-40:].strip('-.')}-{key}"
        if not folder.is_dir():
            try:
                with _claimed(cache):
                    if not folder.is_dir():
                        _build(name, known, parts, folder, ", ".join(sources))
            except OSError as error:
                raise CorpusError(
                    f"{cache} cannot be written: {error.strerror or error}. Nothing half-written "
                    "is left; make room, or name another directory"
                ) from None
        return cls(key=key, **_load(folder))

    def windows(self, length: int) -> int:
        """How many windows of `length` tokens an epoch has; no two share an input.

        Raises:
            CorpusError: if training or validation text is shorter than one window.
        """
        shortest = min(len(self.train), len(self.validation))
        if not 0 < length < shortest:
            way = f", or a shorter --context (length here: 1 to {shortest - 1})"
            raise CorpusError(
                f"{self.name} has {len(self.train)} tokens to train on and {len(self.validation)} "
                f"for validation; a window of length {length} takes {length + 1}. Name more text"
                f"{way if shortest > 1 else '; this is too short for any --context'}"
            )
        return (len(self.train) - 1) // length

    def batch(
        self, seed: int, step: int, rows: int, length: int, rank: int = 0, world: int = 1
    ) -> Tensor:
        """The rows of one process in one step: windows_BT of int64, (rows / world, length + 1).

        The rows of all processes, one behind the other, are those of a single one. They depend on
        the arguments alone, so a training that was stopped goes on with what it would have met.
        Every epoch takes each window once, in an order of its own. Windows that follow one another
        in the text share one token, the last target of the first.

        Raises:
            CorpusError: if the text is too short, or the rows cannot be shared evenly.
        """
        windows = self.windows(length)
        if rows % world:
            raise CorpusError(
                f"a batch of {rows} rows cannot be shared by {world} processes; "
                f"legal: multiples of {world}"
            )
        share = rows // world
        first = step * rows + rank * share
        turns = [divmod(turn, windows) for turn in range(first, first + share)]
        starts = [int(_order(seed, epoch, windows)[place]) * length for epoch, place in turns]
        return _rows(self.train, starts, length)

    def held_out(self, rows: int, length: int) -> Tensor:
        """Windows of the validation text, evenly spaced: windows_BT of int64, (rows, length + 1).

        All of them where it has fewer than `rows`.

        Raises:
            CorpusError: if the text is too short.
        """
        self.windows(length)
        there = self.held_out_windows(length)
        taken = min(rows, there)
        return _rows(self.validation, [i * there // taken * length for i in range(taken)], length)

    def drawn(self, rows: int, length: int, rng: torch.Generator, *, train: bool) -> Tensor:
        """Random windows of one part: windows_BT of int64, (rows, length + 1).

        Those to train on begin anywhere. No two of the validation text share an input, so that
        what they say is worth their number; there are fewer than `rows` where it has fewer.

        Raises:
            CorpusError: if the text is too short.
        """
        self.windows(length)
        if train:
            starts_B = torch.randint(len(self.train) - length, (rows,), generator=rng)
            return _rows(self.train, starts_B.tolist(), length)
        starts_B = torch.randperm(self.held_out_windows(length), generator=rng)[:rows] * length
        return _rows(self.validation, starts_B.tolist(), length)

    def held_out_windows(self, length: int) -> int:
        """How many windows of `length` tokens the validation text has; no two share an input."""
        return max(len(self.validation) - 1, 0) // length

    def epochs(self, step: int, rows: int, length: int) -> float:
        """How often the text was seen before a step."""
        return step * rows / self.windows(length)

    def bits_per_byte(self, nats: float) -> float:
        """A loss on validation text, in nats per token, in bits per byte.

        Comparable between tokenizers that give every byte back; one that drops or replaces some
        has an easier text.
        """
        return nats / math.log(2) / self.bytes_per_token


def _rows(part: tokens.Tokens, starts: list[int], length: int) -> Tensor:
    rows = np.stack([part[start : start + length + 1] for start in starts])
    return torch.from_numpy(rows.astype(np.int64))


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, windows: int) -> Tensor:
    """A permutation of the windows."""
    return torch.randperm(windows, generator=generator("corpus", seed, "epoch", epoch))


def _key(tokenizer: tokens.Tokenizer, parts: list[Source]) -> str:
    digest = hashlib.blake2b(f"{FORMAT} {tokenizer.digest}".encode(), digest_size=8)
    for part in parts:
        digest.update(f"\0{part.name}\0{part.digest()}".encode(errors="surrogateescape"))
    return digest.hexdigest()


@contextmanager
def _claimed(cache: Path) -> Iterator[None]:
    """Keep other processes out, and remove what one that was killed has left."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in cache.glob(f"{BUILDING}*"):
            shutil.rmtree(left)
        yield


def _build(
    name: str, tokenizer: tokens.Tokenizer, parts: list[Source], folder: Path, given: str
) -> None:
    """Write the directory of a corpus; `given` are its sources as the user named them."""
    with tempfile.TemporaryDirectory(prefix=BUILDING, dir=folder.parent) as scratch:
        made, raw = Path(scratch) / "corpus", Path(scratch) / "text"
        made.mkdir()
        documents, skipped = _gather(parts, raw)
        if not documents:
            empty = any(part.named for part in parts)
            others = f" ({len(skipped)} without)" if skipped else ""
            found = "no text: it is empty" if empty else f"no files with text{others}"
            raise CorpusError(
                f"{given} holds {found}. Name a text file, or a directory that has some"
            )
        with raw.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            cut = _cut(text)
            for part, start, stop in (("train", 0, cut), ("validation", cut, len(text))):
                stream = tokenizer.stream(text, start, stop)
                count = tokens.write(made / f"{part}.bin", tokenizer.dtype, stream)
            about = {
                "format": FORMAT, "name": name, "tokenizer": tokenizer.name,
                "vocab": tokenizer.vocab, "separator": tokenizer.separator,
                "documents": documents, "text_bytes": len(text), "skipped": skipped,
                "bytes_per_token": (len(text) - cut) / max(count, 1),
                **reference(text[cut : cut + REFERENCE_BYTES]),
            }  # fmt: skip
        (made / "corpus.json").write_text(json.dumps(about, indent=2) + "\n")
        made.rename(folder)


def _gather(parts: list[Source], raw: Path) -> tuple[int, list[str]]:
    """Write the stream of all sources; how many documents it has, and the files left out."""
    documents, skipped = 0, []
    with raw.open("wb") as file:
        for part in parts:
            begun, before = file.tell(), documents
            try:
                for piece in part.stream():
                    documents += piece.count(SEPARATOR)
                    file.write(piece)
            except NotText:
                if part.named:
                    raise
                skipped.append(part.name)
                documents = before
                file.seek(begun)
                file.truncate()
    return documents, skipped


def _cut(text: mmap.mmap) -> int:
    """Where the validation text, never empty, begins: at the start of a character."""
    at = len(text) - max(round(HELD_OUT * len(text)), 1)
    while text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def reference(text: bytes) -> dict[str, float]:
    """What a text costs without a model, in bits per byte: `order0` and `xz`."""
    counts = np.bincount(np.frombuffer(text, np.uint8))
    shares = counts[counts > 0] / len(text)
    packed = lzma.compress(text, preset=6)
    return {
        "order0": float(-(shares * np.log2(shares)).sum()) + 0.0,
        "xz": 8 * len(packed) / len(text),
    }


def _load(folder: Path) -> dict[str, Any]:
    """The fields of a corpus that was written.

    Raises:
        CorpusError: if a file is missing, damaged or of another version.
    """
    file = folder / "corpus.json"
    way = f"Delete the directory {folder}, and it is made anew"
    try:
        about = json.loads(file.read_text())
        version = about.pop("format")
        if version != FORMAT:
            raise CorpusError(f"{file} has format {version}; this archsearch reads {FORMAT}")
        about["skipped"] = tuple(about["skipped"])
        parts = {part: tokens.read(folder / f"{part}.bin") for part in ("train", "validation")}
    except OSError as error:
        raise CorpusError(f"{file} cannot be read: {error.strerror}. {way}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{file} is damaged: {type(error).__name__}: {error}. {way}") from None
    except CorpusError as error:
        raise CorpusError(f"{error}. {way}") from None
    return about | parts

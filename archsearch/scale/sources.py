"""Text in: files, directories, data sets of Hugging Face, or Python's own sources, as one stream.

A source is
    FILE                          text in UTF-8, or by its name one of
                                  *.jsonl     a document a line, in the field `text`
                                  *.parquet   a document a row, in the column `text` (needs pyarrow)
                                  *.gz *.xz   any of these two or text, packed
    DIR                           all its files in order of their paths; those that are no text are
                                  skipped, and hidden ones and what archsearch wrote are left out
    hf:NAME[:CONFIG][:SPLIT]      a data set with a column `text`; `hf:NAME::SPLIT` names no config
and no source at all is the standard library.

The stream is UTF-8. Every document begins with SEPARATOR, which occurs nowhere else: a file with
that byte is no text, and in rows it becomes U+FFFD. Empty documents are left out.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import lzma
import os
import sys
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from archsearch.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

SEPARATOR = b"\0"
CHUNK = 1 << 20
"""Bytes of a file that are read at once."""
COLUMN = "text"
HUB = "hf:"
NO_SOURCE = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
"""Directories of the standard library that are left out."""
OURS = (
    {"space.yaml", "journal.log"},
    {"corpus.json", "train.bin"},
    {"trainings.jsonl"},
    {"targets.jsonl", "panel.json"},
    {"winner", "result.json"},
    {"winner", "tokenizer.json"},
    {"state.json", "optimizer.safetensors"},
)
"""What a directory holds that archsearch wrote: runs, token files, sweeps, panels of `fidelity`,
larger models, checkpoints. They change while a text is trained on, and are none themselves."""
INSTALL = "pip install 'archsearch[text]'"


class NotText(CorpusError):
    """A file does not hold text."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one data set."""

    name: str
    """Of a file its own name, or its path from the directory that was named; of a data set what
    stands behind `hf:`."""
    path: Path | None
    """None for a data set."""
    named: bool
    """Whether the user named it; a file that was found in a directory may be skipped."""

    def digest(self) -> str:
        """Size and hash of the file; a data set is known by its name alone.

        Raises:
            CorpusError: if the file cannot be read.
        """
        if self.path is None:
            return self.name
        try:
            with self.path.open("rb") as file:
                return (
                    f"{self.path.stat().st_size} {hashlib.file_digest(file, 'blake2b').hexdigest()}"
                )
        except OSError as error:
            raise CorpusError(f"{self.path} cannot be read: {error.strerror}") from None

    def stream(self) -> Iterator[bytes]:
        """The documents, each with SEPARATOR in front, in pieces of any length.

        Raises:
            NotText: if a file is not UTF-8 or is damaged.
            CorpusError: if it cannot be read or has no `text`.
        """
        if self.path is None:
            yield from map(_framed, _hub_texts(self.name))
            return
        kind, packed = self.path.suffix.lower(), self.path.suffix.lower() in (".gz", ".xz")
        if packed:
            kind = Path(self.path.stem).suffix.lower()
        if kind == ".parquet" and not packed:
            yield from map(_framed, _parquet_texts(self.path))
            return
        try:
            with _opened(self.path) as file:
                if kind == ".jsonl":
                    yield from map(_framed, _json_texts(self.path, file))
                else:
                    yield from _plain(self.path, file)
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise NotText(f"{self.path} cannot be unpacked: {error}") from None
        except OSError as error:
            raise CorpusError(f"{self.path} cannot be read: {error.strerror or error}") from None


def listed(sources: Sequence[str]) -> list[Source]:
    """Every file and data set that the sources name, in the order in which they are read.

    Raises:
        CorpusError: if a path is missing or cannot be listed.
    """
    return (
        [part for source in sources for part in _parts(source)] if sources else standard_library()
    )


def _parts(source: str) -> list[Source]:
    if source.startswith(HUB):
        return [Source(source.removeprefix(HUB), None, named=True)]
    path = Path(source).expanduser()
    if path.is_dir():
        return [Source(name, path / name, named=False) for name in _files(path)]
    if not path.exists():
        raise CorpusError(
            f"{source}: no such file or directory. A data set of Hugging Face is written "
            f"{HUB}NAME[:CONFIG][:SPLIT]"
        )
    if not path.is_file():
        raise CorpusError(f"{source} is neither a file nor a directory")
    return [Source(path.name, path, named=True)]


def _files(folder: Path, without: Container[str] = ()) -> list[str]:
    """The paths of all files below a directory, sorted.

    Without hidden ones, some folders, and what archsearch wrote below it.
    """

    def refuse(error: OSError) -> None:
        raise CorpusError(f"{error.filename} cannot be listed: {error.strerror}") from None

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [n for n in folders if not n.startswith(".") and n not in without]
        here = Path(place)
        if here != folder and any(ours <= {*folders, *files} for ours in OURS):
            folders.clear()
            continue
        found += [here / name for name in files if not name.startswith(".")]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def standard_library() -> list[Source]:
    """The sources of the Python that runs, without tests and without what its build wrote.

    Raises:
        CorpusError: if they are not installed.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    names = [
        name
        for name in _files(folder, NO_SOURCE)
        if name.endswith(".py")
        and not name.startswith(("_sysconfigdata", "config-"))  # these hold paths of the machine
    ]
    if not names:
        raise CorpusError(
            f"this Python has no sources of its standard library in {folder}; name a text file"
        )
    return [Source(name, folder / name, named=False) for name in names]


def title(sources: Sequence[str]) -> str:
    """A short name of the sources."""
    if not sources:
        return f"python{sys.version_info.major}.{sys.version_info.minor}-stdlib"
    first = sources[0].removeprefix(HUB)
    first = first if sources[0].startswith(HUB) else Path(first).expanduser().resolve().name
    return first + (f"+{len(sources) - 1}" if len(sources) > 1 else "")


def _framed(text: str) -> bytes:
    """A document of a row."""
    clean = text.replace("\0", "\ufffd").encode(errors="replace")
    return SEPARATOR + clean if clean else b""


def _opened(path: Path) -> BinaryIO:
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    return opener(path, "rb")


def _plain(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """One file as one document, checked on the way."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    while chunk := file.read(CHUNK):
        if (nul := chunk.find(SEPARATOR)) >= 0:
            raise NotText(_what(path, f"a zero byte at offset {at + nul}"))
        begun = at - len(decoder.getstate()[0])
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise NotText(_what(path, f"{error.reason} at offset {begun + error.start}")) from None
        yield chunk if at else SEPARATOR + chunk
        at += len(chunk)
    if pending := decoder.getstate()[0]:
        raise NotText(_what(path, f"unexpected end at offset {at - len(pending)}"))


def _what(path: Path, why: str) -> str:
    unpacked = " of what is packed" if path.suffix.lower() in (".gz", ".xz") else ""
    return (
        f"{path} is no text in UTF-8: {why}{unpacked}. Convert it, "
        "e.g. with iconv -f latin1 -t utf-8, or leave it out"
    )


def _json_texts(path: Path, file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{path}:{number}: no JSON: {error}") from None
        text = row.get(COLUMN) if isinstance(row, dict) else None
        if not isinstance(text, str):
            fields = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
            raise CorpusError(
                f"{path}:{number}: no field '{COLUMN}' that holds a string; there is: {fields}"
            )
        yield text


def _parquet_texts(path: Path) -> Iterator[str]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise CorpusError(f"{path}: reading parquet needs pyarrow: {INSTALL}") from None
    try:
        with parquet.ParquetFile(path) as file:
            _need_column(str(path), file.schema_arrow.names)
            for batch in file.iter_batches(columns=[COLUMN]):
                yield from _strings(str(path), batch.column(0).to_pylist())
    except ArrowInvalid as error:
        raise NotText(f"{path} is no parquet file: {error}") from None
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error}") from None


def _hub_texts(spec: str) -> Iterator[str]:
    name, config, split, *more = [*spec.split(":"), "", ""]
    if not name or any(more):
        raise CorpusError(f"{HUB}{spec}: a data set is written {HUB}NAME[:CONFIG][:SPLIT]")
    try:
        from datasets import load_dataset
    except ImportError:
        raise CorpusError(f"{HUB}{spec}: data sets need more packages: {INSTALL}") from None
    try:
        rows = load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # noqa: BLE001 - datasets has many errors of its own
        raise CorpusError(
            f"{HUB}{spec} cannot be loaded: {' '.join(str(error).split()).rstrip('.')}. "
            "Without a network, name text files, or what this machine has loaded before"
        ) from None
    _need_column(HUB + spec, rows.column_names)
    for row in rows.select_columns([COLUMN]):
        yield from _strings(HUB + spec, [row[COLUMN]])


def _need_column(where: str, names: Sequence[str]) -> None:
    if COLUMN not in names:
        raise CorpusError(f"{where}: no column '{COLUMN}'; there is: {', '.join(names)}")


def _strings(where: str, values: list[Any]) -> list[str]:
    """The values of a column, of which some may be missing."""
    for value in values:
        if not isinstance(value, str | None):
            raise CorpusError(f"{where}: column '{COLUMN}' holds {type(value).__name__}, not text")
    return [value for value in values if value]

"""Tokenizers, and token files that other trainers read.

A token file is a header of 256 little-endian int32 (magic, version, number of tokens, zeros), then
the tokens. The first three words are those of llm.c (dev/data/data_common.py) and of
modded-nanogpt, so its uint16 files are theirs and its uint32 files those that llm.c writes for
Llama 3. Neither has bytes: version 8 of the GPT-2 magic is ours. From 2^31 tokens on, which llm.c
refuses, the number goes on into the fourth word, as an int64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archsearch.errors import CorpusError, nearest
from archsearch.scale.sources import HUB, INSTALL, SEPARATOR

if TYPE_CHECKING:
    import mmap

    from numpy.typing import NDArray

    Tokens = NDArray[np.unsignedinteger[Any]]

HEADER = 256
"""Words of the header, four bytes each."""
FORMATS = {"uint8": (20240520, 8), "uint16": (20240520, 1), "uint32": (20240801, 7)}
"""Magic and version by the type of a token."""
BYTE = "byte"
FILE = "tokenizer.json"
"""As the package `tokenizers` writes it."""
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<s>", "<bos>")
"""Tokens that may separate documents, the best first, where a vocabulary does not say its own."""
BLOCK = 1 << 18
"""Bytes of text that are tokenized at once."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Text to ids. Ids of several pieces of text are those of the whole, near enough."""

    name: str
    vocab: int
    """Ids go from 0 to below this."""
    separator: int
    """Stands before every document."""
    digest: str
    """Equal for tokenizers that give the same ids."""
    encode: Callable[[list[str]], Iterable[Any]]
    """The ids of each text, without any that were not asked for."""
    decode: Callable[[list[int]], str]
    """The text of ids; U+FFFD for what is no character."""
    json: str = ""
    """The file `tokenizer.json` that makes it again; empty for `byte`, which needs none."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds an id; uint32 only above 65,536 of them."""
        size = "uint8" if self.vocab <= 1 << 8 else "uint16" if self.vocab <= 1 << 16 else "uint32"
        return np.dtype(size).newbyteorder("<")

    def stream(self, text: bytes | mmap.mmap, start: int, stop: int) -> Iterator[Tokens]:
        """The tokens of a part of a stream of `sources`, block by block."""
        separator = np.array([self.separator], self.dtype)
        for block in _blocks(text, start, stop):
            first, *documents = block.decode().split(SEPARATOR.decode())
            for i, ids in enumerate(self.encode([first, *documents])):
                if i:
                    yield separator
                yield np.asarray(ids, self.dtype)


def _blocks(text: bytes | mmap.mmap, start: int, stop: int) -> Iterator[bytes]:
    """Cut text before a document or, in a long one, before a line that starts with no blank.

    There every tokenizer in use that works on words (GPT-2's pattern and its heirs) cuts too. A
    text without such lines is cut between two characters.
    """
    while start < stop:
        end = min(start + BLOCK, stop)
        if end < stop:
            whole = text[start:end]
            cut = max(whole.rfind(SEPARATOR), 0) or _line(whole) or _character(whole)
            end = start + cut
        yield text[start:end]
        start = end


def _line(text: bytes) -> int:
    """Where the last line that starts with no blank starts; 0 if there is none."""
    at = len(text)
    while (at := text.rfind(b"\n", 0, at)) >= 0:
        if text[at + 1 : at + 2].strip():
            return at + 1
    return 0


def _character(text: bytes) -> int:
    """Where the last character starts."""
    at = len(text) - 1
    while text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a name: `byte`, a `tokenizer.json`, a directory that has one, or `hf:NAME`.

    `byte` has an id for each byte, the byte itself; documents are separated by 0, which no text
    holds. Other vocabularies separate by the end of a text or, where they have none, by one more id
    of their own, the last one.

    Raises:
        CorpusError: if it is unknown, damaged, or needs packages that are not there.
    """
    if name == BYTE:
        return Tokenizer(BYTE, 256, 0, BYTE, lambda texts: map(_bytes, texts), _text)
    path = Path(name).expanduser()
    if name.startswith(HUB) or path.is_dir():
        return _hugging_face(name)
    if not path.is_file():
        raise CorpusError(
            f"unknown tokenizer '{name}'; {nearest(name, [BYTE])}, a tokenizer.json, a directory "
            f"that transformers loads one from, or {HUB}NAME for one of Hugging Face"
        )
    try:
        from tokenizers import Tokenizer as Fast
    except ImportError:
        raise CorpusError(f"{name}: reading a tokenizer needs more packages: {INSTALL}") from None
    try:
        return _fast(path.name, Fast.from_file(str(path)), None)
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more special
        raise CorpusError(f"{name} is no tokenizer.json: {error}") from None


def _bytes(text: str) -> Tokens:
    return np.frombuffer(text.encode(), np.uint8)


def _text(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def _hugging_face(name: str) -> Tokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise CorpusError(f"{name}: this tokenizer needs more packages: {INSTALL}") from None
    place = name.removeprefix(HUB) if name.startswith(HUB) else str(Path(name).expanduser())
    try:
        loaded = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # noqa: BLE001 - what a repository can lack has no end
        raise CorpusError(
            f"the tokenizer {name} cannot be loaded: {' '.join(str(error).split())}"
        ) from None
    ids = (loaded.eos_token_id, loaded.bos_token_id)
    separator = next((i for i in ids if i is not None), None)
    if not getattr(loaded, "is_fast", False):
        raise CorpusError(
            f"the tokenizer {name} has no fast version; convert it to a tokenizer.json first"
        )
    title = name if name.startswith(HUB) else Path(place).resolve().name
    return _fast(title, loaded.backend_tokenizer, separator)


def _fast(name: str, fast: Any, separator: int | None) -> Tokenizer:
    """A tokenizer of the package `tokenizers`; text that spells a special token is text."""
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    known = fast.get_vocab()
    vocab = max(known.values(), default=-1) + 1
    if separator is None:
        separator = next((known[end] for end in ENDS if end in known), vocab)
    json = fast.to_str()
    digest = hashlib.blake2b(json.encode()).hexdigest()

    def encode(texts: list[str]) -> Iterator[list[int]]:
        try:
            encodings = fast.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # noqa: BLE001
            raise CorpusError(f"the tokenizer {name} cannot encode the text: {error}") from None
        yield from (encoding.ids for encoding in encodings)

    def decode(ids: list[int]) -> str:
        text: str = fast.decode(ids, skip_special_tokens=False)
        return text

    known_as = f"{digest} {separator}"
    return Tokenizer(name, max(vocab, separator + 1), separator, known_as, encode, decode, json)


def keep(name: str, folder: Path) -> None:
    """Write what a tokenizer is made from into a directory, as `tokenizer.json`; `byte` has none.

    Raises:
        CorpusError: if it is unknown, damaged, or needs packages that are not there.
    """
    if made := tokenizer(name).json:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(made, encoding="utf-8")


def kept(folder: Path, above: int = 0) -> str:
    """What `keep` wrote into a directory or one of so many above it; empty if there is nothing."""
    places = (folder.resolve(), *folder.resolve().parents[:above])
    files = (place / FILE for place in places)
    return next((str(file) for file in files if file.is_file()), "")


def write(path: Path, dtype: np.dtype[Any], parts: Iterable[Tokens]) -> int:
    """Write a token file; its header comes last, so that half a file has none.

    Returns:
        The number of tokens.
    """
    count = 0
    with path.open("wb") as file:
        file.write(bytes(4 * HEADER))
        for part in parts:
            file.write(part.tobytes())
            count += len(part)
        header = np.zeros(HEADER, "<i4")
        header[:2] = FORMATS[dtype.name]
        header[2:4] = np.array([count], "<i8").view("<i4")
        file.seek(0)
        file.write(header.tobytes())
    return count


def read(path: Path) -> Tokens:
    """The tokens of a file, mapped into memory.

    Raises:
        CorpusError: if it is missing, no token file, of another version, or not whole.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(4 * HEADER), "<i4")
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from None
    if size < 4 * HEADER or header[0] not in {magic for magic, _ in FORMATS.values()}:
        raise CorpusError(f"{path} is no token file, or was never finished")
    known = {form: name for name, form in FORMATS.items()}
    form = (int(header[0]), int(header[1]))
    if form not in known:
        legal = ", ".join(f"{version} ({name})" for name, (_, version) in FORMATS.items())
        raise CorpusError(f"{path} has version {form[1]}; this archsearch reads {legal}")
    dtype, count = np.dtype(known[form]).newbyteorder("<"), int(header[2:4].view("<i8")[0])
    held = (size - 4 * HEADER) / dtype.itemsize
    if held != count:
        raise CorpusError(f"{path} is damaged: {count} tokens by its header, {held:g} by its size")
    if not count:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", offset=4 * HEADER, shape=(count,)).view(np.ndarray)

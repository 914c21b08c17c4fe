"""Real text as a task of a search: the next byte."""
# Shapes: B rows, T = seq_len tokens.

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from archsearch.errors import CorpusError
from archsearch.scale.sources import HUB
from archsearch.words import count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from archsearch.scale.corpus import Corpus

FEWEST = 8
"""Held-out rows below which their standard error says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Windows of real text in bytes; at every byte, the model answers with the next one.

    The source is what `archsearch scale --text` takes: a file, a directory, or `hf:NAME` for a data
    set of Hugging Face; without one, the standard library of this Python. Rows for training begin
    anywhere in its first 95 %. Held-out rows are of the rest and do not overlap, so there may be
    fewer than were asked for. A study knows its text by a digest: it does not go on with another.
    """

    name: ClassVar[str] = "text"
    readout: ClassVar[str] = "token"
    vocab: ClassVar[int] = 256
    tokenizer: ClassVar[str] = "byte"
    axes: ClassVar[Mapping[str, tuple[float, ...]]] = {"seq_len": (256, 512, 1024)}

    source: str = ""
    """Where the text is, from the current directory on; empty for the standard library."""
    seq_len: int = 128
    """Bytes in a row, the last target left out."""

    def __post_init__(self) -> None:
        """Reject rows of nothing."""
        if self.seq_len < 1:
            raise ValueError(f"seq_len {self.seq_len} is too short; text needs at least 1")

    @property
    def chance(self) -> float:
        """Accuracy of guessing any byte. The commonest one is right more often than that."""
        return 1 / self.vocab

    @property
    def length(self) -> int:
        """Tokens T in the rows that `sample` returns."""
        return self.seq_len

    def harder(self) -> Text | None:
        """Rows twice as long of the same text; None if too few of them are held out."""
        longer = replace(self, seq_len=2 * self.seq_len)
        there = opened(self._place).held_out_windows(longer.seq_len)
        return longer if there >= FEWEST else None

    def about(self) -> str:
        """How much text there is, in one line."""
        corpus = opened(self._place)
        rows = corpus.held_out_windows(self.seq_len)
        said = f"{corpus.name}, {count(corpus.text_bytes)} bytes in {corpus.documents} documents; "
        said += f"{rows} held-out rows of {self.seq_len} bytes"
        if corpus.skipped:
            said += f"; no text, so left out: {', '.join(corpus.skipped[:3])}"
            said += f" and {len(corpus.skipped) - 3} more" * (len(corpus.skipped) > 3)
        return said

    @property
    def _place(self) -> str:
        hub = self.source.startswith(HUB)
        place = Path(self.source).expanduser().absolute()
        return self.source if hub or not self.source else str(place)

    def digest(self) -> str:
        """Equal for equal texts.

        Raises:
            CorpusError: if there is no text, or too little of it.
        """
        corpus = opened(self._place)
        rows = corpus.held_out_windows(self.seq_len)
        if rows < FEWEST or len(corpus.train) <= self.seq_len:
            raise CorpusError(
                f"{corpus.name} has {corpus.text_bytes} bytes, of which the last "
                f"{len(corpus.validation)} are held out: {rows} rows of {self.seq_len} bytes, "
                f"where at least {FEWEST} are needed. Name more text, or a smaller seq_len"
            )
        return corpus.key

    def sample(self, n: int, rng: Generator, *, train: bool = False) -> tuple[Tensor, Tensor]:
        """Draw n rows.

        Args:
            n: Rows B; fewer are drawn where fewer are held out.
            rng: CPU generator, the source of every draw.
            train: From the text that is trained on, not from what is held out.

        Returns:
            inputs_BT and targets_BT, int64, all scored.
        """
        windows_BT = opened(self._place).drawn(n, self.seq_len, rng, train=train)
        return windows_BT[:, :-1].contiguous(), windows_BT[:, 1:].contiguous()


@functools.lru_cache(maxsize=4)
def opened(place: str) -> Corpus:
    """A text by its absolute path or `hf:` name. Read once in a process: digest and rows agree."""
    from archsearch.scale.corpus import Corpus

    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Corpus.open([place] if place else [], "byte", cache / "archsearch" / "text")

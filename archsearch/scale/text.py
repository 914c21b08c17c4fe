"""Real text as a task of a search: the next byte."""
# Shapes: B rows, T = seq_len tokens.

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from archsearch.scale.sources import HUB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from archsearch.scale.corpus import Corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Windows of real text in bytes; at every byte, the model answers with the next one.

    The source is what `archsearch scale --text` takes: a file, a directory, or `hf:NAME` for a data
    set of Hugging Face; without one, the standard library of this Python. Rows for training begin
    anywhere in its first 95 %, held-out rows anywhere in the rest. A study knows its text by a
    digest: it does not go on with another.
    """

    name: ClassVar[str] = "text"
    readout: ClassVar[str] = "token"
    vocab: ClassVar[int] = 256
    tokenizer: ClassVar[str] = "byte"
    axes: ClassVar[Mapping[str, tuple[float, ...]]] = {"seq_len": (256, 512, 1024)}

    source: str = ""
    """Where the text is; empty for the standard library."""
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

    def harder(self) -> Text:
        """Rows twice as long of the same text."""
        return replace(self, seq_len=2 * self.seq_len)

    @property
    def _place(self) -> str:
        hub = self.source.startswith(HUB)
        return self.source if hub or not self.source else str(Path(self.source).absolute())

    def digest(self) -> str:
        """Equal for equal texts.

        Raises:
            CorpusError: if there is no text, or too little of it.
        """
        corpus = _opened(self._place)
        corpus.windows(self.seq_len)
        return corpus.key

    def sample(self, n: int, rng: Generator, *, train: bool = False) -> tuple[Tensor, Tensor]:
        """Draw n rows.

        Args:
            n: Rows B.
            rng: CPU generator, the source of every draw.
            train: From the text that is trained on, not from what is held out.

        Returns:
            inputs_BT and targets_BT, int64, all scored.
        """
        windows_BT = _corpus(self._place).drawn(n, self.seq_len, rng, train=train)
        return windows_BT[:, :-1].contiguous(), windows_BT[:, 1:].contiguous()


def _opened(place: str) -> Corpus:
    from archsearch.scale.corpus import Corpus

    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Corpus.open([place] if place else [], "byte", cache / "archsearch" / "text")


_corpus = functools.lru_cache(maxsize=4)(_opened)
"""The same, without a look at the files where they were read before."""

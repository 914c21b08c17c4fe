"""What a model reads and writes as ids: text by a tokenizer, or the ids of a task themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archsearch.errors import ModelError

if TYPE_CHECKING:
    from archsearch.scale.tokens import Tokenizer

BROKEN = "\ufffd"
"""Stands for bytes that are no character, or not yet one."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Text to ids and back."""

    size: int
    encode: Callable[[str], list[int]]
    """The ids of a text, at least one.

    Raises:
        ModelError: if it is empty or cannot be read.
    """
    decode: Callable[[Sequence[int]], str]
    tokenizer: str = ""
    """The name that `scale.tokens` knows it by; empty for the ids of a task."""
    end: int | None = None
    """Stands between documents; None where there are none."""

    @classmethod
    def of_text(cls, tokenizer: Tokenizer, name: str, size: int) -> Vocabulary:
        """The texts of a tokenizer, for a model of `size` ids."""

        def encode(text: str) -> list[int]:
            if not text:
                raise ModelError("the text is empty; a model goes on from at least one character")
            ids = [int(i) for given in tokenizer.encode([text]) for i in given]
            if not ids:
                raise ModelError(f"the tokenizer {name} makes no token of {text!r}")
            return ids

        end = tokenizer.separator if tokenizer.separator < size else None
        return cls(size, encode, lambda ids: tokenizer.decode([*ids]), name, end)

    @classmethod
    def of_ids(cls, size: int, other: str = "") -> Vocabulary:
        """The ids themselves, as whole numbers with blanks between them.

        Args:
            size: Ids go from 0 to below this.
            other: Which weights beside these were trained on text, as the end of an error.
        """

        def encode(text: str) -> list[int]:
            words = text.replace(",", " ").split()
            wrong = [word for word in words if not (word.isdecimal() and int(word) < size)]
            if wrong or not words:
                what = f"'{wrong[0]}' is none" if wrong else "there is none"
                raise ModelError(
                    f"this model reads ids, whole numbers from 0 to {size - 1} with blanks between "
                    f"them; {what}. It was trained on a task, not on text"
                    + (f"; {other}" if other else "")
                )
            return [int(word) for word in words]

        return cls(size, encode, lambda ids: " ".join(map(str, ids)))

    def pieces(self, before: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
        """The text of ids that follow others, piece by piece as soon as characters are whole."""
        seen = [*before]
        said = len(self.decode(seen))
        for token in ids:
            seen.append(token)
            text = self.decode(seen).removesuffix(BROKEN)
            yield text[said:]
            said = max(said, len(text))
        yield self.decode(seen)[said:]

"""In-context recall. Poli et al. 2024 (MAD), arXiv 2403.17844."""
# Shapes: B rows, T = seq_len - 1 tokens.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class InContextRecall:
    """Pairs of a key and its value; wherever a key comes again, the model answers with its value.

    The lower half of the ids are keys, the upper half values. Context keys are uniform; a key's
    value is drawn once per row, uniformly, so two keys may share one. The last pair is a probe
    whose key is uniform over the distinct keys shown before it.

    Invariant: the target at a key is its value if the key was shown earlier in the row, and is
    not scored otherwise; positions of values are never scored; the last position always is.

    Source: Poli et al. 2024 (MAD), arXiv 2403.17844; multi-query, as in
    github.com/athms/mad-lab at 0f49a45.
    """

    name: ClassVar[str] = "mad/in-context-recall"
    readout: ClassVar[str] = "token"
    axes: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "vocab": (32, 64, 128),
        "seq_len": (256, 512, 1024),
    }

    vocab: int = 16
    """Number of ids, half of them keys and half values."""
    seq_len: int = 128
    """Tokens in a row, the probe's value included, which is never an input."""

    def __post_init__(self) -> None:
        """Reject sizes that leave no choice of key, or no pair before the probe."""
        if self.vocab < 4 or self.vocab % 2:
            why = "odd" if self.vocab % 2 else "too small"
            raise ValueError(
                f"vocab {self.vocab} is {why}; in-context recall needs an even vocab of at least 4"
            )
        if self.seq_len < 4 or self.seq_len % 2:
            why = "odd" if self.seq_len % 2 else "too short"
            raise ValueError(
                f"seq_len {self.seq_len} is {why}; "
                "in-context recall needs an even seq_len of at least 4"
            )

    @property
    def chance(self) -> float:
        """Accuracy of guessing any one value: each is the answer with equal probability."""
        return 2 / self.vocab

    @property
    def ceiling(self) -> float:
        """Best reachable accuracy: every scored key was shown with its value."""
        return 1.0

    @property
    def length(self) -> int:
        """Tokens T in the rows that `sample` returns."""
        return self.seq_len - 1

    def harder(self) -> InContextRecall:
        """The same ids in rows twice as long: a model of this task reads them as they are."""
        return replace(self, seq_len=2 * self.seq_len)

    def sample(self, n: int, rng: Generator, *, train: bool = False) -> tuple[Tensor, Tensor]:
        """Draw n rows.

        Args:
            n: Rows B.
            rng: CPU generator, the source of every draw.
            train: Give the next token as target at every position, unpredictable keys included.

        Returns:
            inputs_BT and targets_BT, int64, -100 where unscored.
        """
        from ._recall import pair_rows

        return pair_rows(n, rng, pairs=self.seq_len // 2, keys=self.vocab // 2, train=train)

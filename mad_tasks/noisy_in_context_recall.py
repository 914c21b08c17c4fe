"""Noisy in-context recall. Poli et al. 2024 (MAD), arXiv 2403.17844."""
# Shapes: B rows, T = seq_len - 1 tokens.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyInContextRecall:
    """In-context recall with pairs of noise tokens strewn in, which the model must pass over.

    The top `noise_vocab` ids are noise; of the rest, the lower half are keys and the upper half
    values, as in `InContextRecall`. Each context pair turns into two independent uniform noise
    tokens with probability `frac_noise`, except one pair that is kept: its index is uniform over
    all pairs, and where it falls on the probe, which is never noise, nothing is kept. A row
    whose context would then be all noise (possible in short rows; MAD's code fails on it) keeps
    one uniformly chosen pair.

    Invariant: the target at a key is its value if the key was shown earlier in the row, and is
    not scored otherwise; values and noise are never scored; the last position always is.

    Source: Poli et al. 2024 (MAD), arXiv 2403.17844; multi-query, as in
    github.com/athms/mad-lab at 0f49a45.
    """

    name: ClassVar[str] = "mad/noisy-in-context-recall"
    readout: ClassVar[str] = "token"
    axes: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "vocab": (48, 80, 144),
        "seq_len": (256, 512, 1024),
        "frac_noise": (0.4, 0.6, 0.8),
    }

    vocab: int = 32
    """Number of ids: keys, as many values, and noise."""
    seq_len: int = 128
    """Tokens in a row, the probe's value included, which is never an input."""
    noise_vocab: int = 16
    """Number of noise ids, the highest ones."""
    frac_noise: float = 0.2
    """Probability that a context pair is noise, before one pair is kept."""

    def __post_init__(self) -> None:
        """Reject sizes that leave no choice of key or of noise, or no pair before the probe."""
        if self.noise_vocab < 1:
            raise ValueError(
                f"noise_vocab {self.noise_vocab} is too small; "
                "noisy in-context recall needs at least 1 noise id"
            )
        symbols = self.vocab - self.noise_vocab
        if symbols < 4 or symbols % 2:
            raise ValueError(
                f"vocab {self.vocab} with noise_vocab {self.noise_vocab} leaves {symbols} ids for "
                "keys and values; noisy in-context recall needs an even number of at least 4, "
                f"so vocab {self.noise_vocab + 4}, {self.noise_vocab + 6} and so on"
            )
        if self.seq_len < 4 or self.seq_len % 2:
            why = "odd" if self.seq_len % 2 else "too short"
            raise ValueError(
                f"seq_len {self.seq_len} is {why}; "
                "noisy in-context recall needs an even seq_len of at least 4"
            )
        if not 0 <= self.frac_noise < 1:
            raise ValueError(
                f"frac_noise {self.frac_noise} is out of range; "
                "noisy in-context recall needs 0 <= frac_noise < 1"
            )

    @property
    def chance(self) -> float:
        """Accuracy of guessing any one value: each is the answer with equal probability."""
        return 2 / (self.vocab - self.noise_vocab)

    @property
    def ceiling(self) -> float:
        """Best reachable accuracy: every scored key was shown with its value."""
        return 1.0

    @property
    def length(self) -> int:
        """Tokens T in the rows that `sample` returns."""
        return self.seq_len - 1

    def harder(self) -> NoisyInContextRecall:
        """The same ids in rows twice as long: a model of this task reads them as they are."""
        return replace(self, seq_len=2 * self.seq_len)

    def sample(self, n: int, rng: Generator, *, train: bool = False) -> tuple[Tensor, Tensor]:
        """Draw n rows.

        Args:
            n: Rows B.
            rng: CPU generator, the source of every draw.
            train: Give the next token as target at every position, keys and noise included.

        Returns:
            inputs_BT and targets_BT, int64, -100 where unscored.
        """
        from ._recall import pair_rows

        return pair_rows(
            n,
            rng,
            pairs=self.seq_len // 2,
            keys=(self.vocab - self.noise_vocab) // 2,
            noise_vocab=self.noise_vocab,
            frac_noise=self.frac_noise,
            train=train,
        )

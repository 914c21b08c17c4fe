"""Compression. Poli et al. 2024 (MAD), arXiv 2403.17844."""
# Shapes: B rows, T = seq_len tokens.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Compression:
    """Random tokens and a compression token, at which the model has to hold the whole row.

    The vector at the last position is the code (`readout` is "code"): a decoder sees nothing
    else of the row, apart from each position's index, and rebuilds every token. Tokens are
    uniform over 0..vocab-2; the last one is always vocab-1.

    Invariant: the targets are the inputs, the constant last token included; all are scored.

    Source: Poli et al. 2024 (MAD), arXiv 2403.17844; as in github.com/athms/mad-lab at 0f49a45.
    """

    name: ClassVar[str] = "mad/compression"
    readout: ClassVar[str] = "code"
    axes: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "vocab": (32, 64, 128),
        "seq_len": (64, 128, 256),
    }

    vocab: int = 16
    """Number of ids, the compression token included."""
    seq_len: int = 32
    """Tokens in a row, the compression token included."""

    def __post_init__(self) -> None:
        """Reject sizes that leave nothing to compress."""
        if self.vocab < 3:
            raise ValueError(
                f"vocab {self.vocab} is too small; compression needs a vocab of at least 3"
            )
        if self.seq_len < 2:
            raise ValueError(
                f"seq_len {self.seq_len} is too short; compression needs a seq_len of at least 2"
            )

    @property
    def chance(self) -> float:
        """Accuracy of the constant last token, which is free, and any one token elsewhere.

        The guess may know the position but not the row: (1 + (T - 1) / (vocab - 1)) / T.
        """
        return (1 + (self.seq_len - 1) / (self.vocab - 1)) / self.seq_len

    @property
    def ceiling(self) -> float:
        """Best reachable accuracy: the targets are the inputs. The width of the code may limit."""
        return 1.0

    @property
    def length(self) -> int:
        """Tokens T in the rows that `sample` returns."""
        return self.seq_len

    def harder(self) -> Compression:
        """Twice as many tokens in one code of the same width."""
        return replace(self, seq_len=2 * self.seq_len)

    def sample(self, n: int, rng: Generator, *, train: bool = False) -> tuple[Tensor, Tensor]:
        """Draw n rows.

        Args:
            n: Rows B.
            rng: CPU generator, the source of every draw.
            train: Makes no difference here.

        Returns:
            inputs_BT and targets_BT, int64; every target is scored.
        """
        import torch

        inputs_BT = torch.randint(self.vocab - 1, (n, self.seq_len), generator=rng)
        inputs_BT[:, -1] = self.vocab - 1
        return inputs_BT, inputs_BT.clone()

"""Selective copying. Poli et al. 2024 (MAD), arXiv 2403.17844."""
# Shapes: B rows, T = seq_len tokens, C tokens to copy, N blanks between them, R = C + N.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ._common import IGNORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectiveCopying:
    """Content tokens among blanks, then a copy token; the model repeats the content in order.

    A row is a region of `copy` content tokens and seq_len - 2 * copy - 1 blanks, the copy token,
    and `copy` more blanks under which the content is due. Content is uniform over 0..vocab-3,
    vocab-2 is the blank and vocab-1 the copy token.

    With `spacing` "mad" each blank is put before a uniformly chosen content token, as MAD's code
    does: the gaps are nearly regular, and the last content token always sits right before the
    copy token. With "uniform" the content takes uniform positions of the region, without
    replacement, as in the denoising task of Jing et al. 2017, arXiv 1706.02761.

    Invariant: the last `copy` targets are the content in order; nothing else is scored.

    Source: Poli et al. 2024 (MAD), arXiv 2403.17844; as in github.com/athms/mad-lab at 0f49a45.
    """

    name: ClassVar[str] = "mad/selective-copying"
    readout: ClassVar[str] = "token"
    axes: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "vocab": (32, 64, 128),
        "seq_len": (512, 1024),
        "copy": (32, 64, 96),
    }

    vocab: int = 16
    """Number of ids, the blank and the copy token included."""
    seq_len: int = 256
    """Tokens in a row, the blanks under the answer included."""
    copy: int = 16
    """Number of tokens to copy."""
    spacing: str = "mad"
    """Where the content stands: "mad" or "uniform"."""

    def __post_init__(self) -> None:
        """Reject sizes that leave no choice of content, or no blank to skip."""
        if self.vocab < 4:
            raise ValueError(
                f"vocab {self.vocab} is too small; selective copying needs a vocab of at least 4"
            )
        if self.copy < 1:
            raise ValueError(
                f"copy {self.copy} is too small; selective copying needs a copy of at least 1"
            )
        if self.seq_len < 2 * self.copy + 2:
            raise ValueError(
                f"seq_len {self.seq_len} is too short for copy {self.copy}; "
                f"selective copying needs a seq_len of at least {2 * self.copy + 2}"
            )
        if self.spacing not in ("mad", "uniform"):
            raise ValueError(
                f"spacing {self.spacing!r} is unknown; selective copying has 'mad' and 'uniform'"
            )

    @property
    def chance(self) -> float:
        """Accuracy of guessing any one content token: they are uniform and independent."""
        return 1 / (self.vocab - 2)

    @property
    def ceiling(self) -> float:
        """Best reachable accuracy: the content was shown."""
        return 1.0

    @property
    def length(self) -> int:
        """Tokens T in the rows that `sample` returns."""
        return self.seq_len

    def harder(self) -> SelectiveCopying:
        """Twice as many tokens to copy, in rows twice as long."""
        return replace(self, seq_len=2 * self.seq_len, copy=2 * self.copy)

    def sample(self, n: int, rng: Generator, *, train: bool = False) -> tuple[Tensor, Tensor]:
        """Draw n rows.

        Args:
            n: Rows B.
            rng: CPU generator, the source of every draw.
            train: Makes no difference here.

        Returns:
            inputs_BT and targets_BT, int64, -100 where unscored.
        """
        import torch

        region = self.seq_len - self.copy - 1
        blanks = region - self.copy
        content_BC = torch.randint(self.vocab - 2, (n, self.copy), generator=rng)
        if self.spacing == "mad":
            before_BN = torch.randint(self.copy, (n, blanks), generator=rng)
            gaps_BC = torch.zeros_like(content_BC)
            gaps_BC.scatter_add_(1, before_BN, torch.ones_like(before_BN))
            places_BC = gaps_BC.cumsum(dim=1) + torch.arange(self.copy)
        else:
            lots_BR = torch.rand((n, region), generator=rng)
            places_BC = lots_BR.topk(self.copy, dim=1).indices.sort(dim=1).values

        inputs_BT = torch.full((n, self.seq_len), self.vocab - 2)
        inputs_BT.scatter_(1, places_BC, content_BC)
        inputs_BT[:, region] = self.vocab - 1
        targets_BT = torch.full_like(inputs_BT, IGNORE)
        targets_BT[:, region + 1 :] = content_BC
        return inputs_BT, targets_BT

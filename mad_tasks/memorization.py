"""Memorization. Poli et al. 2024 (MAD), arXiv 2403.17844."""
# Shapes: B rows, T = seq_len tokens, P = T / 2 pairs, K keys.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._common import IGNORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Memorization:
    """Keys, each followed by an insert token, at which the model answers with the key's value.

    The values are never shown: the model must hold the map in its weights. The map is a fixed
    function of `vocab`, the same for every row, split and run. With K = (vocab - 1) // 2, keys
    are 0..K-1, values are K of the ids K..vocab-2, and vocab-1 is the insert token. Keys are
    uniform.

    Invariant: even positions hold keys and are not scored; odd positions hold the insert token
    and their target is the value of the key before it; the map is injective.

    Source: Poli et al. 2024 (MAD), arXiv 2403.17844. The map is the one of
    github.com/athms/mad-lab at 0f49a45.
    """

    name: ClassVar[str] = "mad/memorization"
    readout: ClassVar[str] = "token"
    axes: ClassVar[Mapping[str, tuple[float, ...]]] = {"vocab": (512, 1024, 2048, 4096, 8192)}
    map_seed: ClassVar[int] = 12345

    vocab: int = 256
    """Number of ids: keys, values and the insert token."""
    seq_len: int = 32
    """Tokens in a row, two for each key."""

    def __post_init__(self) -> None:
        """Reject sizes that leave less than two keys, or half a pair."""
        if self.vocab < 5:
            raise ValueError(
                f"vocab {self.vocab} is too small; memorization needs a vocab of at least 5"
            )
        if self.seq_len < 2 or self.seq_len % 2:
            why = "odd" if self.seq_len % 2 else "too short"
            raise ValueError(
                f"seq_len {self.seq_len} is {why}; memorization needs an even seq_len of at least 2"
            )

    @property
    def chance(self) -> float:
        """Accuracy of guessing any one mapped value: keys are uniform and no two share a value."""
        return 1 / ((self.vocab - 1) // 2)

    @property
    def ceiling(self) -> float:
        """Best reachable accuracy: 1, because fresh training data show every key in time.

        MAD's fixed set of 256 rows misses keys at large vocab, which caps its mean at 0.913.
        """
        return 1.0

    @property
    def length(self) -> int:
        """Tokens T in the rows that `sample` returns."""
        return self.seq_len

    def harder(self) -> None:
        """None: longer rows ask nothing more, and a larger map needs other ids."""

    def sample(self, n: int, rng: Generator, *, train: bool = False) -> tuple[Tensor, Tensor]:
        """Draw n rows.

        Args:
            n: Rows B.
            rng: CPU generator, the source of every draw.
            train: Makes no difference here.

        Returns:
            inputs_BT and targets_BT, int64, -100 where unscored.
        """
        import numpy as np
        import torch

        keys = (self.vocab - 1) // 2
        # MAD shuffles the keys, then the values, and zips them.
        map_rng = np.random.default_rng(self.map_seed)
        keys_K = map_rng.permutation(keys)
        values_K = map_rng.permutation(np.arange(keys, self.vocab - 1))[:keys]
        map_K = torch.empty(keys, dtype=torch.int64)
        map_K[torch.from_numpy(keys_K)] = torch.from_numpy(values_K)

        keys_BP = torch.randint(keys, (n, self.seq_len // 2), generator=rng)
        inputs_BT = torch.full((n, self.seq_len), self.vocab - 1)
        inputs_BT[:, ::2] = keys_BP
        targets_BT = torch.full_like(inputs_BT, IGNORE)
        targets_BT[:, 1::2] = map_K[keys_BP]
        return inputs_BT, targets_BT

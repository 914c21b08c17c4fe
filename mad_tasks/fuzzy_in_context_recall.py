"""Fuzzy in-context recall. Poli et al. 2024 (MAD), arXiv 2403.17844."""
# Shapes: B rows, T = seq_len tokens, M longest motif, J body pairs drawn, of which some are kept,
# I = J + 2 pairs laid out: the body, the probe put into it, and the probe at the end.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ._common import IGNORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class FuzzyInContextRecall:
    """In-context recall whose keys and values are motifs: runs of one to `motif` tokens.

    With K = (vocab - 1) // 2, key tokens are 0..K-1, value tokens K..vocab-2, and vocab-1 pads.
    A motif repeats no token; its size is drawn first, uniformly, then the motif uniformly among
    those of that size. Keys in evaluation always have `motif` tokens, in training any size. Each
    key has one value per row. A row is padding, the body, and last a probe, whose key and value
    the body holds too: they are put in at the first pair boundary at or after a uniform position,
    unless the key came up before. Where no such boundary is left they are put in at the last one,
    so the last key has always been shown. (In MAD's code it has not in 2.6 % of the rows.)

    Invariant: a target is a token of the value of a key that was shown earlier in the row, and
    all tokens of such a value are scored, the last value's always; nothing else is.

    Source: Poli et al. 2024 (MAD), arXiv 2403.17844; multi-query, as in
    github.com/athms/mad-lab at 0f49a45.
    """

    name: ClassVar[str] = "mad/fuzzy-in-context-recall"
    readout: ClassVar[str] = "token"
    axes: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "vocab": (32, 64, 128),
        "seq_len": (256, 512, 1024),
    }

    vocab: int = 16
    """Number of ids: key tokens, value tokens and the pad."""
    seq_len: int = 128
    """Tokens in a row as returned, padding included."""
    motif: int = 3
    """Most tokens in a key, and in a value."""

    def __post_init__(self) -> None:
        """Reject sizes without two keys of the longest motif, or without room for a body."""
        if self.motif < 1:
            raise ValueError(
                f"motif {self.motif} is too small; fuzzy in-context recall needs a motif of at "
                "least 1"
            )
        least = max(5, 2 * self.motif + 1)
        if self.vocab < least:
            raise ValueError(
                f"vocab {self.vocab} is too small for motif {self.motif}; "
                f"fuzzy in-context recall needs a vocab of at least {least}"
            )
        if ((self.vocab + 1) // 2) ** self.motif >= 2**63:
            raise ValueError(
                f"motif {self.motif} is too long for vocab {self.vocab}; "
                "fuzzy in-context recall needs ((vocab + 1) // 2) ** motif below 2 ** 63"
            )
        if self.seq_len < 4 * self.motif + 1:
            raise ValueError(
                f"seq_len {self.seq_len} is too short for motif {self.motif}; "
                f"fuzzy in-context recall needs a seq_len of at least {4 * self.motif + 1}"
            )

    @property
    def chance(self) -> float:
        """Accuracy of guessing any one value token: each is the answer equally often.

        Later tokens of a value can be guessed better, by excluding the earlier ones, but that
        uses the context.
        """
        return 1 / (self.vocab // 2)

    @property
    def ceiling(self) -> float:
        """Best reachable accuracy: every scored value was shown whole, after the same key."""
        return 1.0

    @property
    def length(self) -> int:
        """Tokens T in the rows that `sample` returns."""
        return self.seq_len

    def harder(self) -> FuzzyInContextRecall:
        """The same ids in rows twice as long: a model of this task reads them as they are."""
        return replace(self, seq_len=2 * self.seq_len)

    def sample(self, n: int, rng: Generator, *, train: bool = False) -> tuple[Tensor, Tensor]:
        """Draw n rows.

        Args:
            n: Rows B.
            rng: CPU generator, the source of every draw.
            train: Draw keys of all sizes, and give the next token as target at every position,
                padding and unpredictable keys included.

        Returns:
            inputs_BT and targets_BT, int64, -100 where unscored.
        """
        import torch

        from ._recall import first_same

        motif = self.motif
        keys = (self.vocab - 1) // 2
        values = self.vocab - 1 - keys
        shortest = 1 if train else motif
        body = -(-(self.seq_len - 2 * motif - shortest - 1) // (shortest + 1))

        # Draw J body pairs and, in the last column, the probe.
        shape = (n, body + 1)
        key_sizes = torch.randint(shortest, motif + 1, shape, generator=rng)
        value_sizes = torch.randint(1, motif + 1, shape, generator=rng)
        key_motifs = _arrangements(keys, motif, shape, rng)
        value_motifs = _arrangements(values, motif, shape, rng) + keys

        # Every pair takes the value of the probe if it has that key, else that of the first pair
        # with its own key.
        at_J, at_M = torch.arange(body), torch.arange(motif)
        used = at_M < key_sizes[:, :, None]
        codes = (torch.where(used, key_motifs + 1, 0) * (keys + 1) ** at_M).sum(dim=2)
        first_BJ = first_same(codes[:, :body])
        is_probe_BJ = codes[:, :body] == codes[:, body:]
        source_BJ = torch.where(is_probe_BJ, body, first_BJ)
        sizes_BJ = key_sizes[:, :body] + value_sizes.gather(1, source_BJ)
        probe_B1 = key_sizes[:, body:] + value_sizes[:, body:]

        # Put the probe in before body pair q, unless an earlier pair has its key.
        starts_BJ = sizes_BJ.cumsum(dim=1) - sizes_BJ
        limit_B1 = self.seq_len - 2 * motif - probe_B1  # no pair starts here or later
        lot_B1 = torch.rand((n, 1), generator=rng, dtype=torch.float64)
        wanted_B1 = (lot_B1 * (self.seq_len - 2 * probe_B1)).long()
        q_B1 = torch.minimum(
            (starts_BJ < wanted_B1).sum(dim=1, keepdim=True),
            (starts_BJ < limit_B1).sum(dim=1, keepdim=True) - 1,
        )
        put_B1 = ~(is_probe_BJ & (at_J < q_B1)).any(dim=1, keepdim=True)
        put_start_B1 = starts_BJ.gather(1, q_B1)
        starts_BJ = starts_BJ + (put_B1 & (at_J >= q_B1)) * probe_B1
        kept_BJ = starts_BJ < limit_B1
        end_B1 = (sizes_BJ * kept_BJ).sum(dim=1, keepdim=True) + put_B1 * probe_B1

        # Lay the pairs out from right to left; what is not kept goes to a spare column.
        pad_B1 = self.seq_len + 1 - end_B1 - probe_B1
        starts_BI = torch.cat((starts_BJ, put_start_B1, end_B1), dim=1) + pad_B1
        kept_BI = torch.cat((kept_BJ, put_B1, torch.ones_like(put_B1)), dim=1)
        pair_I = torch.arange(body + 2).clamp(max=body)
        source_BI = torch.cat((source_BJ, torch.full((n, 2), body)), dim=1)
        key_sizes_BI = key_sizes[:, pair_I]
        value_sizes_BI = value_sizes.gather(1, source_BI)
        keys_BIM = key_motifs[:, pair_I]
        values_BIM = value_motifs[torch.arange(n)[:, None], source_BI]
        spare = self.seq_len + 1

        def places(starts_BI: Tensor, sizes_BI: Tensor, kept_BI: Tensor) -> Tensor:
            kept_BIM = kept_BI[:, :, None] & (at_M < sizes_BI[:, :, None])
            return torch.where(kept_BIM, starts_BI[:, :, None] + at_M, spare).flatten(1)

        value_starts_BI = starts_BI + key_sizes_BI
        tokens = torch.full((n, spare + 1), self.vocab - 1)
        tokens.scatter_(1, places(starts_BI, key_sizes_BI, kept_BI), keys_BIM.flatten(1))
        tokens.scatter_(1, places(value_starts_BI, value_sizes_BI, kept_BI), values_BIM.flatten(1))
        inputs_BT = tokens[:, : self.seq_len].contiguous()
        if train:
            return inputs_BT, tokens[:, 1:spare].contiguous()

        seen_BJ = (first_BJ < at_J) | (is_probe_BJ & put_B1)
        no_yes_B2 = torch.tensor((False, True)).expand(n, 2)
        scored_BI = kept_BI & torch.cat((seen_BJ, no_yes_B2), dim=1)
        answers = torch.full((n, spare + 1), IGNORE)
        answers.scatter_(
            1, places(value_starts_BI, value_sizes_BI, scored_BI), values_BIM.flatten(1)
        )
        return inputs_BT, answers[:, 1:spare].contiguous()


def _arrangements(symbols: int, size: int, shape: tuple[int, int], rng: Generator) -> Tensor:
    """Draw ordered arrangements of `size` distinct ids below `symbols`, shape + (size,), uniformly.

    The prefixes are uniform arrangements too, so shorter motifs are cut from these. The loops are
    over the positions in a motif.
    """
    import torch

    # Lehmer code: id i is the digit-th smallest of those that ids 0..i-1 left over.
    ids = torch.stack(
        [torch.randint(symbols - i, shape, generator=rng) for i in range(size)], dim=2
    )
    for i in reversed(range(size - 1)):
        ids[:, :, i + 1 :] += ids[:, :, i + 1 :] >= ids[:, :, i, None]
    return ids

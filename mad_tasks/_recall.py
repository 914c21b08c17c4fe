"""Key-value rows for the recall tasks. Imports torch: load it inside `sample` only."""
# Shapes: B rows, P pairs of tokens, Q = P - 1 context pairs, T = 2P - 1 returned tokens.

from __future__ import annotations

import torch
from torch import Tensor

from ._common import IGNORE


def first_same(codes_BQ: Tensor) -> Tensor:
    """Find, for each entry, where its value occurs first in its row.

    Args:
        codes_BQ: Integers of any size; the cost does not depend on their range.

    Returns:
        first_BQ, int64: the smallest q with codes_BQ[b, q] equal to the entry. An entry is new
        where first_BQ equals its own index.
    """
    sorted_BQ, order_BQ = codes_BQ.sort(dim=1, stable=True)
    rank_Q = torch.arange(codes_BQ.shape[1])
    # In a stable sort, equal entries form a run that begins with the one that came first.
    begins_BQ = torch.ones_like(codes_BQ, dtype=torch.bool)
    begins_BQ[:, 1:] = sorted_BQ[:, 1:] != sorted_BQ[:, :-1]
    run_BQ = torch.where(begins_BQ, rank_Q, 0).cummax(dim=1).values
    return torch.empty_like(order_BQ).scatter_(1, order_BQ, order_BQ.gather(1, run_BQ))


def pair_rows(
    n: int,
    rng: torch.Generator,
    *,
    pairs: int,
    keys: int,
    noise_vocab: int = 0,
    frac_noise: float = 0.0,
    train: bool,
) -> tuple[Tensor, Tensor]:
    """Draw rows of key-value pairs, some of them noise, that end with a probe for a key shown.

    Keys are 0..keys-1, values keys..2*keys-1, noise ids the `noise_vocab` ids above.

    Args:
        n: Rows B.
        rng: Source of every draw.
        pairs: Pairs P in a row, the probe included.
        keys: Number of keys, and of values.
        noise_vocab: Number of noise ids; not used when `frac_noise` is 0.
        frac_noise: Probability that an unprotected context pair is two noise tokens.
        train: Give the next token as target everywhere, instead of the answers only.

    Returns:
        inputs_BT and targets_BT, int64.
    """
    slot_Q = torch.arange(pairs - 1)
    shape = (n, pairs - 1)
    keys_BQ = torch.randint(keys, shape, generator=rng)
    codes_BQ = keys_BQ
    if frac_noise > 0:
        noise_BQ = torch.rand(shape, generator=rng) < frac_noise
        # One context pair is kept; index Q keeps none, as in MAD. Where noise would then fill the
        # context (MAD fails there), a pair drawn anew is kept instead.
        keep_B1 = torch.randint(pairs, (n, 1), generator=rng)
        noise_BQ &= slot_Q != keep_B1
        spare_B1 = torch.randint(pairs - 1, (n, 1), generator=rng)
        noise_BQ &= (slot_Q != spare_B1) | ~noise_BQ.all(dim=1, keepdim=True)
        codes_BQ = torch.where(noise_BQ, keys + slot_Q, keys_BQ)  # noise repeats no key

    first_BQ = first_same(codes_BQ)
    new_BQ = first_BQ == slot_Q
    values_BQ = torch.randint(keys, 2 * keys, shape, generator=rng).gather(1, first_BQ)
    context_BQ2 = torch.stack((keys_BQ, values_BQ), dim=2)
    shown_BQ = new_BQ
    if frac_noise > 0:
        noise_BQ2 = torch.randint(2 * keys, 2 * keys + noise_vocab, (*shape, 2), generator=rng)
        context_BQ2 = torch.where(noise_BQ[:, :, None], noise_BQ2, context_BQ2)
        shown_BQ = new_BQ & ~noise_BQ

    # Each distinct key is marked at exactly one slot, so the slot of the largest of equal draws
    # is uniform over the distinct keys.
    lot_BQ = torch.rand(shape, generator=rng).masked_fill(~shown_BQ, -1.0)
    probe_B12 = context_BQ2[torch.arange(n), lot_BQ.argmax(dim=1)][:, None]
    tokens_BP2 = torch.cat((context_BQ2, probe_B12), dim=1)
    tokens_BL = tokens_BP2.flatten(1)
    inputs_BT = tokens_BL[:, :-1].contiguous()
    if train:
        return inputs_BT, tokens_BL[:, 1:].contiguous()

    # The answer is due where the key is the input: at the even positions.
    targets_BT = torch.full_like(inputs_BT, IGNORE)
    targets_BT[:, :-1:2] = context_BQ2[:, :, 1].masked_fill(new_BQ, IGNORE)
    targets_BT[:, -1] = tokens_BL[:, -1]
    return inputs_BT, targets_BT

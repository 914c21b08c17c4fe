"""The best of all pairs of half keys, without scoring every pair.

Lample et al. 2019, arXiv 1907.05242, section 3.1. A pair of one key from each of two lists scores
the sum of both. The best k pairs lie among the k best of either list; and since the pair of the
i-th and the j-th best loses to (i + 1) (j + 1) - 1 others (i and j from 0), only pairs with
(i + 1) (j + 1) <= k need a look: 50 of 256 for k = 16. Rounding a sum keeps order, so the choice
is exact in any precision, up to ties.

Shapes: S the two sides, N any number of axes, K keys of a side, E chosen pairs, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.kernels.dispatch import op


@op("product_keys")
def route(score_SNK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The pairs_NE of `best_pairs`, and before them a softmax over their sums of scores."""
    sum_NE, pair_NE = best_pairs(score_SNK, count)
    return sum_NE.softmax(-1), pair_NE


def best_pairs(score_SNK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` pairs of keys with the largest sums of scores.

    Args:
        score_SNK: Scores of the keys of both sides.
        count: From 1 to K.

    Returns:
        The sums_NE, in any order, and the pairs_NE: that of keys i and j is i * K + j. Gradients
        reach the scores of the chosen keys.
    """
    with torch.no_grad():
        top_SNE, key_SNE = score_SNK.topk(count, -1)
        partners = [count // (i + 1) for i in range(count)]
        one_NE, two_NE = top_SNE.unbind(0)
        sums = [one_NE[..., i, None] + two_NE[..., :n] for i, n in enumerate(partners)]
        sum_NC = torch.cat(sums, -1)
        chosen_NE = sum_NC.topk(count, -1, sorted=False).indices
        pairs = [(i, j) for i, n in enumerate(partners) for j in range(n)]
        i_C, j_C = torch.tensor(pairs, device=score_SNK.device).unbind(1)
        i_NE = key_SNE[0].gather(-1, i_C.take(chosen_NE))
        j_NE = key_SNE[1].gather(-1, j_C.take(chosen_NE))
    sum_NE = score_SNK.gather(-1, torch.stack((i_NE, j_NE))).sum(0)
    return sum_NE, i_NE * score_SNK.shape[-1] + j_NE

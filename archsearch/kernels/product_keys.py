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
        grid = [(i, j) for i in range(count) for j in range(count // (i + 1))]
        i_C, j_C = torch.tensor(grid, device=score_SNK.device).unbind(1)
        sum_NC = top_SNE[0].index_select(-1, i_C) + top_SNE[1].index_select(-1, j_C)
        chosen_NE = sum_NC.topk(count, -1, sorted=False).indices
        i_NE = key_SNE[0].gather(-1, i_C.take(chosen_NE))
        j_NE = key_SNE[1].gather(-1, j_C.take(chosen_NE))
    sum_NE = score_SNK[0].gather(-1, i_NE) + score_SNK[1].gather(-1, j_NE)
    return sum_NE, i_NE * score_SNK.shape[-1] + j_NE

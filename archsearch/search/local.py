"""Local search, `strategy: local`: an untried neighbour of the best trial that has one left.

First improvement: a better neighbour is the best trial, so its neighbours come next. Where a trial
has no untried neighbour the search restarts from the next best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from archsearch.search.evolution import Child, Tried, fitness
from archsearch.search.moves import Decisions, Tree, complete, neighbours

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

START = 10
"""Random members before the first step."""


def child(
    tree: Tree,
    history: Sequence[Tried],
    rng: random.Random,
    wanted: Callable[[Decisions], bool],
) -> Child | None:
    """The next step; None if no trial has a neighbour that is wanted."""
    done = [index for index, tried in enumerate(history) if tried.values]
    if len(done) < START:
        return Child(tree.sample(rng))
    ranks = dict(zip(done, fitness([history[i].values for i in done]), strict=True))
    for parent in sorted(done, key=ranks.__getitem__):
        beside = neighbours(tree, history[parent].decisions)
        rng.shuffle(beside)
        for near in beside:
            decisions = complete(tree, near, rng)
            if wanted(decisions):
                return Child(decisions, "step", parent)
    return None

"""How many answers a space takes: members are counted without being listed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

from archsearch.dims import as_whole

if TYPE_CHECKING:
    from archsearch.space import Option, SearchSpace, Slot, Stage

Count = Mapping[frozenset[str], float]
"""Number of ways, by the set of shared definitions that they use."""


def size(space: SearchSpace) -> float:
    """Number of ways to answer every question; infinite if one is continuous."""
    ways: Count = {frozenset(): 1.0}
    for stage in space.stages:
        ways = _times(ways, _stage_ways(stage))
    shared = {
        option.share: sum(_option_ways(option).values())
        for _, slot in space.slots()
        for option in slot.options
        if option.share
    }
    outer = [*space.frame.values(), *([] if space.match else [space.d_model])]
    members = sum(n * math.prod(shared[name] for name in used) for used, n in ways.items())
    return members * math.prod(dim.count for dim in outer)


def _stage_ways(stage: Stage) -> Count:
    one = _times(*(_slot_ways(slot) for slot in stage.pattern))
    total: dict[frozenset[str], float] = {}
    for repeats in map(as_whole, stage.repeat.values or ()):
        if repeats == 0:
            total[frozenset()] = total.get(frozenset(), 0) + 1
            continue
        uniques = map(as_whole, (stage.unique.values if stage.unique else None) or (repeats,))
        for unique in uniques:
            schemes = stage.scheme.count if 1 < unique < repeats else 1
            passes = min(unique, repeats) if stage.choose == "per_repeat" else 1
            for used, number in _times(*[one] * passes).items():
                total[used] = total.get(used, 0) + schemes * number
    return total


def _slot_ways(slot: Slot) -> Count:
    ways: dict[frozenset[str], float] = {}
    for option in slot.options:
        for repeat in slot.repeat.values or ():
            chosen = option.block is not None and as_whole(repeat) > 0
            used = frozenset({option.share} if option.share and chosen else ())
            own = {used: 1.0} if option.share or not chosen else _option_ways(option)
            combined = slot.combine.count if chosen and len(slot.inputs) > 1 else 1
            for among, number in own.items():
                ways[among] = ways.get(among, 0) + combined * number
    return ways


def _option_ways(option: Option) -> Count:
    """Ways to choose the parameters of an option and what it holds."""
    own = {frozenset[str](): float(math.prod(dim.count for _, dim in option.params))}
    return _times(own, *(_slot_ways(slot) for slot in option.inner))


def _times(*factors: Count) -> dict[frozenset[str], float]:
    total: dict[frozenset[str], float] = {frozenset(): 1.0}
    for factor in factors:
        step: dict[frozenset[str], float] = {}
        for (left, m), (right, n) in product(total.items(), factor.items()):
            step[left | right] = step.get(left | right, 0) + m * n
        total = step
    return total

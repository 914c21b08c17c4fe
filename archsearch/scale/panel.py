"""Which genomes a proxy is asked about: named before any of them is trained at full scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from archsearch.errors import RunError
from archsearch.seeds import seed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TOP = 0.25
"""Share of the trials among which a search decides; ranking is hardest there."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One genome of a panel."""

    key: str
    origin: Literal["uniform", "top", "anchor"]


def draw(
    sampled: Iterable[str],
    trials: Mapping[str, float],
    anchors: Sequence[str],
    *,
    size: int,
    number: int,
    maximize: bool,
) -> tuple[Pick, ...]:
    """Draw a panel: half of the space, half of the best quarter of the trials, and the anchors.

    No genome is drawn twice. Where the best quarter is too small, the space fills its places, and
    where the space is too small, the panel is smaller than asked.

    Args:
        sampled: Keys as the space's own sampler drew them, repeats included; `2 * size` will do.
        trials: What each genome of the run was found to be worth, by key.
        anchors: Keys that are in every panel.
        size: Genomes beside the anchors.
        number: The seed of the run. The same arguments give the same panel, in any order of the
            trials.
        maximize: Whether trials of a larger value are better.

    Raises:
        RunError: if a value of a trial is not finite.
    """
    if bad := [key for key, value in trials.items() if not math.isfinite(value)]:
        raise RunError(f"a panel is drawn from finished trials; no value is known of {bad}")
    best = sorted(trials, key=lambda key: (-trials[key] if maximize else trials[key], key))
    top = best[: math.ceil(TOP * len(best))]
    space = [key for key in dict.fromkeys(sampled) if key not in anchors]
    uniform = _shuffled(space, number, "uniform")
    half = uniform[: size - size // 2]
    ours = [key for key in _shuffled(top, number, "top") if key not in {*half, *anchors}]
    ours = ours[: size // 2]
    fill = [key for key in uniform[len(half) :] if key not in ours]
    half += fill[: size - len(half) - len(ours)]
    return (
        *(Pick(key, "uniform") for key in half),
        *(Pick(key, "top") for key in ours),
        *(Pick(key, "anchor") for key in dict.fromkeys(anchors)),
    )


def _shuffled(keys: Sequence[str], number: int, name: str) -> list[str]:
    rng = np.random.default_rng(seed("panel", number, name))
    return [keys[i] for i in rng.permutation(len(keys))]

"""Values of a space file that no block can be built with, and heads that are too narrow.

A value that fits some widths and some other values is right, and `archsearch.rules` rejects the
rest. A value that fits none is a mistake, and is reported where it stands in the file.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from archsearch.block import block_class
from archsearch.dims import word
from archsearch.errors import BlockError

if TYPE_CHECKING:
    from archsearch.dims import Value
    from archsearch.space import Option
    from archsearch.space_yaml import Experiment
    from archsearch.yaml_source import Path

MOST = 20_000
"""Most combinations of one block that are tried; with more, only a search tells."""
NARROW = 16
"""Channels of a head below which it seldom pays: products of matrices are then mostly overhead."""


BLOCK: tuple[str, Value] = ("", None)
"""Stands for the block where its parameters are told apart by name and value."""


@dataclass(slots=True)
class _Tried:
    """What became of the combinations of one block: by parameter and value."""

    widest: dict[tuple[str, Value], int] = field(default_factory=dict)
    """Widest head of the combinations that can be built, 0 for a block without heads."""
    why: dict[tuple[str, Value], str] = field(default_factory=dict)
    """The first reason not to build one, preferably one that names the parameter."""


def check_fits(experiment: Experiment) -> tuple[str, ...]:
    """Check that each value of each block can be built; warnings of heads that are narrow.

    Raises:
        SpaceError: with every value that fits no width and no other value, and where it stands.
    """
    warnings: dict[str, None] = {}
    for path, option in experiment.options:
        tried = _try(experiment, option)
        if tried is None:
            continue
        _note(experiment, path, option, tried)
        warnings |= dict.fromkeys(_narrow(experiment, path, option, tried))
    experiment.document.stop_if_wrong()
    return tuple(warnings)


def _try(experiment: Experiment, option: Option) -> _Tried | None:
    """Every combination of parameters and width; None where there are too many."""
    kind, space = block_class(option.block or ""), experiment.space
    counts = (dim.count for _, dim in option.params if dim.count < math.inf)
    if math.prod(counts) * len(space.widths) > MOST:
        return None
    axes = [dim.values or (dim.first,) for _, dim in option.params]
    names, tried, longest = [name for name, _ in option.params], _Tried(), _longest(experiment)
    unsettled = {BLOCK, *((n, v) for n, axis in zip(names, axes, strict=True) for v in axis)}
    for width, values in itertools.product(space.widths, itertools.product(*axes)):
        given = dict(zip(names, values, strict=True))
        own = [BLOCK, *given.items()]
        config = kind.Config(**dict(kind.info.fill(given)))
        try:
            for name in kind.spans:
                _require_short(kind.info.name, name, getattr(config, name), longest)
            kind.check(width, config)
        except BlockError as error:
            for name, value in own:
                known, names_it = tried.why.get((name, value)), f"{kind.info.name}.{name} "
                better = str(error).startswith(names_it) and not (known or "").startswith(names_it)
                if known is None or better:
                    tried.why[name, value] = str(error)
        else:
            head = kind.channels_per_head(width, config) or 0
            for pair in own:
                tried.widest[pair] = max(head, tried.widest.get(pair, 0))
            unsettled -= set(own) if head == 0 or head >= NARROW else set()
        if not unsettled:
            break
    return tried


def _longest(experiment: Experiment) -> int | None:
    """Places of the longest task; None where there is no task."""
    pauses = experiment.space.frame.get("pause_tokens")
    most = max(n for n in (pauses.values if pauses else None) or (0,) if isinstance(n, int))
    return experiment.context * (1 + most) if experiment.tasks else None


def _require_short(block: str, name: str, value: int, longest: int | None) -> None:
    if longest is not None and value > longest:
        why = f"is longer than the longest task ({longest} tokens)"
        raise BlockError(f"{block}.{name} {value} {why}; legal: 1 to {longest}")


def _note(experiment: Experiment, path: Path, option: Option, tried: _Tried) -> None:
    """Note the values that nothing fits; where nothing fits at all, those that the block names."""
    document, built = experiment.document, BLOCK in tried.widest
    named = "" if built else tried.why[BLOCK].partition(" ")[0].partition(".")[2]
    places = {
        place: tried.why[name, value]
        for name, dim in option.params
        for i, value in enumerate(dim.values or ())
        if (name, value) not in tried.widest and (built or name == named)
        if (place := (*path, name, i)) in document.values
    }
    if not built and not places:
        given = (*path, named) in document.values
        places[(*path, named) if given else path] = tried.why[BLOCK]
    for place, why in places.items():
        message, _, hint = why.partition("; ")
        document.problem(place, message, hint, key=place == path and path in document.keys)


def _narrow(experiment: Experiment, path: Path, option: Option, tried: _Tried) -> list[str]:
    """Warnings of the values that make narrow heads only."""
    document = experiment.document
    found: list[tuple[Path, str, int]] = []
    for name, dim in option.params:
        for i, value in enumerate(dim.values or ()):
            channels = tried.widest.get((name, value), 0)
            if name in ("heads", "head_dim") and 0 < channels < NARROW:
                place = (*path, name, i) if (*path, name, i) in document.values else (*path, name)
                found.append((place, f"{option.block}.{name} {word(value)}", channels))
    if not found and 0 < tried.widest.get(BLOCK, 0) < NARROW:
        found.append((path, f"{option.block}", tried.widest[BLOCK]))
    return [
        f"{document.place(place)}: {what} makes heads of at most {channels} channels; "
        f"below {NARROW} they seldom pay on a CPU"
        for place, what, channels in found
    ]

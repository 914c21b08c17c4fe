"""What is known of every block and task without importing torch.

Blocks, tasks and spaces are found through the entry point groups `archsearch.blocks`,
`archsearch.tasks` and `archsearch.spaces`, in this package and in the user's own alike. A block is
an `nn.Module`, so reading its parameters off the class costs the import of torch; the file
`blocks/catalogue.json` keeps a copy for the blocks shipped here. Each copy carries the hash of the
source file it was made from and is ignored once the two differ: it can be missing, never wrong.
`python -m archsearch.blocks` writes it anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from archsearch.dims import Dim, Value, word
from archsearch.errors import SpaceError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockInfo:
    """A block as the space language and the genome see it."""

    name: str
    kind: str
    """mixer (moves information along time), ffn (works on each token alone) or wrapper (of
    others)."""
    paper: str
    summary: str
    dims: Mapping[str, Dim]
    joins: str = "stream"
    """Where the output goes: "stream" is added to the residual stream; "next" is added to the
    input of the next block alone and never joins the stream (Zamba2)."""
    causal: bool = True
    """False if its training pass looks ahead; outside training it does not."""
    bidirectional: bool = False
    """Whether it always looks ahead, and cannot decode."""
    wraps: str | None = None
    """How a wrapper uses the blocks that it holds: "chain", one after the other, or "set", side by
    side in no order. None for a block that holds no others."""
    docs: Mapping[str, str] = field(default_factory=dict)
    """One line for each parameter."""

    def fill(self, given: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
        """Every parameter in canonical form, sorted by name.

        Defaults are filled in, "the same as" is replaced by the value it stands for, and a
        parameter without effect takes its default: equal blocks have equal parameters.

        Raises:
            SpaceError: if a parameter or its value is not legal.
        """
        values: dict[str, Value] = {}
        for name, value in given.items():
            if name not in self.dims:
                raise SpaceError(
                    f"block '{self.name}' has no parameter '{name}'; {nearest(name, self.dims)}"
                )
            dim = self.dims[name]
            values[name] = dim.cast(value)
            if values[name] not in dim:
                raise SpaceError(f"{self.name}.{name} cannot be {word(value)}; legal: {dim.legal}")
        for name, dim in self.dims.items():
            values.setdefault(name, dim.default)
            if values[name] is None and dim.default_from:
                values[name] = values.get(dim.default_from, self.dims[dim.default_from].default)
        for name, dim in self.dims.items():
            if dim.when and values[dim.when[0]] != dim.when[1]:
                values[name] = dim.default
        return tuple(sorted(values.items()))

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the catalogue file."""
        data = {name: getattr(self, name) for name in self.__slots__}
        return data | {
            "dims": {k: d.to_json() for k, d in self.dims.items()},
            "docs": dict(self.docs),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BlockInfo:
        """The inverse of `to_json`."""
        dims = {k: Dim.from_json(d) for k, d in data["dims"].items()}
        return cls(**{**data, "dims": dims})


_declared: dict[str, BlockInfo] = {}


def declare(info: BlockInfo) -> None:
    """Make a block known in this process; called when its class is created."""
    _declared[info.name] = info
    block_info.cache_clear()


@cache
def found(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of one group: "blocks", "tasks" or "spaces", by name."""
    return {point.name: point for point in entry_points(group=f"archsearch.{group}")}


def block_names() -> tuple[str, ...]:
    """Every block that a space may name, sorted."""
    return tuple(sorted({*found("blocks"), *_declared}))


@cache
def block_info(name: str) -> BlockInfo:
    """What is known of one block.

    Raises:
        SpaceError: if no package brings a block of that name.
    """
    if name in _declared:
        return _declared[name]
    if name not in found("blocks"):
        raise SpaceError(f"unknown block '{name}'; {nearest(name, block_names())}")
    point = found("blocks")[name]
    kept = _kept().get(name)
    if kept and kept["source"] == source_hash(point.module):
        return BlockInfo.from_json(kept["info"])
    info: BlockInfo = point.load().info
    return info


@cache
def _kept() -> dict[str, Any]:
    path = files("archsearch.blocks") / "catalogue.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def source_hash(module: str) -> str | None:
    """Hash of the source of a block shipped here; None for a block from elsewhere."""
    package, _, leaf = module.rpartition(".")
    if package != "archsearch.blocks":
        return None
    return hashlib.sha256((files(package) / f"{leaf}.py").read_bytes()).hexdigest()[:16]

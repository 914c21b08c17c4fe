"""What is known of every block and task without importing torch.

Blocks, tasks and spaces are found through the entry point groups `archsearch.blocks`,
`archsearch.tasks` and `archsearch.spaces`, in this package and in the user's own alike. A block is
an `nn.Module`, so reading its parameters off the class costs the import of torch; the file
`blocks/catalogue.json` keeps a copy for the blocks shipped here. Each copy carries the hash of the
source that it was made from, what that imports from this package included, and is ignored once the
two differ: it can be missing, never wrong. `python -m archsearch.blocks` writes it anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from archsearch.cost import Cost
from archsearch.dims import Dim, Value, word
from archsearch.errors import SpaceError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SIZES = ((256, 4096), (128, 1024), (1024, 32_768))
"""Widths and contexts at which blocks are compared: the reference, a small and a large one."""


Costs = tuple[Cost | None, ...]
"""One for each of `SIZES`; None where the block does not fit."""


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
    prenorm: bool = True
    """Whether the model normalises around it; False where the block does so itself."""
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
_costs: dict[str, Callable[[], Costs]] = {}


def declare(info: BlockInfo, costs: Callable[[], Costs] | None = None) -> None:
    """Make a block known in this process; called when its class is created."""
    _declared[info.name] = info
    if costs:
        _costs[info.name] = costs
    block_info.cache_clear()
    block_costs.cache_clear()


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
    kept = _kept(name)
    if kept:
        return BlockInfo.from_json(kept["info"])
    info: BlockInfo = found("blocks")[name].load().info
    return info


@cache
def block_costs(name: str) -> Costs:
    """What one use of a block costs at each of `SIZES`, with its defaults.

    Where the defaults do not fit, they are those nearest to them that do. Of a wrapper it is what
    it adds itself; what it holds is left out.

    Raises:
        SpaceError: if no package brings a block of that name.
    """
    info = block_info(name)
    kept = None if name in _costs else _kept(name)
    if kept and [tuple(size) for size in kept["sizes"]] == list(SIZES):
        return tuple(Cost(**cost) if cost else None for cost in kept["costs"])
    if name not in _costs and name in found("blocks"):
        found("blocks")[name].load()
    return _costs[info.name]() if info.name in _costs else (None,) * len(SIZES)


def catalogue() -> dict[str, Any]:
    """What `catalogue.json` must hold: every block shipped here, as its class says."""
    entries = {}
    for name, point in sorted(found("blocks").items()):
        if source := source_hash(point.module):
            info, costs = point.load().info, _costs[name]()
            entries[name] = {
                "source": source,
                "info": info.to_json(),
                "sizes": [list(size) for size in SIZES],
                "costs": [cost and dataclasses.asdict(cost) for cost in costs],
            }
    return entries


def _kept(name: str) -> dict[str, Any] | None:
    """The entry of the catalogue file, unless it is stale."""
    kept: dict[str, Any] | None = _file().get(name)
    if kept and kept["source"] == source_hash(found("blocks")[name].module):
        return kept
    return None


@cache
def _file() -> dict[str, Any]:
    path = files("archsearch.blocks") / "catalogue.json"
    return json.loads(path.read_text()) if path.is_file() else {}


_OWN = re.compile(r"^\s*(?:from|import)\s+archsearch\.(\w+)(?:\.(\w+))?", re.MULTILINE)
"""An import of another file of this package."""


def source_hash(module: str) -> str | None:
    """Hash of the source of a block shipped here; None for a block from elsewhere.

    The source is its file and every file of this package that it reaches by imports.
    """
    package, _, leaf = module.rpartition(".")
    if package != "archsearch.blocks":
        return None
    reached, left = dict[str, str](), [f"blocks/{leaf}"]
    while left:
        path = left.pop()
        if path not in reached:
            reached[path], imports = _source(path)
            left += imports
    text = json.dumps(reached, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _source(path: str) -> tuple[str, tuple[str, ...]]:
    """Hash of one file, and the files that it imports."""
    root = files("archsearch")
    text = (root / f"{path}.py").read_bytes()
    imports: list[str] = []
    for first, leaf in _OWN.findall(text.decode()):
        if (root / f"{first}.py").is_file():
            imports.append(first)
        else:
            inside = [f"{leaf}.py"] if leaf else [f.name for f in (root / first).iterdir()]
            imports += [f"{first}/{name[:-3]}" for name in inside if name.endswith(".py")]
    return hashlib.sha256(text).hexdigest(), tuple(imports)

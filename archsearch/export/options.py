"""Which options of a block a model has: tests of a config, decided without running anything."""

from __future__ import annotations

import ast
import operator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def holds(test: ast.expr, known: Mapping[str, Any]) -> bool | None:
    """Whether `config.x == 1`, `architecture["x"] in (1, 2)` and the like hold; None if unknown."""
    match test:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            compare = COMPARE.get(type(op))
            with suppress(ValueError):
                value = ast.literal_eval(right)
                if compare and (name := _setting(left)) in known:
                    return bool(compare(known[name], value))
        case ast.Attribute() | ast.Subscript() if (name := _setting(test)) in known:
            return bool(known[name])
    return None


COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def _setting(node: ast.expr) -> str:
    """The name of what is read of a config or an architecture; empty for anything else."""
    match node:
        case ast.Attribute(value=owner, attr=name) if ast.unparse(owner) in (
            "config",
            "self.config",
        ):
            return name
        case ast.Subscript(value=ast.Name(id="architecture"), slice=ast.Constant(value=str(name))):
            return name
    return ""

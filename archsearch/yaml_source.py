"""YAML with a memory: plain data, and where in the file every piece of it stands.

Scalars follow YAML 1.2: only true and false are booleans and `1e-4` is a number. A key that stands
twice is an error. Aliases are expanded within limits, so no file can exhaust the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from archsearch.errors import SpaceError

Path = tuple["str | int", ...]
"""Keys and indices from the root to a piece of data."""

MOST_PROBLEMS = 20
MOST_NODES = 20_000
MOST_DEPTH = 40


class _Loader(yaml.SafeLoader):
    """Safe, and typed as YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|", ["~", "n", ""]),
):
    _Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
        f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first)
    )


@dataclass(frozen=True, order=True, slots=True)
class Spot:
    """A place in a source, counted from 0, and how many characters it spans."""

    source: str
    line: int
    column: int
    length: int = 1


@dataclass(slots=True)
class Document:
    """Plain data and the spot of every value and key in it."""

    data: Any = None
    values: dict[Path, Spot] = field(default_factory=dict)
    keys: dict[Path, Spot] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    problems: dict[tuple[Spot, str], str] = field(default_factory=dict)
    """(spot, message) -> what to do about it."""

    def problem(
        self, path: Path, message: str, hint: str = "", *, key: bool = False, shift: int = 0
    ) -> None:
        """Note one problem at the value, or at the key, that `path` leads to.

        `shift` moves the spot into a string, to the character at that offset.
        """
        while path and path not in (self.keys if key else self.values):
            path, key = path[:-1], False
        spot = (self.keys if key else self.values).get(path, Spot(next(iter(self.lines)), 0, 0))
        if shift or (path and not key and isinstance(self.at(path), str) and shift == 0):
            line = self.lines[spot.source][spot.line] if self.lines[spot.source] else ""
            quoted = line[spot.column : spot.column + 1] in ("'", '"')
            if shift:
                spot = Spot(spot.source, spot.line, spot.column + shift + quoted, 1)
        self.problems.setdefault((spot, message), hint)

    def at(self, path: Path) -> Any:
        """The data that `path` leads to."""
        data = self.data
        for part in path:
            data = data[part]
        return data

    def report(self) -> str:
        """Every problem in order of place, at most 20: where, the line, a caret, what is legal."""
        shown = []
        for (spot, message), hint in sorted(self.problems.items())[:MOST_PROBLEMS]:
            text = [f"{spot.source}:{spot.line + 1}:{spot.column + 1}: {message}"]
            lines = self.lines[spot.source]
            if spot.line < len(lines) and lines[spot.line].strip():
                line = lines[spot.line].replace("\t", " ").rstrip()
                indent = len(line) - len(line.lstrip())
                text += [
                    "    " + line.lstrip(),
                    "    " + " " * max(0, spot.column - indent) + "^" * max(1, spot.length),
                ]
            shown.append("\n".join(text + ([f"  {hint}"] if hint else [])))
        more = len(self.problems) - MOST_PROBLEMS
        return "\n".join(shown + ([f"... and {more} more"] if more > 0 else []))

    def stop_if_wrong(self) -> None:
        """Raise what was noted so far.

        Raises:
            SpaceError: with the whole report.
        """
        if self.problems:
            raise SpaceError(self.report())


def read(text: str, name: str, overrides: tuple[str, ...] = ()) -> Document:
    """Parse one YAML document; each override is `path.to.key=value`.

    Raises:
        SpaceError: if the text is not YAML, or an override does not fit.
    """
    document = Document(lines={name: text.splitlines()})
    root = _compose(text, name)
    if root is None:
        raise SpaceError(f"{name}: the file is empty; see `archsearch spaces` for examples")
    for override in overrides:
        path, equals, value = override.partition("=")
        source = f"--set {path}"
        if not equals or not path:
            raise SpaceError(f"--set {override}: expected path.to.key=value")
        document.lines[source] = [value]
        _set(root, path.split("."), _compose(value, source), source)
    budget = iter(range(MOST_NODES))
    document.data = _build(document, root, (), budget)
    return document


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        loader.name = name
        try:
            return loader.get_single_node()  # type: ignore[no-any-return]
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise SpaceError(f"{where}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpaceError(f"{name}: not YAML: {str(error).splitlines()[0]}") from None


def _build(document: Document, node: yaml.Node, path: Path, budget: Iterator[int]) -> Any:
    """Plain data of a node; spots and problems go into `document`."""
    if next(budget, None) is None or len(path) > MOST_DEPTH:
        raise SpaceError(
            f"{node.start_mark.name}:{node.start_mark.line + 1}: too deep or too large; at most "
            f"{MOST_NODES} values, {MOST_DEPTH} levels (does an alias contain itself?)"
        )
    document.values[path] = _spot(node)
    if isinstance(node, yaml.SequenceNode):
        return [_build(document, item, (*path, i), budget) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                document.problem(path, "a key must be a plain word")
                continue
            key = key_node.value
            if key in data:
                first = document.keys[(*path, key)].line + 1
                document.keys[(*path, key)] = _spot(key_node)
                document.problem(
                    (*path, key), f"duplicate key '{key}'", f"first at line {first}", key=True
                )
                continue
            document.keys[(*path, key)] = _spot(key_node)
            data[key] = _build(document, value_node, (*path, key), budget)
        return data
    return _scalar(document, node, path)


def _scalar(document: Document, node: yaml.Node, path: Path) -> Any:
    kind = node.tag.rpartition(":")[2]
    if kind == "bool":
        return node.value == "true"
    if kind == "null":
        return None
    if kind == "int" and len(node.value) < 20:
        return int(node.value)
    if kind in ("int", "float"):
        return float(node.value)
    if kind != "str":
        document.problem(path, f"the tag {node.tag} is not used here")
    return node.value


def _spot(node: yaml.Node) -> Spot:
    start, end = node.start_mark, node.end_mark
    flat = isinstance(node, yaml.ScalarNode) and end.line == start.line
    return Spot(start.name, start.line, start.column, end.column - start.column if flat else 1)


def _set(root: yaml.Node, path: list[str], value: yaml.Node | None, source: str) -> None:
    """Put `value` where `path` leads; list items go by index or by their `stage` or `slot`."""
    if value is None:
        raise SpaceError(f"{source}: no value after '='")
    node = root
    for i, part in enumerate(path):
        last = i == len(path) - 1
        if isinstance(node, yaml.SequenceNode):
            index = _index(node, part)
            if index is None:
                raise SpaceError(
                    f"{source}: the list has {len(node.value)} items, none is '{part}'"
                )
            if last:
                node.value[index] = value
            node = node.value[index]
            continue
        if not isinstance(node, yaml.MappingNode):
            raise SpaceError(f"{source}: '{'.'.join(path[:i])}' is a single value")
        match = [j for j, (key, _) in enumerate(node.value) if key.value == part]
        if last or not match:
            key = yaml.ScalarNode("tag:yaml.org,2002:str", part, value.start_mark, value.start_mark)
            new = value if last else yaml.MappingNode(
                "tag:yaml.org,2002:map", [], value.start_mark, value.end_mark
            )  # fmt: skip
            if match:
                node.value[match[0]] = (node.value[match[0]][0], new)
            else:
                node.value.append((key, new))
                match = [len(node.value) - 1]
        node = node.value[match[0]][1]


def _index(node: yaml.SequenceNode, part: str) -> int | None:
    if part.isdigit():
        return int(part) if int(part) < len(node.value) else None
    for i, item in enumerate(node.value):
        pairs = item.value if isinstance(item, yaml.MappingNode) else []
        names = {v.value for k, v in pairs if k.value in ("stage", "slot")}
        if part in names or any(k.value == part for k, _ in pairs):
            return i
    return None

"""YAML with a memory: plain data, and where in the file every piece of it stands.

Scalars follow YAML 1.2: only true and false are booleans and `1e-4` is a number. A key that stands
twice is an error. Aliases are expanded within limits, so no file can exhaust the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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


_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": (r"true|false", "tf"),
    "int": (r"[-+]?[0-9]+|0o[0-7]{1,15}|0x[0-9a-fA-F]{1,15}", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    "null": (r"~|null|", ["~", "n", ""]),
}
"""What each kind of scalar looks like, and the characters that it begins with."""
_Loader.yaml_implicit_resolvers = {}
for kind, (pattern, first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + kind, re.compile(f"^(?:{pattern})$"), list(first))


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
    reused: set[Path] = field(default_factory=set)
    """What an alias stands for elsewhere in the file."""

    def problem(
        self, path: Path, message: str, hint: str = "", *, key: bool = False, at: int | None = None
    ) -> None:
        """Note one problem at the value, or at the key, that `path` leads to.

        `at` moves the spot into a string, to the character at that offset.
        """
        spot = self.spot(path, key=key)
        if at is not None:
            spot = self._inside(spot, at)
        self.problems.setdefault((spot, message), hint)

    def misfit(self, path: Path, parts: Iterable[tuple[str, Path, bool]]) -> None:
        """Note each part of a `Misfit` at the place that it was read from."""
        for message, way, key in parts:
            what, _, hint = message.partition("; ")
            self.problem((*path, *way), what, hint, key=key)

    def spot(self, path: Path, *, key: bool = False) -> Spot:
        """Where the value or key of `path` stands, or the nearest thing around it."""
        while path and path not in (self.keys if key else self.values):
            path, key = path[:-1], False
        return (self.keys if key else self.values).get(path, Spot(next(iter(self.lines)), 0, 0))

    def place(self, path: Path, *, key: bool = False) -> str:
        """Where the value or key of `path` stands, as messages say it."""
        spot = self.spot(path, key=key)
        return f"{spot.source}:{spot.line + 1}:{spot.column + 1}"

    def _inside(self, spot: Spot, offset: int) -> Spot:
        """A character of the string at `spot`; the string itself where it fills several lines."""
        lines = self.lines[spot.source]
        line = lines[spot.line] if spot.line < len(lines) else ""
        column, quote = spot.column, line[spot.column : spot.column + 1]
        if quote in ("'", '"'):
            column += 1
            for _ in range(offset):
                column += _spelled(line[column : column + 2], quote)
        else:
            column += offset
        if column > len(line) or quote in ("|", ">"):
            return spot
        return Spot(spot.source, spot.line, column)

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
    document = Document()
    root = _compose(document, text, name)
    if root is None:
        raise SpaceError(f"{name}: the file is empty; see `archsearch spaces` for examples")
    for override in overrides:
        path, equals, value = override.partition("=")
        source = f"--set {path}"
        if not equals or not path:
            raise SpaceError(f"--set {override}: expected path.to.key=value")
        _set(root, path.split("."), _compose(document, value, source), source)
    builder = _Builder(document)
    document.data = builder.build(root, ())
    return document


def _compose(document: Document, text: str, name: str) -> yaml.Node | None:
    document.lines[name] = text.splitlines()
    mark: Any = None
    try:
        loader = _Loader(text)
        loader.name = name
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ": ".join(part for part in (error.context, error.problem) if part)
    except yaml.reader.ReaderError as error:
        before = text[: error.position].splitlines(keepends=True) or [""]
        spot = Spot(name, len(before) - 1, len(before[-1]))
        character = error.character
        what = repr(chr(character) if isinstance(character, int) else character)
        why = f"the character {what} is not allowed"
        document.problems[spot, f"not YAML: {why}"] = ""
    except RecursionError:
        why = "nested too deeply"
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        why = str(error).partition("\n")[0]
    if not document.problems:
        spot = Spot(name, mark.line, mark.column) if mark else Spot(name, 0, 0)
        hint = "indent with spaces" if "'\\t'" in why else ""
        document.problems[spot, f"not YAML: {why}"] = hint
    raise SpaceError(document.report())


class _Builder:
    """Makes plain data of nodes; notes spots and problems in the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0
        self.first: dict[int, Path] = {}
        """Where each node was met first; a second time, an alias led to it."""

    def build(self, node: yaml.Node, path: Path) -> Any:
        document, spot = self.document, _spot(node)
        self.nodes += 1
        if self.nodes > MOST_NODES or len(path) > MOST_DEPTH:
            limit = f"at most {MOST_NODES} values, {MOST_DEPTH} levels"
            hint = "does an alias contain itself?"
            document.problems[spot, f"too deep or too large; {limit}"] = hint
            raise SpaceError(document.report())
        document.values[path] = spot
        if path != self.first.setdefault(id(node), path):
            document.reused.add(self.first[id(node)])
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if node.tag not in (_TAG + "seq", _TAG + "map"):
            document.problem(path, f"the tag {node.tag} is not used here")
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                document.problems[_spot(key_node), "a key must be a plain word"] = ""
                continue
            key, spot = key_node.value, _spot(key_node)
            if key in data:
                hint = f"first at line {document.keys[(*path, key)].line + 1}"
                document.problems[spot, f"duplicate key '{key}'"] = hint
                continue
            if _UNSHOWN.search(key):
                document.problems[spot, "a key with characters that cannot be shown"] = ""
                continue
            document.keys[(*path, key)] = spot
            data[key] = self.build(value_node, (*path, key))
        return data

    def scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "str":
            if _UNSHOWN.search(text):
                self.document.problem(path, "a text with characters that cannot be shown")
            return _UNSHOWN.sub("", text)
        if kind not in _SCALARS:
            self.document.problem(path, f"the tag {node.tag} is not used here")
        elif not re.fullmatch(_SCALARS[kind][0], text):
            self.document.problem(path, f"'{_UNSHOWN.sub('', text)}' is no {kind}")
        elif kind == "bool":
            return text == "true"
        elif kind == "int" and len(text) < 20:
            return int(text, 0 if text[:2] in ("0x", "0o") else 10)
        elif kind in ("int", "float"):
            return float(text)
        return None


def _spot(node: yaml.Node) -> Spot:
    """Where a node stands, without the anchor or tag before it."""
    start, end = node.start_mark, node.end_mark
    line, column = start.line, start.column
    if start.buffer and (match := _PROPERTIES.match(start.buffer, start.pointer)):
        skipped = match.group()
        line += skipped.count("\n")
        column = (
            len(skipped) - skipped.rfind("\n") - 1 if "\n" in skipped else column + len(skipped)
        )
    flat = isinstance(node, yaml.ScalarNode) and end.line == line
    return Spot(start.name, line, column, end.column - column if flat else 1)


_PROPERTIES = re.compile(r"(?:[&!][^\s,\[\]{}]*\s+)+")
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def _spelled(text: str, quote: str) -> int:
    """How many characters of the source stand for the first character of a quoted string."""
    if quote == "'":
        return 2 if text == "''" else 1
    return {"x": 4, "u": 6, "U": 10}.get(text[1:], 2) if text[:1] == "\\" else 1


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
    if part.isdecimal():
        return int(part) if int(part) < len(node.value) else None
    for i, item in enumerate(node.value):
        pairs = item.value if isinstance(item, yaml.MappingNode) else []
        names = [v.value for k, v in pairs if k.value in ("stage", "slot")]
        if part in names or any(k.value == part for k, _ in pairs):
            return i
    return None

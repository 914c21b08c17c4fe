"""Python sources by definition: what each refers to, and which text is to be changed."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from archsearch.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LINT = re.compile(rb"[ \t]+# type: ignore[^\n]*$", re.MULTILINE)
"""Comments for a checker that only this package runs."""


@dataclass(frozen=True, slots=True)
class Import:
    """What a name stands for: an object of another module, or with no `name` that module."""

    module: str
    name: str | None

    def line(self, known_as: str) -> tuple[str, str]:
        """The module that is imported from, and what stands behind `import`; "" for a module."""
        if self.name is None:
            return "", self.module + ("" if known_as == self.module else f" as {known_as}")
        return self.module, self.name + ("" if known_as == self.name else f" as {known_as}")


@dataclass(frozen=True, slots=True)
class Definition:
    """A name at the top of a module, with all the statements that make it."""

    name: str
    nodes: tuple[ast.stmt, ...]


@dataclass
class Edits:
    """Changes of a text, by offset in bytes."""

    spans: list[tuple[int, int, bytes]] = field(default_factory=list)

    def replace(self, span: tuple[int, int], by: str = "") -> None:
        """What stands there becomes something else."""
        self.spans.append((*span, by.encode()))

    def apply(self, text: bytes, start: int, stop: int) -> str:
        """The part of a text with its changes; one inside another is forgotten."""
        parts, at = [], start
        for first, last, by in sorted(self.spans, key=lambda span: (span[0], -span[1])):
            if start <= first and last <= stop and first >= at:
                parts += [text[at:first], by]
                at = last
        return LINT.sub(b"", b"".join([*parts, text[at:stop]])).decode()


class Module:
    """The source of a module.

    Raises:
        ExportError: if there is none.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        spec = importlib.util.find_spec(name)
        source = getattr(spec and spec.loader, "get_source", lambda name: None)(name)
        if source is None:
            raise ExportError(f"the source of {name} is not there, so it cannot be exported")
        self.text = source.encode()
        self.tree = ast.parse(source)
        self.lines = [0]
        for line in self.text.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    @property
    def stem(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]

    @property
    def docs(self) -> str:
        """Its docstring."""
        return ast.get_docstring(self.tree) or ""

    @cached_property
    def imports(self) -> dict[str, Import]:
        """Every import at the top, by the name that it gives."""
        found = {}
        package = self.name.rpartition(".")[0]
        for node in _statements(self.tree.body):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    found[alias.asname or alias.name] = Import(alias.name, None)
            if isinstance(node, ast.ImportFrom) and node.module != "__future__":
                module = node.module or ""
                if node.level:
                    above = package.rsplit(".", node.level - 1)[0]
                    module = f"{above}.{module}".rstrip(".")
                for alias in node.names:
                    found[alias.asname or alias.name] = Import(module, alias.name)
        return found

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """Every function, class and constant at the top, by name; a docstring goes with its own."""
        found: dict[str, Definition] = {}
        last = ""
        for node in self.tree.body:
            names = _defined(node)
            if not names and last and _is_docs(node):
                known = found[last]
                found[last] = Definition(last, (*known.nodes, node))
            last = names[-1] if names else ""
            found |= {name: Definition(name, (node,)) for name in names}
        return found

    def span(self, node: ast.expr) -> tuple[int, int]:
        """Where an expression stands."""
        last, column = node.end_lineno or 0, node.end_col_offset or 0
        return self.lines[node.lineno - 1] + node.col_offset, self.lines[last - 1] + column

    def block(self, *nodes: ast.stmt) -> tuple[int, int]:
        """The lines of statements, with decorators and the comments right above them."""
        first = min([nodes[0].lineno, *(d.lineno for d in decorators(nodes[0]))]) - 1
        while first and self._line(first - 1).lstrip().startswith(b"#"):
            first -= 1
        return self.lines[first], self.lines[nodes[-1].end_lineno or 0]

    def _line(self, number: int) -> bytes:
        return self.text[self.lines[number] : self.lines[number + 1]]

    def references(self, node: ast.AST, without: Collection[ast.AST] = ()) -> Iterator[ast.Name]:
        """The names in a definition that are not its own."""
        yield from _references(node, frozenset(), {id(n) for n in without})


def is_builtin(name: str) -> bool:
    """Whether a name needs no import."""
    return hasattr(builtins, name) or name in ("__file__", "__name__")


def decorators(node: ast.stmt) -> list[ast.expr]:
    """The decorators of a function or class."""
    return getattr(node, "decorator_list", [])


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements(node.body)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)]


def _is_docs(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _references(
    node: ast.AST, own: frozenset[str], without: set[int], around: frozenset[str] = frozenset()
) -> Iterator[ast.Name]:
    """Names that are free in a node.

    Args:
        node: Where.
        own: Names of the scopes around it.
        without: Nodes that are passed over, by id.
        around: Names of the class around it, which the header of a method sees and its body not.
    """
    if id(node) in without:
        return
    if isinstance(node, ast.Name):
        if node.id not in own | around:
            yield node
        return
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.ClassDef):
        class_own = frozenset(name for n in node.body for name in _stored(n))
        for child in children:
            yield from _references(child, own, without, class_own if child in node.body else around)
        return
    if isinstance(node, Function):
        arguments = node.args
        taken = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        taken += [a for a in (arguments.vararg, arguments.kwarg) if a]
        body: list[ast.AST] = [*node.body] if isinstance(node.body, list) else [node.body]
        inner = own | {a.arg for a in taken} | {name for n in body for name in _stored(n)}
        for child in children:
            if child in body:
                yield from _references(child, inner, without)
            else:
                yield from _references(child, own, without, around)
        return
    if isinstance(node, COMPREHENSIONS):
        own = own | {name for g in node.generators for name in _stored(g.target)}
    for child in children:
        yield from _references(child, own, without, around)


def _stored(node: ast.AST) -> Iterator[str]:
    """The names that a statement of a function gives a value, those in scopes of their own not."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0]
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return
    for child in ast.iter_child_nodes(node):
        yield from _stored(child)

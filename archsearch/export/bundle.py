"""The sources of a model in one file: its blocks, and what they need from here, word for word.

What only a search needs is left out: costs, checks, oracles and search dimensions, whose defaults
stay. Of the role of a parameter, how it is drawn is left. Names that two modules have are told
apart by that of the module.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from archsearch.dims import dims_of
from archsearch.errors import ExportError
from archsearch.export.literals import literal
from archsearch.export.names import plain_name, qualified
from archsearch.export.options import holds
from archsearch.export.sources import Definition, Edits, Import, Module, decorators, is_builtin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from archsearch.block import Block
    from archsearch.export.architecture import Used

OWN = "archsearch"
RUNTIME = "archsearch.export.runtime"
BLOCK, PLAIN, STACK = (f"{RUNTIME}.{name}" for name in ("block", "plain", "stack"))
STAND_IN = (
    {
        ("archsearch.block", "Role"): (BLOCK, "Init"),
        ("archsearch.wrapper", "Wrapper"): (BLOCK, "Wrapper"),
        ("archsearch.wrapper", "Inner"): (STACK, "Stack"),
    }
    | {
        ("archsearch.block", name): (BLOCK, name)
        for name in ("Block", "Ctx", "State", "Init", "normal", "fan_in", "zeros", "ones")
    }
    | {
        (f"archsearch.kernels.{kernel}", name): (PLAIN, name.removesuffix("_ref"))
        for kernel, names in {
            "conv_silu": ("conv_silu",),
            "gated_ffn": ("ACT", "gated_ffn"),
            "gated_norm": ("gated_norm", "gated_norm_ref"),
            "rms_norm": ("RMSNorm",),
            "rope": ("rope",),
        }.items()
        for name in names
    }
)
"""What is something else, or at another place, in an exported model."""
ROLE = ("archsearch.block", "Role")
CHOICE = ("archsearch.kernels.dispatch", "op")
SEARCH = frozenset({
    "check", "cost", "own_cost", "params_per_use", "channels_per_head", "grows", "spans", "oracle",
})  # fmt: skip
"""Members of a block that only a search needs."""


@dataclass
class Piece:
    """One definition, with what is changed in it."""

    module: Module
    definition: Definition
    edits: Edits = field(default_factory=Edits)
    left_out: list[ast.AST] = field(default_factory=list)
    names: list[tuple[ast.Name, tuple[str, str]]] = field(default_factory=list)
    """References to other pieces, and where those are defined."""

    @property
    def text(self) -> str:
        """Its source."""
        return self.edits.apply(self.module.text, *self.module.block(*self.definition.nodes))


class Bundle:
    """Collects definitions with all that they refer to.

    Args:
        used: The blocks. What their packages define is collected, what others do is imported.
        frame: What the architecture says beside its branches.
        beside: Modules of this package that become files of their own.
        given: Names that the file defines itself.
    """

    def __init__(
        self,
        used: Mapping[type[Block], Used],
        frame: Mapping[str, Any],
        beside: Iterable[str] = (),
        given: Iterable[str] = (),
    ) -> None:
        self.packages = {OWN, *(kind.__module__.partition(".")[0] for kind in used)}
        self.kinds = {(kind.__module__, kind.__qualname__): kind for kind in used}
        self.used = {place: used[kind] for place, kind in self.kinds.items()}
        self.frame, self.beside, self.given = frame, set(beside), set(given)
        self.modules: dict[str, Module] = {}
        self.pieces: dict[tuple[str, str], Piece] = {}
        self.imports: dict[str, Import] = {}

    def need(self, module: str, name: str) -> None:
        """Collect a definition.

        Raises:
            ExportError: if its source is not there, or names things in a way that cannot be moved.
        """
        if (module, name) in self.pieces:
            return
        source = self._module(module)
        definition = source.definitions[name]
        piece = self.pieces[module, name] = Piece(source, definition)
        for node in definition.nodes:
            if isinstance(node, ast.ClassDef):
                self._shorten(piece, node)
                self._options(piece, node)
            for decorator in decorators(node):
                # two models in one process would clash in what torch registers; backends are chosen
                # here, an exported model is plain torch
                if "custom_op" in ast.unparse(decorator) or self._chooses(source, decorator):
                    piece.left_out.append(decorator)
                    at = source.span(decorator)
                    piece.edits.replace((at[0] - 1, at[1] + 1))
            self._roles(piece, node)
        for node in definition.nodes:
            for reference in source.references(node, piece.left_out):
                self._refer(piece, reference)

    def names(self) -> dict[tuple[str, str], str]:
        """What each definition is called."""
        plain = {key: plain_name(key[1]) for key in self.pieces}
        count, taken = Counter(plain.values()), self.given | {*self.imports}
        found = {key: name for key, name in plain.items() if key[0].startswith(RUNTIME)}
        taken |= set(found.values())
        for key, name in plain.items():
            if key not in found:
                where, clash = key[0].split("."), count[name] > 1 or name in taken
                while clash and where:
                    name = qualified(name, where.pop())
                    clash = name in taken
                found[key] = name
                taken.add(name)
        return found

    def render(self, names: Mapping[tuple[str, str], str]) -> str:
        """All definitions, by module, each module behind those that it needs."""
        for piece in self.pieces.values():
            for node, target in piece.names:
                if names[target] != node.id:
                    piece.edits.replace(piece.module.span(node), names[target])
            self._rename(piece, names[piece.module.name, piece.definition.name])
        return "\n\n\n".join(section(self._module(name), self._of(name)) for name in self._order())

    def _module(self, name: str) -> Module:
        if name not in self.modules:
            self.modules[name] = Module(name)
        return self.modules[name]

    def _refer(self, piece: Piece, reference: ast.Name) -> None:
        """Note what a name stands for, and collect that."""
        if reference.id in self.given and piece.module.name.startswith(RUNTIME):
            return
        found = self._find(piece.module, reference.id)
        if isinstance(found, Import):
            self._import(reference.id, found)
        elif found is not None:
            piece.names.append((reference, found))
            self.need(*found)
        elif not is_builtin(reference.id):
            raise ExportError(f"{piece.module.name}: '{reference.id}' is not defined at the top")

    def _import(self, known_as: str, found: Import) -> None:
        if self.imports.setdefault(known_as, found) != found:
            one, two = self.imports[known_as], found
            raise ExportError(
                f"'{known_as}' is imported from {one.module} in one source and from {two.module} "
                "in another; they cannot stand in one file"
            )

    def _chooses(self, module: Module, decorator: ast.expr) -> bool:
        """Whether a decorator gives a function other backends."""
        made = decorator.func if isinstance(decorator, ast.Call) else decorator
        known = module.imports.get(made.id) if isinstance(made, ast.Name) else None
        return known is not None and (known.module, known.name) == CHOICE

    def _find(self, module: Module, name: str) -> tuple[str, str] | Import | None:
        """Where a name of a module is defined."""
        here = STAND_IN.get((module.name, name), (module.name, name))
        if here[0] != module.name:
            return here
        if name in module.definitions:
            return here
        if name not in module.imports:
            return None
        found = module.imports[name]
        if found.module in self.beside:
            return Import(f".{found.module.rpartition('.')[2]}", found.name)
        if found.module.partition(".")[0] not in self.packages:
            return found
        if found.name is None:
            raise ExportError(
                f"{module.name} imports the module {found.module}; to be exported, import what it "
                "uses by name: from ... import ..."
            )
        if (found.module, found.name) in STAND_IN:
            return STAND_IN[found.module, found.name]
        return self._find(self._module(found.module), found.name)

    def _shorten(self, piece: Piece, node: ast.ClassDef) -> None:
        """Leave out of a class what only a search needs."""
        module, block = piece.module, self._is_block(piece.module, node)
        if block and node.keywords:
            first, last = module.span(node.bases[0]), module.span(node.bases[-1])
            name = module.text.index(b"(", module.lines[node.lineno - 1])
            piece.edits.replace((name, first[0]), "(")
            end = module.span(node.keywords[-1].value)[1]
            piece.edits.replace((last[1], module.text.index(b":", end) + 1), "):")
            piece.left_out += node.keywords
        gone = [n for n in node.body if _name(n) == "oracle" or (block and _name(n) in SEARCH)]
        kept = [n for n in node.body if n not in gone]
        helped, used = _members(gone), _members(kept)
        gone += [n for n in kept if _name(n) in helped - used and _name(n).startswith("_")]
        for member in gone:
            piece.left_out.append(member)
            piece.edits.replace(module.block(member))
        for member in node.body if block else ():
            if isinstance(member, ast.ClassDef) and member.name == "Config":
                self._defaults(piece, node, member)
            if isinstance(member, ast.Assign) and _name(member) == "roles":
                target = member.targets[0]
                piece.left_out.append(target)
                piece.edits.replace(module.span(target), "starts: ClassVar[Mapping[str, Init]]")

    def _options(self, piece: Piece, node: ast.ClassDef) -> None:
        """Leave out options that need more than the file of the block, where no branch has them."""
        module = piece.module
        used = self.used.get((module.name, node.name))
        known = used.configs if used else [dict(self.frame)]
        for found in ast.walk(node):
            if isinstance(found, ast.If) and not found.orelse:
                never = all(holds(found.test, config) is False for config in known)
                if never and self._reaches_out(piece, *found.body):
                    start, stop = module.block(found)
                    piece.left_out.append(found)
                    said = f"{ast.unparse(found.test)}: left out, as no branch here has it"
                    piece.edits.replace((start, stop), f"{' ' * found.col_offset}# {said}\n")
            if isinstance(found, ast.Dict) and used:
                for key, value in zip(found.keys, found.values, strict=True):
                    if key is None and self._reaches_out(piece, value):
                        self._starts(piece, value, used)

    def _starts(self, piece: Piece, call: ast.expr, used: Used) -> None:
        """Leave out how parameters are drawn that no branch has: `**roles("act")` in a table."""
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            return
        make = getattr(importlib.import_module(piece.module.name), call.func.id)
        patterns = make(*map(ast.literal_eval, call.args))
        if not any(fnmatch.filter(used.parameters, pattern) for pattern in patterns):
            lines = piece.module.lines
            piece.left_out.append(call)
            piece.edits.replace((lines[call.lineno - 1], lines[call.end_lineno or 0]))

    def _reaches_out(self, piece: Piece, *nodes: ast.AST) -> bool:
        """Whether something in there is defined in another module of the packages."""
        names = (name.id for node in nodes for name in piece.module.references(node))
        found = [self._find(piece.module, name) for name in names]
        return any(isinstance(f, tuple) and f[0] != piece.module.name for f in found)

    def _is_block(self, module: Module, node: ast.ClassDef) -> bool:
        if module.name.startswith(RUNTIME):
            return False
        for base in node.bases:
            found = self._find(module, base.id) if isinstance(base, ast.Name) else None
            if isinstance(found, tuple):
                if found in ((BLOCK, "Block"), (BLOCK, "Wrapper")):
                    return True
                (above, *_) = self._module(found[0]).definitions[found[1]].nodes
                if isinstance(above, ast.ClassDef):
                    return self._is_block(self._module(found[0]), above)
        return False

    def _defaults(self, piece: Piece, block: ast.ClassDef, config: ast.ClassDef) -> None:
        """Search dimensions become their defaults."""
        kind = getattr(importlib.import_module(piece.module.name), block.name)
        dims = dims_of(kind.Config)
        for member in config.body:
            if isinstance(member, ast.AnnAssign) and member.value and _name(member) in dims:
                piece.left_out.append(member.value)
                default = literal(dims[_name(member)].default)
                piece.edits.replace(piece.module.span(member.value), default)
            if isinstance(member, ast.Expr) and member is config.body[0]:
                piece.edits.replace(piece.module.span(member.value), '"""What it is built with."""')

    def _roles(self, piece: Piece, node: ast.AST) -> None:
        """Of each `Role.kind(..., init=draw)` keep `draw`."""
        for call in ast.walk(node):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            owner = call.func.value
            known = piece.module.imports.get(owner.id) if isinstance(owner, ast.Name) else None
            if known is None or (known.module, known.name) != ROLE:
                continue
            start, stop = piece.module.span(call)
            init = next((k.value for k in call.keywords if k.arg == "init"), None)
            if init is None:
                piece.left_out.append(call)
                piece.edits.replace((start, stop), "fan_in")
                self.need(BLOCK, "fan_in")
                continue
            inner = piece.module.span(init)
            piece.edits.replace((start, inner[0]))
            piece.edits.replace((inner[1], stop))
            piece.left_out += [call.func, *call.args]
            piece.left_out += [k for k in call.keywords if k.arg != "init"]

    def _rename(self, piece: Piece, name: str) -> None:
        """The name in the definition itself; that of a constant is a reference like any other."""
        node, old = piece.definition.nodes[0], piece.definition.name
        if name != old and isinstance(node, ast.FunctionDef | ast.ClassDef):
            line = piece.module.lines[node.lineno - 1]
            start = piece.module.text.index(f" {old}".encode(), line) + 1
            piece.edits.replace((start, start + len(old)), name)

    def _of(self, module: str) -> list[Piece]:
        """The pieces of a module, in its own order."""
        own = [piece for (name, _), piece in self.pieces.items() if name == module]
        return sorted(own, key=lambda piece: piece.definition.nodes[0].lineno)

    def _order(self) -> list[str]:
        """The modules, each behind those that it needs; the runtime is around all others."""
        needs: dict[str, set[str]] = {module: set() for module, _ in self.pieces}
        for (module, _), piece in self.pieces.items():
            needs[module] |= {target[0] for _, target in piece.names}
        order, met = [BLOCK], {BLOCK}

        def around(module: str) -> bool:
            return module.startswith(RUNTIME) and module != PLAIN

        def visit(module: str) -> None:
            met.add(module)
            for other in sorted(needs[module]):
                if other not in met and around(other) == around(module):
                    visit(other)
            order.append(module)

        for module in sorted(needs, key=around):
            if module not in met:
                visit(module)
        return order


def section(module: Module, pieces: Sequence[Piece]) -> str:
    """The definitions of a module under what it says of itself."""
    docs = "\n".join(f"# {line}".rstrip() for line in module.docs.splitlines())
    parts = [docs] if docs else []
    before: ast.stmt | None = None
    for piece in pieces:
        node = piece.definition.nodes[0]
        constants = before is not None and all(map(_is_constant, (before, node)))
        parts += ["\n" if constants else "\n\n\n"] if parts else []
        parts.append(re.sub(r"\n{3,}", "\n\n", piece.text).rstrip())
        before = node
    return "".join(parts)


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign | ast.AnnAssign)


def _name(node: ast.stmt) -> str:
    """What a member of a class is called."""
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return str(getattr(node, "name", ""))


def _members(nodes: Iterable[ast.stmt]) -> set[str]:
    """The attributes that are named in there."""
    return {n.attr for node in nodes for n in ast.walk(node) if isinstance(n, ast.Attribute)}

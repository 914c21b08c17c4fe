"""The small expression language of `require` and `objectives`.

    count(attention) >= 1 and state_bytes(4096) <= 256K
    not adjacent(mamba2, mamba2) or layers < 12

Precedence from loose to tight: or, and, not, comparison, + -, * /, unary minus. Numbers take the
units of a space file (`256K`, `1M`, `64KiB`, `3%`). Nothing is ever handed to `eval`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from archsearch.errors import nearest

Quantity = Callable[[str, tuple["str | float", ...]], float]
"""Looks up a quantity by name and arguments, e.g. ("count", ("attention",))."""

Takes = tuple[str, ...]
"""What a quantity takes: "block" for the name of one, "context?" for a length in tokens or nothing.
"""
QUANTITIES: dict[str, Takes] = {
    "params": (),
    "active_params": (),
    "flops": ("context?",),
    "state_bytes": ("context?",),
    "d_model": (),
    "layers": (),
    "count": ("block",),
    "adjacent": ("block", "block"),
}
"""What is known before training."""
STATEMENTS = ("adjacent",)
"""Which of them are true or false."""
SCORES: dict[str, Takes] = {"score": (), "loss": ()}
"""What is known after training."""
UNITS: dict[str, int | Decimal] = {
    "": 1, "%": Decimal("0.01"), "K": 10**3, "M": 10**6, "G": 10**9,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip
MOST_TOKENS, MOST_DEPTH, MOST_CONTEXT = 256, 16, 2**31

_NUMBER = r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?)(?P<unit>[A-Za-z%]*)"
_OP = r"(?P<op><=|>=|==|!=|[<>+\-*/(),])"
_TOKEN = re.compile(rf"\s*(?:{_NUMBER}|(?P<name>[A-Za-z_]\w*)|{_OP})")
_ARGUMENT = re.compile(rf"\s*(?:{_NUMBER}|(?P<name>[A-Za-z_][\w\-]*)|{_OP})")
"""The name of a block may hold a hyphen; between quantities it is a minus."""
_COMPARE = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ARITHMETIC = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


def scaled(digits: str, unit: str) -> float:
    """A number with a unit of `UNITS`, whole where it is: 2.01 M is exactly 2010000."""
    value = float(Decimal(digits) * UNITS[unit])
    return int(value) if value.is_integer() else value


class ExprError(ValueError):
    """An expression cannot be read; `at` is the offset of the offending character."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True, slots=True)
class Expr:
    """A parsed expression. Two with the same text are equal."""

    text: str
    truth: bool
    """Whether it is a statement (true or false) or a number."""
    root: Node
    blocks: tuple[tuple[str, int], ...] = ()
    """Every block that is named, and the offset of its name."""

    @classmethod
    def parse(cls, text: str, known: dict[str, Takes]) -> Expr:
        """Read an expression over the quantities `known`.

        Raises:
            ExprError: at the first character that does not fit.
        """
        parser = _Parser(text, known)
        root = parser.any_of()
        parser.expect_end()
        return cls(text, root.truth, root, tuple(parser.blocks))

    @classmethod
    def implies(cls, when: Expr, then: Expr) -> Expr:
        """The statement that `then` holds wherever `when` does."""
        root = Node("or", (Node("not", (when.root,)), then.root))
        return cls(f"when {when.text} then {then.text}", True, root)

    def __call__(self, quantity: Quantity) -> float:
        """The value, with every quantity looked up by `quantity`."""
        return self.root.value(quantity)


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: its name and its operands."""

    op: str
    parts: tuple[Node, ...] = ()
    number: float = 0.0
    name: str = ""
    args: tuple[str | float, ...] = ()

    @property
    def truth(self) -> bool:
        """Whether the value is true or false."""
        return self.op in (*_COMPARE, "and", "or", "not") or self.name in STATEMENTS

    def value(self, quantity: Quantity) -> float:
        """Evaluate by walking the tree."""
        if self.op == "number":
            return self.number
        if self.op == "quantity":
            return quantity(self.name, self.args)
        if self.op == "and":
            return all(part.value(quantity) for part in self.parts)
        if self.op == "or":
            return any(part.value(quantity) for part in self.parts)
        values = [float(part.value(quantity)) for part in self.parts]
        if self.op == "not":
            return not values[0]
        if self.op == "/" and values[1] == 0:
            return float("nan")
        return float((_COMPARE.get(self.op) or _ARITHMETIC[self.op])(*values))


class _Parser:
    def __init__(self, text: str, known: dict[str, Takes]) -> None:
        self.text, self.known = text, known
        self.blocks: list[tuple[str, int]] = []
        self.tokens: list[re.Match[str]] = []
        at, end, called = 0, len(text.rstrip()), False
        while at < end:
            match = (_ARGUMENT if called else _TOKEN).match(text, at)
            if not match:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise ExprError(f"unexpected character '{text[at]}'", at)
            if len(self.tokens) == MOST_TOKENS:
                raise ExprError(f"too long; at most {MOST_TOKENS} words and signs", match.start())
            opens = bool(self.tokens) and self.tokens[-1]["name"] in known and match["op"] == "("
            called = opens or (called and match["op"] != ")")
            self.tokens.append(match)
            at = match.end()
        self.index = self.depth = 0

    def word(self) -> str:
        """The next token, "" at the end."""
        if self.index == len(self.tokens):
            return ""
        return self.tokens[self.index].group().strip()

    def here(self) -> int:
        if self.index == len(self.tokens):
            return len(self.text.rstrip())
        token = self.tokens[self.index]
        return token.end() - len(token.group().strip())

    def take(self, *words: str) -> str:
        """Step over the next token if it is one of `words`."""
        word = self.word()
        if word in words and word:
            self.index += 1
            return word
        return ""

    def expect(self, word: str) -> None:
        if not self.take(word):
            raise ExprError(f"expected '{word}'", self.here())

    def expect_end(self) -> None:
        if self.word():
            raise ExprError(f"'{self.word()}' does not continue the expression", self.here())

    def deeper(self, inner: Callable[[], Node]) -> Node:
        """What stands inside parentheses or behind a sign."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ExprError(f"nested too deeply; at most {MOST_DEPTH} levels", self.here())
        node = inner()
        self.depth -= 1
        return node

    def any_of(self) -> Node:
        return self._logic("or", self.all_of)

    def all_of(self) -> Node:
        return self._logic("and", self.negation)

    def _logic(self, word: str, operand: Callable[[], Node]) -> Node:
        at, left = self.here(), operand()
        while self.take(word):
            self._check(left, True, at)
            at, right = self.here(), operand()
            left = Node(word, (left, self._check(right, True, at)))
        return left

    def negation(self) -> Node:
        if self.take("not"):
            at = self.here()
            return Node("not", (self._check(self.deeper(self.negation), True, at),))
        return self.comparison()

    def comparison(self) -> Node:
        at, left = self.here(), self.sum()
        if op := self.take(*_COMPARE):
            self._check(left, False, at)
            at = self.here()
            return Node(op, (left, self._check(self.sum(), False, at)))
        return left

    def sum(self) -> Node:
        return self._arithmetic(("+", "-"), self.product)

    def product(self) -> Node:
        return self._arithmetic(("*", "/"), self.atom)

    def _arithmetic(self, ops: tuple[str, ...], operand: Callable[[], Node]) -> Node:
        at, left = self.here(), operand()
        while op := self.take(*ops):
            self._check(left, False, at)
            at = self.here()
            left = Node(op, (left, self._check(operand(), False, at)))
        return left

    def atom(self) -> Node:
        if self.take("-"):
            at = self.here()
            return Node("-", (Node("number"), self._check(self.deeper(self.atom), False, at)))
        if self.take("("):
            inner = self.deeper(self.any_of)
            self.expect(")")
            return inner
        if self.index == len(self.tokens):
            raise ExprError("the expression ends too early", self.here())
        token = self.tokens[self.index]
        if token["number"]:
            self.index += 1
            return Node("number", number=self._number(token))
        if token["name"] and self.word() not in ("and", "or", "not"):
            return self._quantity()
        raise ExprError(f"expected a number or a quantity, not '{self.word()}'", self.here())

    def _number(self, token: re.Match[str]) -> float:
        if token["unit"] not in UNITS:
            legal = ", ".join(unit for unit in UNITS if unit)
            raise ExprError(f"unknown unit '{token['unit']}'; known: {legal}", token.start("unit"))
        return scaled(token["number"], token["unit"])

    def _quantity(self) -> Node:
        at, name = self.here(), self.word()
        if name not in self.known:
            raise ExprError(f"unknown quantity '{name}'; {nearest(name, self.known)}", at)
        self.index += 1
        takes = self.known[name]
        args: list[str | float] = []
        if self.take("("):
            while not self.take(")"):
                if args and not self.take(","):
                    sign = "," if len(args) < len(takes) else ")"
                    raise ExprError(f"expected '{sign}'", self.here())
                args.append(self._argument(takes[len(args) : len(args) + 1]))
        fewest = sum(not kind.endswith("?") for kind in takes)
        if not fewest <= len(args) <= len(takes):
            number = f"{fewest}" if fewest == len(takes) else f"{fewest} or {len(takes)}"
            word = "argument" if number == "1" else "arguments"
            raise ExprError(f"'{name}' takes {number} {word}, not {len(args)}", at)
        return Node("quantity", name=name, args=tuple(args))

    def _argument(self, kind: Takes) -> str | float:
        """One argument; `kind` is empty where none is expected."""
        at, word = self.here(), self.word()
        if not word or self.tokens[self.index]["op"]:
            raise ExprError("expected a name or a number" if word else "expected ')'", at)
        token = self.tokens[self.index]
        self.index += 1
        if kind == ("block",):
            if token["number"]:
                raise ExprError(f"expected the name of a block, not {word}", at)
            self.blocks.append((word, at))
        elif kind:
            length = self._number(token) if token["number"] else 0
            if not isinstance(length, int) or not 1 <= length <= MOST_CONTEXT:
                raise ExprError(f"expected a length in tokens, such as 4096, not {word}", at)
            return length
        return word

    def _check(self, node: Node, truth: bool, at: int) -> Node:
        if node.truth != truth:
            want, got = ("a comparison", "a number") if truth else ("a number", "a comparison")
            raise ExprError(f"expected {want} here, not {got}", at)
        return node

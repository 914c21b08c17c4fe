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

from archsearch.errors import nearest

Quantity = Callable[[str, tuple["str | float", ...]], float]
"""Looks up a quantity by name and arguments, e.g. ("count", ("attention",))."""

QUANTITIES = {
    "params": (0, 0),
    "active_params": (0, 0),
    "flops": (0, 1),
    "state_bytes": (0, 1),
    "d_model": (0, 0),
    "layers": (0, 0),
    "count": (1, 1),
    "adjacent": (2, 2),
}
"""Name -> fewest and most arguments, for what is known before training."""
SCORES = {"score": (0, 0), "loss": (0, 0)}
"""What is known after training."""
UNITS = {"": 1.0, "%": 0.01, "K": 1e3, "M": 1e6, "G": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?P<unit>[A-Za-z%]*)"
    r"|(?P<name>[A-Za-z_][\w\-]*(?::[\w\-]+)?)|(?P<op><=|>=|==|!=|[<>+\-*/(),]))"
)
_COMPARE = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ARITHMETIC = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip


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

    @classmethod
    def parse(cls, text: str, known: dict[str, tuple[int, int]]) -> Expr:
        """Read an expression over the quantities `known`.

        Raises:
            ExprError: at the first character that does not fit.
        """
        parser = _Parser(text, known)
        root = parser.any_of()
        parser.expect_end()
        return cls(text, root.truth, root)

    def __call__(self, quantity: Quantity) -> float:
        """The value, with every quantity looked up by `quantity`."""
        return self.root.value(quantity)


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: its name, its operands and where it stands in the text."""

    op: str
    parts: tuple[Node, ...] = ()
    number: float = 0.0
    name: str = ""
    args: tuple[str | float, ...] = ()

    @property
    def truth(self) -> bool:
        """Whether the value is true or false."""
        return self.op in _COMPARE or self.op in ("and", "or", "not")

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
        values = [part.value(quantity) for part in self.parts]
        if self.op == "not":
            return not values[0]
        if self.op == "/" and values[1] == 0:
            return float("nan")
        return float((_COMPARE.get(self.op) or _ARITHMETIC[self.op])(*values))


class _Parser:
    def __init__(self, text: str, known: dict[str, tuple[int, int]]) -> None:
        self.text, self.known = text, known
        self.tokens: list[re.Match[str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if not match:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise ExprError(f"unexpected character '{text[at]}'", at)
            self.tokens.append(match)
            at = match.end()
        self.index = 0

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
            return Node("not", (self._check(self.negation(), True, at),))
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
            return Node("-", (Node("number"), self._check(self.atom(), False, at)))
        if self.take("("):
            inner = self.any_of()
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
        return float(token["number"]) * UNITS[token["unit"]]

    def _quantity(self) -> Node:
        at, name = self.here(), self.word()
        if name not in self.known:
            raise ExprError(f"unknown quantity '{name}'; {nearest(name, self.known)}", at)
        self.index += 1
        args: list[str | float] = []
        if self.take("("):
            while not self.take(")"):
                if args:
                    self.expect(",")
                args.append(self._argument())
        fewest, most = self.known[name]
        if not fewest <= len(args) <= most:
            takes = f"{fewest}" if fewest == most else f"{fewest} or {most}"
            raise ExprError(f"'{name}' takes {takes} arguments, not {len(args)}", at)
        return Node("quantity", name=name, args=tuple(args))

    def _argument(self) -> str | float:
        if self.index == len(self.tokens):
            raise ExprError("expected ')'", self.here())
        token = self.tokens[self.index]
        if token["op"]:
            raise ExprError("expected a name or a number", self.here())
        self.index += 1
        return self._number(token) if token["number"] else token["name"]

    def _check(self, node: Node, truth: bool, at: int) -> Node:
        if node.truth != truth:
            want, got = ("a comparison", "a number") if truth else ("a number", "a comparison")
            raise ExprError(f"expected {want} here, not {got}", at)
        return node

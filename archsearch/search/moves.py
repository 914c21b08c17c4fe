"""Edits of a genome, as edits of the answers that lead to it.

An edit changes some answers and keeps the others; a question that arises anew is answered at
random, by the prior of the space. So whatever an edit does, it stays within the space, and it knows
what it touches: a choice, a number, a repeat, or all that stands at a place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from typing import Protocol

from archsearch.dims import Dim, Value

Decisions = dict[str, Value]
Choose = Callable[[str, Dim], Value]


class Tree(Protocol):
    """What is searched: questions, and what the answers lead to."""

    def ask(self, choose: Choose) -> None:
        """Ask every question on the way to a member."""

    def resolve(self, choose: Choose) -> Hashable:
        """The member that the answers lead to."""

    def sample(self, rng: random.Random) -> Decisions:
        """Random answers."""


def questions(tree: Tree, decisions: Mapping[str, Value]) -> dict[str, Dim]:
    """What was asked on the way to a member, in order."""
    asked: dict[str, Dim] = {}

    def answer(path: str, dim: Dim) -> Value:
        asked[path] = dim
        return decisions[path]

    tree.ask(answer)
    return asked


def complete(tree: Tree, wanted: Mapping[str, Value], rng: random.Random) -> Decisions:
    """The answers wanted where they are legal, others drawn."""
    drawn, answers = Decisions(), Decisions()

    def answer(path: str, dim: Dim) -> Value:
        if path in wanted and wanted[path] in dim:
            answers[path] = wanted[path]
            return answers[path]
        if not drawn:
            drawn.update(tree.sample(rng))
        known = path in drawn and drawn[path] in dim
        answers[path] = drawn[path] if known else dim.sample(rng)
        return answers[path]

    tree.ask(answer)
    return answers


def kind_of(path: str, dim: Dim) -> str:
    """repeat, number or choice: what a question asks for."""
    if path.rpartition(".")[2] in ("repeat", "unique"):
        return "repeat"
    return "number" if _ordered(dim) else "choice"


@cache
def _ordered(dim: Dim) -> bool:
    """Whether all values but None are numbers."""
    values = [v for v in dim.options or (dim.low,) if v is not None]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def steps(dim: Dim, value: Value) -> list[Value]:
    """The values beside one: its neighbours if they have an order, else all others."""
    if dim.values is None:
        assert dim.low is not None and dim.high is not None and isinstance(value, float)  # noqa: PT018
        reach = (dim.high / dim.low) ** 0.1 if dim.log else (dim.high - dim.low) * 0.1
        beside = (value / reach, value * reach) if dim.log else (value - reach, value + reach)
        return [dim.cast(min(dim.high, max(dim.low, v))) for v in beside]
    if kind_of("", dim) == "choice":
        return [v for v in dim.values if v != value]
    at = dim.values.index(value)
    return [dim.values[i] for i in (at - 1, at + 1) if 0 <= i < len(dim.values)]


def subtree(decisions: Mapping[str, Value], path: str) -> Decisions:
    """The answers below a question, itself included, by the rest of their paths."""
    below = {k[len(path) :]: v for k, v in decisions.items() if k.startswith(f"{path}.")}
    return below | {"": decisions[path]}


def grafted(decisions: Mapping[str, Value], path: str, below: Decisions) -> Decisions:
    """The answers with another subtree at a question."""
    kept = {k: v for k, v in decisions.items() if k != path and not k.startswith(f"{path}.")}
    return kept | {path + rest: value for rest, value in below.items()}


def twins(asked: Mapping[str, Dim]) -> list[tuple[str, str]]:
    """Pairs of places where the same may stand."""
    places = [path for path, dim in asked.items() if kind_of(path, dim) == "choice"]
    return [
        (one, other)
        for i, one in enumerate(places)
        for other in places[i + 1 :]
        if asked[one].options == asked[other].options
    ]


def step(
    decisions: Decisions, asked: Mapping[str, Dim], rng: random.Random, kind: str
) -> Decisions:
    """One answer of a kind changed."""
    paths = [path for path, dim in asked.items() if kind_of(path, dim) == kind]
    path = rng.choice(paths)
    return decisions | {path: rng.choice(steps(asked[path], decisions[path]))}


def swap(decisions: Decisions, asked: Mapping[str, Dim], rng: random.Random) -> Decisions:
    """What stands at two places of the same kind changes places."""
    one, other = rng.choice(twins(asked))
    below = subtree(decisions, one), subtree(decisions, other)
    return grafted(grafted(decisions, one, below[1]), other, below[0])


def copy(decisions: Decisions, asked: Mapping[str, Dim], rng: random.Random) -> Decisions:
    """What stands at one place stands at another of the same kind, too."""
    one, other = rng.sample(rng.choice(twins(asked)), 2)
    return grafted(decisions, one, subtree(decisions, other))


Move = Callable[[Decisions, Mapping[str, Dim], random.Random], Decisions]
MOVES: dict[str, tuple[float, Move]] = {
    "choice": (0.3, lambda d, a, r: step(d, a, r, "choice")),
    "number": (0.35, lambda d, a, r: step(d, a, r, "number")),
    "repeat": (0.1, lambda d, a, r: step(d, a, r, "repeat")),
    "swap": (0.1, swap),
    "copy": (0.15, copy),
}
"""The edits by name, and how often each is made while nothing is known of them."""


def mutate(
    tree: Tree, decisions: Decisions, rng: random.Random, weights: Mapping[str, float]
) -> tuple[Decisions, str]:
    """One random edit, and its name; the answers themselves if there is nothing to edit."""
    asked = questions(tree, decisions)
    kinds = {kind_of(path, dim) for path, dim in asked.items()}
    possible = [name for name in MOVES if name in kinds]
    possible += ["swap", "copy"] if twins(asked) else []
    if not possible:
        return decisions, "none"
    (name,) = rng.choices(possible, [weights[name] for name in possible])
    return complete(tree, MOVES[name][1](decisions, asked, rng), rng), name


def cross(tree: Tree, one: Decisions, other: Decisions, rng: random.Random) -> Decisions:
    """The first answers from one parent, the others from the other."""
    order = list(questions(tree, one))
    head = order[: rng.randrange(1, len(order))] if len(order) > 1 else order
    return complete(tree, {**one, **other, **{path: one[path] for path in head}}, rng)


def neighbours(tree: Tree, decisions: Decisions) -> list[Decisions]:
    """The answers with one of them changed by a step, in every way."""
    return [
        decisions | {path: value}
        for path, dim in questions(tree, decisions).items()
        for value in steps(dim, decisions[path])
    ]

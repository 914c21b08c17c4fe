"""The search space: a tree of choices, and the genomes that it holds.

A space is a list of stages; a stage repeats a pattern of slots; a slot offers options. One walk
over the tree, `SearchSpace.resolve`, asks a question at every choice and ends in a genome. Drawing
at random, asking Optuna and replaying stored answers differ only in who answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from archsearch.dims import Dim, Value
from archsearch.genome import FRAME, Gene, Genome

if TYPE_CHECKING:
    import random

    from archsearch.expr import Expr

Choose = Callable[[str, Dim], Value]
"""Answers one question: the path of the choice and what is legal there."""
Decisions = dict[str, Value]
"""The answers that lead to one genome, by path. Paths that were not asked are absent."""
Count = Mapping[frozenset[str], float]
"""Number of ways, by the set of shared definitions that they use."""


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that may stand in a slot."""

    label: str
    block: str | None
    """None is the identity, "none" in a space file."""
    params: tuple[tuple[str, Dim], ...] = ()
    share: str | None = None
    """The shared definition that it comes from; its parameters are then chosen once."""
    inner: tuple[Slot, ...] = ()
    """What a wrapper holds."""

    @property
    def kind(self) -> str:
        """The label without the number that tells equal ones apart."""
        return self.label.partition("#")[0]

    @property
    def content(self) -> tuple[object, ...]:
        """All but the label."""
        return self.block, frozenset(self.params), self.share, self.inner


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in a pattern."""

    name: str
    options: tuple[Option, ...]
    repeat: Dim
    weights: tuple[float, ...] | None = None
    """How likely each option is when drawn at random (`prior`)."""

    @property
    def dim(self) -> Dim:
        """The choice among the options."""
        return Dim(options=tuple(option.label for option in self.options))


@dataclass(frozen=True, slots=True)
class Stage:
    """A pattern of slots and how often it repeats."""

    name: str
    pattern: tuple[Slot, ...]
    repeat: Dim
    choose: Literal["once", "per_repeat"] = "once"


@dataclass(frozen=True, slots=True)
class Match:
    """Solve a free width so that every candidate has the same size."""

    quantity: Expr
    target: float
    tolerance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """Which architectures may be found. Knows nothing of training or of Optuna."""

    name: str
    d_model: Dim
    stages: tuple[Stage, ...]
    frame: Mapping[str, Dim] = field(default_factory=dict)
    """What may stand around the stack, where it is not the default; see `genome.FRAME`."""
    match: Match | None = None
    require: tuple[Expr, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Every legal `d_model`, from small to large."""
        return _widths(self.d_model)

    def resolve(self, choose: Choose) -> Genome:
        """Walk the tree, asking `choose` at every choice that has more than one answer.

        Where `match` solves the width, the genome carries the smallest legal one.

        Raises:
            SpaceError: if every slot became the identity.
        """
        d_model, genes, frame = self._walk(choose)
        return Genome(d_model, genes, **frame)

    def _walk(self, choose: Choose) -> tuple[int, tuple[Gene, ...], dict[str, Any]]:
        def pick(path: str, dim: Dim) -> Value:
            return dim.first if dim.count == 1 else choose(path, dim)

        d_model = self.widths[0] if self.match else pick("d_model", self.d_model)
        frame = {name: pick(name, self.frame[name]) for name in FRAME if name in self.frame}
        shared: dict[str, Gene] = {}
        genes: list[Gene] = []
        for stage in self.stages:
            repeats = _whole(pick(f"{stage.name}.repeat", stage.repeat))
            if stage.choose == "once" and repeats:
                genes += _genes(stage.pattern, stage.name, pick, shared) * repeats
            if stage.choose == "per_repeat":
                for i in range(repeats):
                    genes += _genes(stage.pattern, f"{stage.name}[{i}]", pick, shared)
        return _whole(d_model), tuple(genes), frame

    def sample(self, rng: random.Random) -> Decisions:
        """Draw every choice independently, by the slot's prior where there is one."""
        weights = {path: slot.weights for path, slot in self._slots()}
        decisions: Decisions = {}

        def draw(path: str, dim: Dim) -> Value:
            stage, _, rest = path.partition(".")
            place = f"{stage.partition('[')[0]}.{rest}"
            decisions[path] = dim.sample(rng, weights.get(place))
            return decisions[path]

        self._walk(draw)
        return decisions

    def replay(self, decisions: Mapping[str, Value]) -> Genome:
        """The genome that these answers lead to.

        Raises:
            KeyError: if a choice has no answer.
            SpaceError: if every slot became the identity.
        """
        return self.resolve(lambda path, _: decisions[path])

    def every(self) -> Iterator[Decisions]:
        """All answers, in order.

        Raises:
            ValueError: if a choice is continuous.
        """
        stack: list[list[tuple[str, Value]]] = [[]]
        while stack:
            given = dict(stack.pop())
            asked: list[tuple[str, Dim]] = []

            def answer(path: str, dim: Dim) -> Value:
                if path not in given and not asked:  # noqa: B023
                    asked.append((path, dim))  # noqa: B023
                return given.get(path, dim.first)  # noqa: B023

            self._walk(answer)
            if not asked:
                yield given
                continue
            path, dim = asked[0]
            if dim.values is None:
                raise ValueError(f"{path} is continuous")
            stack += [[*given.items(), (path, value)] for value in reversed(dim.values)]

    @property
    def size(self) -> float:
        """Number of ways to answer every question; infinite if one is continuous."""
        ways: Count = {frozenset(): 1.0}
        for stage in self.stages:
            one = _times(*(_slot_ways(slot) for slot in stage.pattern))
            total: dict[frozenset[str], float] = {}
            for repeat in stage.repeat.values or ():
                times = _whole(repeat)
                part = _times(*[one] * times) if stage.choose == "per_repeat" else one
                for used, number in ({frozenset[str](): 1.0} if times == 0 else part).items():
                    total[used] = total.get(used, 0) + number
            ways = _times(ways, total)
        shared = {
            option.share: sum(_option_ways(option).values())
            for _, slot in self._slots()
            for option in slot.options
            if option.share
        }
        outer = [*self.frame.values(), *([] if self.match else [self.d_model])]
        members = sum(n * math.prod(shared[name] for name in used) for used, n in ways.items())
        return members * math.prod(dim.count for dim in outer)

    @property
    def varying(self) -> frozenset[tuple[str, str]]:
        """The (block, parameter) pairs that differ within the space."""
        seen: dict[tuple[str, str], set[Value]] = {}
        for _, slot in self._slots():
            for option in slot.options:
                for name, dim in option.params:
                    known = dim.options or (dim.low, dim.high)
                    seen.setdefault((option.block or "", name), set()).update(known)
        return frozenset(pair for pair, values in seen.items() if len(values) > 1)

    def _slots(self) -> Iterator[tuple[str, Slot]]:
        """Every slot, with the path of its choice in a stage that repeats once."""
        for stage in self.stages:
            yield from _nested(stage.pattern, stage.name)

    def locate(self, genome: Genome) -> Decisions | None:
        """Answers that lead to `genome`, or None if it is not in the space.

        Whatever `match` and `require` say is not looked at here.
        """
        from archsearch.locate import locate

        return locate(self, genome)


@cache
def _widths(dim: Dim) -> tuple[int, ...]:
    return tuple(sorted(_whole(width) for width in dim.values or ()))


def _nested(pattern: tuple[Slot, ...], path: str) -> Iterator[tuple[str, Slot]]:
    for slot in pattern:
        here = f"{path}.{slot.name}"
        yield here, slot
        for option in slot.options:
            yield from _nested(option.inner, option_path(option, here))


def _genes(
    pattern: tuple[Slot, ...], path: str, pick: Choose, shared: dict[str, Gene]
) -> list[Gene]:
    """One pass through the slots of a pattern."""
    genes: list[Gene] = []
    for slot in pattern:
        here = f"{path}.{slot.name}"
        label = pick(here, slot.dim)
        option = next(option for option in slot.options if option.label == label)
        repeats = _whole(pick(f"{here}.repeat", slot.repeat))
        if option.block is not None and repeats:
            genes += [_gene(option, here, pick, shared)] * repeats
    return genes


def _gene(option: Option, path: str, pick: Choose, shared: dict[str, Gene]) -> Gene:
    if option.share in shared:
        return shared[option.share]
    base = option_path(option, path)
    params = {name: pick(f"{base}.{name}", dim) for name, dim in option.params}
    inner = _genes(option.inner, base, pick, shared)
    gene = Gene.of(option.block or "", option.share, inner, **params)
    if option.share:
        shared[option.share] = gene
    return gene


def option_path(option: Option, slot_path: str) -> str:
    """Where the parameters of an option are chosen; once for all uses of shared weights."""
    return f"define.{option.share}" if option.share else f"{slot_path}.{option.label}"


def _slot_ways(slot: Slot) -> Count:
    ways: dict[frozenset[str], float] = {}
    for option in slot.options:
        for repeat in slot.repeat.values or ():
            chosen = option.block is not None and _whole(repeat) > 0
            used = frozenset({option.share} if option.share and chosen else ())
            own = {used: 1.0} if option.share or not chosen else _option_ways(option)
            for among, number in own.items():
                ways[among] = ways.get(among, 0) + number
    return ways


def _option_ways(option: Option) -> Count:
    """Ways to choose the parameters of an option and what it holds."""
    own = {frozenset[str](): float(math.prod(dim.count for _, dim in option.params))}
    return _times(own, *(_slot_ways(slot) for slot in option.inner))


def _times(*factors: Count) -> dict[frozenset[str], float]:
    total: dict[frozenset[str], float] = {frozenset(): 1.0}
    for factor in factors:
        step: dict[frozenset[str], float] = {}
        for (left, m), (right, n) in product(total.items(), factor.items()):
            step[left | right] = step.get(left | right, 0) + m * n
        total = step
    return total


def _whole(value: Value) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value

"""The search space: a tree of choices, and the genomes that it holds.

A space is a list of stages; a stage repeats a pattern of slots; a slot offers options. One walk
over the tree, `SearchSpace.resolve`, asks a question at every choice and ends in a genome. Drawing
at random, asking Optuna and replaying stored answers differ only in who answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from archsearch.canonical import kept
from archsearch.dims import Dim, Value, as_whole, one
from archsearch.genome import FRAME, Gene, Genome

if TYPE_CHECKING:
    import random

    from archsearch.expr import Expr

Choose = Callable[[str, Dim], Value]
"""Answers one question: the path of the choice and what is legal there."""
Decisions = dict[str, Value]
"""The answers that lead to one genome, by path. Paths that were not asked are absent."""

SCHEMES = Dim(options=("sequence", "cycle", "cycle_rev"), default="sequence")
"""Orders in which the repeats of a stage use fewer sets of weights."""


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
    inputs: tuple[str | int, ...] = ("prev",)
    """What the slot reads: "prev", "embedding", "stage:<name>" or n, the stream after n blocks."""
    combine: Dim = field(default_factory=lambda: one("add"))
    """How several inputs become one."""

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
    unique: Dim | None = None
    """How many of the repeats have weights of their own; None for all."""
    scheme: Dim = field(default_factory=lambda: SCHEMES)
    """In which order the repeats use them, see `plan`."""


def plan(repeats: int, unique: int, scheme: str) -> tuple[int, ...]:
    """Which weights each repeat uses, for example 3 in 6 repeats (arXiv 2104.06022, figure 1).

    sequence: 0 0 1 1 2 2. cycle: 0 1 2 0 1 2. cycle_rev: 0 1 2 2 1 0. One for all is ALBERT's.
    """
    if scheme == "sequence":
        return tuple(i * unique // repeats for i in range(repeats))
    cycle = [i % unique for i in range(repeats)]
    if scheme == "cycle_rev" and repeats > unique:
        cycle[-unique:] = range(unique - 1, -1, -1)
    return tuple(cycle)


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

    def ask(self, choose: Choose) -> None:
        """Ask the questions that `resolve` asks, and no more: every slot may be the identity."""
        self._walk(choose)

    def _walk(self, choose: Choose) -> tuple[int, tuple[Gene, ...], dict[str, Any]]:
        def pick(path: str, dim: Dim) -> Value:
            return dim.first if dim.count == 1 else choose(path, dim)

        d_model = self.widths[0] if self.match else pick("d_model", self.d_model)
        frame = {name: pick(name, self.frame[name]) for name in FRAME if name in self.frame}
        shared: dict[str, Gene] = {}
        genes: list[Gene] = []
        ends: dict[str, int] = {}
        for stage in self.stages:
            passes = _repeats(stage, pick, shared)
            genes += [
                replace(gene, inputs=sources(reads, len(genes) + k, ends))
                for k, (gene, reads) in enumerate(passes)
            ]
            ends[stage.name] = len(genes)
        return as_whole(d_model), tuple(genes), frame

    @property
    def has_prior(self) -> bool:
        """Whether some slot says how likely its options are."""
        return any(slot.weights for _, slot in self.slots())

    def sample(self, rng: random.Random, *, uniform: bool = False) -> Decisions:
        """Draw every choice independently, by the slot's prior unless `uniform`."""
        weights = {} if uniform else {path: slot.weights for path, slot in self.slots()}
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
        from archsearch.ways import size

        return size(self)

    @property
    def varying(self) -> frozenset[tuple[str, str]]:
        """The (block, parameter) pairs that differ within the space."""
        seen: dict[tuple[str, str], set[Value]] = {}
        for _, slot in self.slots():
            for option in slot.options:
                for name, dim in option.params:
                    known = dim.options or (dim.low, dim.high)
                    seen.setdefault((option.block or "", name), set()).update(known)
        return frozenset(pair for pair, values in seen.items() if len(values) > 1)

    def slots(self) -> Iterator[tuple[str, Slot]]:
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
    return tuple(sorted(as_whole(width) for width in dim.values or ()))


def _nested(pattern: tuple[Slot, ...], path: str) -> Iterator[tuple[str, Slot]]:
    for slot in pattern:
        here = f"{path}.{slot.name}"
        yield here, slot
        for option in slot.options:
            yield from _nested(option.inner, option_path(option, here))


def sources(reads: tuple[str | int, ...], index: int, ends: Mapping[str, int]) -> tuple[int, ...]:
    """The inputs of the gene with this index; `ends` are the genes up to the end of each stage."""
    if reads == ("prev",):
        return ()
    known: dict[str | int, int] = {"prev": index, "embedding": 0}
    known |= {f"stage:{name}": end for name, end in ends.items()}
    return tuple(n if isinstance(n, int) else known[n] for n in reads)


_Reading = tuple[Gene, tuple[str | int, ...]]
"""A gene, and what its slot reads."""


def _repeats(stage: Stage, pick: Choose, shared: dict[str, Gene]) -> list[_Reading]:
    """Every pass through the slots of a stage."""
    repeats = as_whole(pick(f"{stage.name}.repeat", stage.repeat))
    order: Sequence[int] = range(repeats)
    if stage.unique and repeats:
        unique = as_whole(pick(f"{stage.name}.unique", stage.unique))
        free = 1 < unique < repeats
        scheme = pick(f"{stage.name}.scheme", stage.scheme) if free else stage.scheme.first
        order = plan(repeats, min(unique, repeats), str(scheme))
    passes: dict[int, list[_Reading]] = {}
    for own in order:
        if own not in passes:
            once = stage.choose == "once"
            path = stage.name if once else f"{stage.name}[{own}]"
            fresh = not (once and passes)
            drawn = _genes(stage.pattern, path, pick, shared) if fresh else passes[order[0]]
            passes[own] = drawn
    if not stage.unique:
        return [reading for own in order for reading in passes[own]]
    return [
        (replace(gene, share=gene.share or layer_share(stage, own, k)), reads)
        for own in order
        for k, (gene, reads) in enumerate(passes[own])
    ]


def layer_share(stage: Stage, own: int, place: int) -> str:
    """The name of the weights at one place of a repeat; no definition can have it."""
    return f"{stage.name}:{own}:{place}"


def _genes(
    pattern: tuple[Slot, ...], path: str, pick: Choose, shared: dict[str, Gene]
) -> list[_Reading]:
    """One pass through the slots of a pattern."""
    genes: list[_Reading] = []
    for slot in pattern:
        here = f"{path}.{slot.name}"
        label = pick(here, slot.dim)
        option = next(option for option in slot.options if option.label == label)
        repeats = as_whole(pick(f"{here}.repeat", slot.repeat))
        if option.block is not None and repeats:
            gene = _gene(option, here, pick, shared)
            combine = pick(f"{here}.combine", slot.combine) if len(slot.inputs) > 1 else "add"
            if kept(gene):  # a wrapper that holds nothing is no gene
                genes += [(replace(gene, combine=str(combine)), slot.inputs)] * repeats
    return genes


def _gene(option: Option, path: str, pick: Choose, shared: dict[str, Gene]) -> Gene:
    if option.share in shared:
        return shared[option.share]
    base = option_path(option, path)
    params = {name: pick(f"{base}.{name}", dim) for name, dim in option.params}
    inner = [gene for gene, _ in _genes(option.inner, base, pick, shared)]
    gene = Gene.of(option.block or "", option.share, inner, **params)
    if option.share:
        shared[option.share] = gene
    return gene


def option_path(option: Option, slot_path: str) -> str:
    """Where the parameters of an option are chosen; once for all uses of shared weights."""
    return f"define.{option.share}" if option.share else f"{slot_path}.{option.label}"

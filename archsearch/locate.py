"""Where a genome lies in a space: the answers that lead to it.

A depth-first walk over the slots of a space, from the first to the last gene. Two ways to the same
place in both, with the same weights shared so far, can only go on alike, so the second is dropped:
the time is bounded by the product of the two lengths, for members and for foreign genomes alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

from archsearch.canonical import streams
from archsearch.catalogue import block_info
from archsearch.dims import one
from archsearch.genome import FRAME
from archsearch.space import (
    Decisions,
    Option,
    SearchSpace,
    Slot,
    Stage,
    layer_share,
    option_path,
    plan,
    sources,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archsearch.dims import Dim, Value
    from archsearch.genome import Gene, Genome


_Shared = frozenset[tuple[str, str | None]]
"""Definition -> shared weights of the genome that it stands for; None if they are used once, "" if
it holds nothing."""


class _Place(NamedTuple):
    """All that decides how a walk can go on."""

    stage: int
    repeat: int
    """Repeats of the stage that are behind it."""
    slot: int
    gene: int
    began: int
    """The gene at which a stage with `choose: once` began: what its motif spells."""
    shared: _Shared
    plan: tuple[int, ...] | None = None
    """Which weights each repeat of a stage with `unique` uses."""
    here: int = 0
    """The gene at which the repeat began."""
    ends: tuple[tuple[str, int], ...] = ()
    """For each stage that a slot reads, the gene at which it ended."""
    spelled: tuple[int, ...] = ()
    """The slots that later repeats fill alike, one for each gene, where some read elsewhere."""


@dataclass(frozen=True, slots=True)
class _Walk:
    place: _Place
    answers: Decisions
    motif: tuple[tuple[Option, int], ...] = ()
    """What the slots of a stage with `choose: once` became in its first repeat."""
    read: frozenset[str] = frozenset()
    """The stages that some slot reads."""


def locate(space: SearchSpace, genome: Genome) -> Decisions | None:
    """Answers that lead to `genome`, or None if it is not in the space."""
    answers: Decisions = {}
    outer: list[tuple[str, Dim, Value]] = [
        (name, space.frame.get(name, one(FRAME[name].default)), value)
        for name, value in genome.frame.items()
    ]
    if not space.match:
        outer.append(("d_model", space.d_model, genome.d_model))
    for path, dim, value in outer:
        if path in genome.idle:
            continue
        if value not in dim:
            return None
        answers |= _answer(path, dim, value)
    found = next(_ways(space.stages, genome.genes, answers, frozenset()), None)
    if found is None:
        return None
    every: Decisions = {}

    def answer(path: str, dim: Dim) -> Value:
        """As found; what has no effect is the first that is legal."""
        every[path] = found.answers.get(path, dim.first)
        return every[path]

    space.resolve(answer)
    return every


def _ways(
    stages: tuple[Stage, ...], genes: tuple[Gene, ...], answers: Decisions, shared: _Shared
) -> Iterator[_Walk]:
    """Every walk that ends at the end of both; of two that can only go on alike, the first."""
    reads = (name for s in stages for slot in s.pattern for name in slot.inputs)
    read = frozenset(str(name).removeprefix("stage:") for name in reads)
    open_walks = [_Walk(_Place(0, 0, 0, 0, 0, shared), answers, read=read)]
    seen: set[_Place] = set()
    while open_walks:
        walk = open_walks.pop()
        if walk.place in seen:
            continue
        seen.add(walk.place)
        if walk.place.stage == len(stages):
            if walk.place.gene == len(genes):
                yield walk
            continue
        open_walks += reversed(list(_next(walk, stages[walk.place.stage], genes)))


def _next(walk: _Walk, stage: Stage, genes: tuple[Gene, ...]) -> Iterator[_Walk]:
    """Every way to take one more step: to end the stage, or to fill its next slot."""
    place, once = walk.place, stage.choose == "once"
    if stage.unique and place.plan is None:
        for order, answers in _plans(stage):
            yield replace(walk, place=place._replace(plan=order), answers=walk.answers | answers)
        return
    counts = {len(place.plan)} if place.plan is not None else set(stage.repeat.values or ())
    if place.slot == 0 and place.repeat in counts:
        ended = _answer(f"{stage.name}.repeat", stage.repeat, place.repeat)
        ends = place.ends + (((stage.name, place.gene),) if stage.name in walk.read else ())
        after = place._replace(
            stage=place.stage + 1, repeat=0, began=place.gene, plan=None, ends=ends, spelled=()
        )
        yield _Walk(after, walk.answers | ended, read=walk.read)
    if not any(isinstance(r, int) and r > place.repeat for r in counts):
        return
    if place.slot == 0:
        walk = replace(walk, place=place._replace(here=place.gene))
    if once and place.repeat:
        ways = [walk.motif]
    elif place.slot == len(stage.pattern):
        ways = [()]
    else:
        slot = stage.pattern[place.slot]
        repeats = [r for r in slot.repeat.values or () if isinstance(r, int)]
        ways = [((option, r),) for option in slot.options for r in repeats]
    for way in ways:
        walks = [walk]
        for option, times in way:
            walks = [m for w in walks for m in _fill(w, stage, option, times, genes)]
        for moved in walks:
            place = moved.place
            if place.slot == len(stage.pattern):
                place = place._replace(slot=0, repeat=walk.place.repeat + 1)
                place = place if once else place._replace(began=0)
            yield replace(moved, place=place)


def _plans(stage: Stage) -> Iterator[tuple[tuple[int, ...], Decisions]]:
    """Every order in which a stage with `unique` may use its weights, and the answers."""
    assert stage.unique is not None
    for repeats in (r for r in stage.repeat.values or () if isinstance(r, int)):
        if repeats == 0:
            yield (), {}
            continue
        for unique in (u for u in stage.unique.values or () if isinstance(u, int)):
            answers = _answer(f"{stage.name}.unique", stage.unique, unique)
            free = 1 < unique < repeats
            for scheme in (stage.scheme.values or ()) if free else (stage.scheme.first,):
                chosen = _answer(f"{stage.name}.scheme", stage.scheme, scheme) if free else {}
                yield plan(repeats, min(unique, repeats), str(scheme)), answers | chosen


def _fill(
    walk: _Walk, stage: Stage, option: Option, times: int, genes: tuple[Gene, ...]
) -> Iterator[_Walk]:
    """The walks with the next slot filled by `times` of an option; none if the genes differ."""
    place, slot = walk.place, stage.pattern[walk.place.slot]
    once = stage.choose == "once"
    own = place.plan[place.repeat] if place.plan else place.repeat
    path = f"{stage.name if once else f'{stage.name}[{own}]'}.{slot.name}"
    answers = _answer(path, slot.dim, option.label)
    answers |= _answer(f"{path}.repeat", slot.repeat, times)
    motif = (*walk.motif, (option, times)) if once and not place.repeat else walk.motif
    ways: list[_Match] = [(place.gene, place.shared, {})]
    if option.block is not None and times:
        base = option_path(option, path)
        names: list[str | None] = [option.share] * times
        if stage.unique and not option.share:
            first = place.gene - place.here
            names = [layer_share(stage, own, first + i) for i in range(times)]
        ways = [
            (gene, shared, chosen | combined)
            for gene, shared, chosen in _matches(walk, option, base, names, genes)
            for combined in _reads(slot, path, place, genes[:gene])
        ]
    alike = not place.repeat if once else place.plan is not None
    tracked = alike and any(other.inputs != ("prev",) for other in stage.pattern)
    for gene, shared, chosen in ways:
        given = answers | chosen
        if all(walk.answers.get(question, answer) == answer for question, answer in given.items()):
            # a motif makes the same choices in every repeat
            spelled = place.spelled + (place.slot,) * (tracked * (gene - place.gene))
            moved = place._replace(slot=place.slot + 1, gene=gene, shared=shared, spelled=spelled)
            yield _Walk(moved, walk.answers | given, motif, walk.read)


def _own(gene: Gene) -> dict[str, Any]:
    """What may differ between equal blocks: whose weights they share and what they read."""
    return {"share": gene.share, "inputs": gene.inputs, "combine": gene.combine}


def _reads(slot: Slot, path: str, place: _Place, genes: tuple[Gene, ...]) -> Iterator[Decisions]:
    """The answers with which the genes from the place on read what the slot reads."""
    numbers = streams(genes)
    kinds: set[Value] = set()
    for index in range(place.gene, len(genes)):
        gene = genes[index]
        try:
            wanted = {numbers[n] for n in sources(slot.inputs, index, dict(place.ends))}
        except (KeyError, IndexError):
            return
        if (gene.inputs or (numbers[index],)) != tuple(sorted(wanted or {numbers[index]})):
            return
        kinds |= {gene.combine} if len(wanted) > 1 else set()
    if len(kinds) < 2 and all(kind in slot.combine for kind in kinds):
        yield _answer(f"{path}.combine", slot.combine, kinds.pop()) if kinds else {}


_Match = tuple[int, _Shared, Decisions]
"""The gene after those that were matched, what is known of sharing, and the answers."""


def _matches(
    walk: _Walk, option: Option, base: str, names: list[str | None], genes: tuple[Gene, ...]
) -> Iterator[_Match]:
    """The ways in which an option makes the next genes, with weights of these names."""
    place, info = walk.place, block_info(option.block or "")
    free = {n: walk.answers.get(f"{base}.{n}", d.first) for n, d in option.params}
    for held in _held(option, (), base, walk.answers, place.shared) if info.wraps else ():
        # a wrapper that holds nothing is no gene; shared, it is none anywhere
        bound = held.place.shared
        if option.share is None or dict(bound).get(option.share, "") == "":
            bound |= {(option.share, "")} if option.share else set()
            yield place.gene, bound, _chosen(option, base, free) | held.answers
    if place.gene == len(genes):
        if info.joins == "next":  # only a branch that nobody reads may follow the last gene
            yield place.gene, place.shared, {}  # of which nothing is told
        return
    gene, after = genes[place.gene], place.gene + len(names)
    values, bound = _params(option, gene), place.shared
    if values is None or after > len(genes):
        return
    for name, other in zip(names, genes[place.gene : after], strict=True):
        shares = _bind(bound, name, other.share, names.count(name))
        if shares is None or replace(other, **_own(gene)) != gene:
            return
        bound = shares
    ways = [(bound, _chosen(option, base, values))]
    fresh = [name for i, name in enumerate(names) if name is None or name not in names[:i]]
    known = dict(place.shared)
    for _ in (name for name in fresh if info.wraps and name not in known):
        ways = list(_filled(ways, option, gene, base, walk.answers))
    for bound, chosen in ways:
        yield after, bound, chosen


def _filled(
    ways: list[tuple[_Shared, Decisions]], option: Option, gene: Gene, base: str, answers: Decisions
) -> Iterator[tuple[_Shared, Decisions]]:
    """The ways that go on with weights of its own for what the wrapper `gene` holds."""
    beside = block_info(gene.block).wraps == "set"
    for bound, chosen in ways:
        for inner in permutations(gene.inner) if beside else (gene.inner,):
            for held in _held(option, inner, base, answers | chosen, bound):
                if all(chosen.get(question, a) == a for question, a in held.answers.items()):
                    yield held.place.shared, chosen | held.answers


def _held(
    option: Option, inner: tuple[Gene, ...], base: str, answers: Decisions, shared: _Shared
) -> Iterator[_Walk]:
    """The ways in which what a wrapper may hold becomes `inner`."""
    stage = Stage(base, option.inner, one(1))
    known = {question: a for question, a in answers.items() if question.startswith("define.")}
    return _ways((stage,), inner, known, shared)


def _chosen(option: Option, base: str, values: dict[str, Value]) -> Decisions:
    chosen: Decisions = {}
    for name, dim in option.params:
        chosen |= _answer(f"{base}.{name}", dim, values[name])
    return chosen


def _bind(shared: _Shared, name: str | None, letter: str | None, times: int) -> _Shared | None:
    """What is known of sharing once the definition `name` stands for `letter`; None if it cannot.

    The genome names weights that are used more than once, and no others.
    """
    known = dict(shared)
    if name is None:
        return shared if letter is None else None
    if name in known:
        return shared if letter is not None and known[name] == letter else None
    if letter is None:
        return shared | {(name, None)} if times == 1 else None
    return None if letter in known.values() else shared | {(name, letter)}


def _params(option: Option, gene: Gene) -> dict[str, Value] | None:
    """Values of the option's own parameters that make it `gene`; None if there are none."""
    if option.block != gene.block:
        return None
    info, target = block_info(gene.block), dict(gene.params)
    values: dict[str, Value] = {}
    for name, dim in option.params:
        declared = info.dims[name]
        idle = declared.when and target[declared.when[0]] != declared.when[1]
        same = declared.default_from and target[name] == target[declared.default_from]
        if idle:
            values[name] = dim.first
        elif target[name] in dim:
            values[name] = target[name]
        elif same and None in dim:
            values[name] = None
        else:
            return None
    return values if info.fill(values) == gene.params else None


def _answer(path: str, dim: Dim, value: Value) -> Decisions:
    """The answer to one question; nothing where there is no choice, as it is never asked."""
    return {} if dim.count == 1 else {path: value}

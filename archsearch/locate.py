"""Where a genome lies in a space: the answers that lead to it.

A depth-first walk over the slots of a space, from the first to the last gene. Two ways to the same
place in both, with the same weights shared so far, can only go on alike, so the second is dropped:
the time is bounded by the product of the two lengths, for members and for foreign genomes alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from archsearch.catalogue import block_info
from archsearch.space import Decisions, Option, SearchSpace, Stage, option_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archsearch.dims import Dim, Value
    from archsearch.genome import Gene, Genome


_Shared = frozenset[tuple[str, str | None]]
"""Definition -> shared weights of the genome that it stands for; None if they are used once."""


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


@dataclass(frozen=True, slots=True)
class _Walk:
    place: _Place
    answers: Decisions
    motif: tuple[tuple[Option, int], ...] = ()
    """What the slots of a stage with `choose: once` became in its first repeat."""


def locate(space: SearchSpace, genome: Genome) -> Decisions | None:
    """Answers that lead to `genome`, or None if it is not in the space."""
    answers: Decisions = {}
    outer: list[tuple[str, Dim, Value]] = [
        ("norm", space.norm, genome.norm),
        ("tie_embeddings", space.tie_embeddings, genome.tie_embeddings),
    ]
    if not space.match:
        outer.append(("d_model", space.d_model, genome.d_model))
    for path, dim, value in outer:
        if value not in dim:
            return None
        answers |= _answer(path, dim, value)
    open_walks = [_Walk(_Place(0, 0, 0, 0, 0, frozenset()), answers)]
    seen: set[_Place] = set()
    while open_walks:
        walk = open_walks.pop()
        if walk.place in seen:
            continue
        seen.add(walk.place)
        if walk.place.stage == len(space.stages):
            if walk.place.gene == len(genome.genes):
                return walk.answers
            continue
        open_walks += reversed(list(_next(walk, space.stages[walk.place.stage], genome.genes)))
    return None


def _next(walk: _Walk, stage: Stage, genes: tuple[Gene, ...]) -> Iterator[_Walk]:
    """Every way to take one more step: to end the stage, or to fill its next slot."""
    place, once = walk.place, stage.choose == "once"
    if place.slot == 0 and place.repeat in stage.repeat:
        ended = _answer(f"{stage.name}.repeat", stage.repeat, place.repeat)
        after = place._replace(stage=place.stage + 1, repeat=0, began=place.gene)
        yield _Walk(after, walk.answers | ended)
    if not any(isinstance(r, int) and r > place.repeat for r in stage.repeat.values or ()):
        return
    if once and place.repeat:
        ways = [walk.motif]
    elif place.slot == len(stage.pattern):
        ways = [()]
    else:
        slot = stage.pattern[place.slot]
        repeats = [r for r in slot.repeat.values or () if isinstance(r, int)]
        ways = [((option, r),) for option in slot.options for r in repeats]
    for way in ways:
        moved: _Walk | None = walk
        for option, times in way:
            moved = moved and _fill(moved, stage, option, times, genes)
        if moved and moved.place.slot == len(stage.pattern):
            place = moved.place._replace(slot=0, repeat=walk.place.repeat + 1)
            moved = replace(moved, place=place if once else place._replace(began=0))
        if moved:
            yield moved


def _fill(
    walk: _Walk, stage: Stage, option: Option, times: int, genes: tuple[Gene, ...]
) -> _Walk | None:
    """The walk with its next slot filled by `times` of an option; None if the genes differ."""
    place, slot = walk.place, stage.pattern[walk.place.slot]
    once = stage.choose == "once"
    path = f"{stage.name if once else f'{stage.name}[{place.repeat}]'}.{slot.name}"
    answers = _answer(path, slot.dim, option.label)
    answers |= _answer(f"{path}.repeat", slot.repeat, times)
    gene, shared = place.gene, place.shared
    if option.block is not None and times:
        base = option_path(option, path)
        if gene == len(genes):
            if block_info(option.block).joins != "next":
                return None  # only a branch that nobody reads may follow the last gene
            values = {n: walk.answers.get(f"{base}.{n}", d.first) for n, d in option.params}
        elif genes[gene : gene + times] != genes[gene : gene + 1] * times:
            return None
        else:
            bound = _bind(shared, option.share, genes[gene].share, times)
            fitting = _params(option, genes[gene])
            if bound is None or fitting is None:
                return None
            gene, shared, values = gene + times, bound, fitting
        for name, dim in option.params:
            answers |= _answer(f"{base}.{name}", dim, values[name])
    if any(walk.answers.get(question, answer) != answer for question, answer in answers.items()):
        return None  # a motif makes the same choices in every repeat
    moved = place._replace(slot=place.slot + 1, gene=gene, shared=shared)
    motif = (*walk.motif, (option, times)) if once and not place.repeat else walk.motif
    return _Walk(moved, walk.answers | answers, motif)


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

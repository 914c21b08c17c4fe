"""One-edit ablations: which part of a genome earns its place?

The genome and each of its edits are trained anew on the same tasks with seeds that the search has
not used. Starts and rows depend on the seed alone, so the differences are paired.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from archsearch.catalogue import block_info
from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome
from archsearch.rules import cached_cost
from archsearch.search.finals import interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Edit:
    """A genome that differs in one thing from another."""

    what: str
    """e.g. `3: mamba2 removed`; places count from 1."""
    genome: Genome


def edits(genome: Genome, others: Iterable[Genome] = ()) -> list[Edit]:
    """Every slot removed, replaced, moved, opened and unshared; equal results once.

    Args:
        genome: What is edited.
        others: Genomes, best first. A branch is replaced by the first branch of each other block
            of its kind that stands in one of them.
    """
    seen, found = {genome.key}, list[Edit]()
    for what, genes in _edited(genome, _known(others)):
        try:
            edited = replace(genome, genes=tuple(genes))
        except SpaceError:  # nothing is left, or what it reads is gone
            continue
        if edited.key not in seen:
            seen.add(edited.key)
            found.append(Edit(what, edited))
    return found


def _known(others: Iterable[Genome]) -> dict[str, Gene]:
    known: dict[str, Gene] = {}
    for other in others:
        for gene in other.genes:
            known.setdefault(gene.block, replace(gene, share=None, inputs=(), combine="add"))
    return known


def _edited(genome: Genome, known: dict[str, Gene]) -> Iterator[tuple[str, list[Gene]]]:
    genes = list(genome.genes)
    for i, gene in enumerate(genes):
        here, before, after = f"{i + 1}: {gene.block}", genes[:i], genes[i + 1 :]
        wired = partial(replace, inputs=gene.inputs, combine=gene.combine)
        if not any(later.inputs for later in after):  # they count the streams before them
            yield f"{here} removed", [*before, *after]
        kind = block_info(gene.block).kind
        for block, other in known.items():
            if block != gene.block and block_info(block).kind == kind:
                yield f"{here} replaced by {block}", [*before, wired(other), *after]
        if len(gene.inner) == 1:
            yield f"{here} replaced by what it holds", [*before, wired(gene.inner[0]), *after]
        if after and not gene.inputs and not after[0].inputs:
            moved = [*before, after[0], gene, *after[1:]]
            yield f"{here} moved behind {after[0].block}", moved
    for share in dict.fromkeys(gene.share for gene in genes if gene.share):
        blocks = next(gene.block for gene in genes if gene.share == share)
        alone = [replace(g, share=None) if g.share == share else g for g in genes]
        yield f"*{share}: {blocks} unshared", alone


@dataclass(frozen=True, slots=True)
class Change:
    """What an edit does to the score."""

    edit: Edit
    params: int
    """Parameters more than the genome has."""
    mean: float
    """Change of the score, the mean over seeds."""
    spread: float
    """Half of the 95 % interval (Student) of the mean."""

    @property
    def verdict(self) -> str:
        """What can be said of it."""
        if self.mean + self.spread < 0:
            return "worse"
        return "better" if self.mean - self.spread > 0 else "not distinguishable"


def changes(
    genome: Genome,
    edited: Sequence[Edit],
    scores: Mapping[str, Sequence[float]],
    context: int,
) -> list[Change]:
    """The changes of the score, most harmful first, from the scores of each genome by key."""
    usual = scores[genome.key]
    found = []
    for edit in edited:
        pairs = zip(scores[edit.genome.key], usual, strict=True)
        mean, spread = interval([one - other for one, other in pairs])
        more = cached_cost(edit.genome, context).params - cached_cost(genome, context).params
        found.append(Change(edit, more, mean, spread))
    return sorted(found, key=lambda change: change.mean)

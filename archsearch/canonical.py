"""The canonical form of a genome: equal models are equal genes, whatever they were written as.

What nobody reads is dropped, the streams that genes read are counted anew, what stands side by side
is put in order, and shared weights are named A, B, ... in order of first use.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from archsearch.catalogue import block_info
from archsearch.errors import SpaceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from archsearch.genome import Gene


def nested(genes: Sequence[Gene]) -> Iterator[Gene]:
    """The genes in order, each wrapper before what it holds."""
    for gene in genes:
        yield gene
        yield from nested(gene.inner)


def sharing(genes: Sequence[Gene]) -> dict[str, list[Gene]]:
    """The uses of each set of shared weights; what shared weights hold is used once."""
    members: dict[str, list[Gene]] = {}

    def visit(gene: Gene) -> None:
        known = gene.share in members
        if gene.share is not None:
            members.setdefault(gene.share, []).append(gene)
        if not known:
            for held in gene.inner:
                visit(held)

    for gene in genes:
        visit(gene)
    return members


def kept(gene: Gene) -> Gene | None:
    """The gene without what nobody reads within it; None for a wrapper that holds nothing."""
    info = block_info(gene.block)
    if info.wraps is None:
        return gene
    for held in gene.inner:
        if held.inputs:
            raise SpaceError(f"what '{gene.block}' holds can only read the stream before it")
        if info.wraps == "set" and block_info(held.block).joins == "next":
            why = "whose output goes to the next block alone"
            raise SpaceError(f"'{gene.block}' cannot hold '{held.block}', {why}")
    inner = _read([left for held in gene.inner if (left := kept(held))])
    return replace(gene, inner=tuple(inner)) if inner else None


def _read(genes: list[Gene]) -> list[Gene]:
    """Without the branches at the end that nobody reads."""
    while genes and block_info(genes[-1].block).joins == "next":
        genes = genes[:-1]
    return genes


def wired(genes: Sequence[Gene]) -> tuple[Gene, ...]:
    """Without what nobody reads, the inputs of each gene in order and counted anew."""
    done: list[Gene] = []
    left = [0]  # of the first n genes
    for index, gene in enumerate(genes):
        if any(type(n) is not int or not 0 <= n <= index for n in gene.inputs):
            what = ", ".join(map(str, gene.inputs))
            raise SpaceError(f"gene {index + 1} cannot read {what}; legal: 0 to {index}")
        left_of_it = kept(gene)
        if left_of_it:
            numbers = streams(done)
            reads = sorted({numbers[left[n]] for n in gene.inputs})
            inputs = () if reads == [numbers[-1]] else tuple(reads)
            combine = gene.combine if len(inputs) > 1 else "add"
            done.append(replace(left_of_it, inputs=inputs, combine=combine))
        left.append(len(done))
    return tuple(_read(done))


def streams(genes: Sequence[Gene]) -> list[int]:
    """For each number of genes, the last of them that changed the stream; 0 for none."""
    numbers = [0]
    for n, gene in enumerate(genes, 1):
        joins = block_info(gene.block).joins == "stream"
        numbers.append(n if joins else numbers[-1])
    return numbers


def named(genes: Sequence[Gene]) -> tuple[Gene, ...]:
    """With shared weights named A, B, ... in order of first use, and those used once unnamed.

    What stands side by side is put in an order that neither the names given to shared weights nor
    the order in which it came change.
    """
    members = sharing(genes)
    alone = {share for share, uses in members.items() if len(uses) == 1}
    genes = [_without(gene, alone) for gene in genes]
    places: dict[str, list[str]] = {}
    for index, gene in enumerate(genes):
        _note(gene, str(index), places)
    where = {share: " ".join(sorted(found)) for share, found in places.items()}
    names: dict[str, str] = {}
    genes = [_ordered(gene, where, names) for gene in genes]
    given = {name: share for share, name in names.items()}
    for name, uses in sharing(genes).items():
        if len({replace(use, inputs=(), combine="add") for use in uses}) > 1:
            raise SpaceError(f"the blocks that share the weights '{given[name]}' differ")
    return tuple(genes)


def _without(gene: Gene, shares: set[str]) -> Gene:
    """The gene with these sets of weights as its own."""
    inner = tuple(_without(held, shares) for held in gene.inner)
    return replace(gene, share=None if gene.share in shares else gene.share, inner=inner)


def _words(gene: Gene, names: Mapping[str, str]) -> str:
    """The gene in words that no order side by side changes; of shared weights no more than this."""
    inner = [_words(held, names) for held in gene.inner]
    inner = sorted(inner) if block_info(gene.block).wraps == "set" else inner
    share = gene.share and names.get(gene.share, "~")
    return json.dumps([gene.block, gene.params, share, inner])


def _note(gene: Gene, place: str, places: dict[str, list[str]]) -> None:
    """Note where each set of shared weights is used."""
    if gene.share:
        places.setdefault(gene.share, []).append(place)
    for index, held in enumerate(gene.inner):
        beside = block_info(gene.block).wraps == "set"
        _note(held, f"{place}.{_words(held, {}) if beside else index}", places)


def _ordered(gene: Gene, places: Mapping[str, str], names: dict[str, str]) -> Gene:
    """The gene with all that stands side by side in order, and shared weights named as they come.

    What goes first is told by the blocks, then by where else their weights are used, then by the
    names that these have got so far.
    """
    share = gene.share and names.setdefault(gene.share, _letter(len(names)))
    inner: list[Gene] = []
    for equals in _groups(gene, places):
        left, differ = list(equals), len(set(equals)) > 1
        while left:
            first = min(left, key=lambda held: _words(held, names)) if differ else left[0]
            left.remove(first)
            inner.append(_ordered(first, places, names))
    return replace(gene, share=share, inner=tuple(inner))


def _groups(gene: Gene, places: Mapping[str, str]) -> list[list[Gene]]:
    """What the gene holds, in order; together what stands side by side and differs in names."""
    if block_info(gene.block).wraps != "set":
        return [[held] for held in gene.inner]
    groups: dict[tuple[str, str], list[Gene]] = {}
    for held in gene.inner:
        groups.setdefault((_words(held, {}), _words(held, places)), []).append(held)
    return [groups[key] for key in sorted(groups)]


def _letter(index: int) -> str:
    rest, last = divmod(index, 26)
    return (_letter(rest - 1) if rest else "") + chr(ord("A") + last)

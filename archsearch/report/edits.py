"""What turns one genome into another, in words."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from archsearch.catalogue import block_info
from archsearch.dims import word

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from archsearch.dims import Value
    from archsearch.genome import Gene, Genome

Pair = tuple[int | None, int | None]
"""The places of a branch in the two genomes, from 0; None where one does not have it."""
Varying = Collection[tuple[str, str]]
FOREIGN = 2.5
"""Cost of a branch in the place of one of another kind; dropping one and adding the other is 2."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One thing that differs."""

    places: tuple[str, ...]
    """Branches of the first genome, counted from 1; empty for what stands around the stack."""
    what: str
    at: float = 0.0
    """Where it stands in a list of several."""

    def __str__(self) -> str:
        if not self.places:
            return self.what
        *most, last = self.places
        return f"{', '.join(most)} and {last}: {self.what}" if most else f"{last}: {self.what}"


def edits(before: Genome, after: Genome, varying: Varying) -> list[str]:
    """What turns `before` into `after`; empty for equal genomes, and for no others.

    Args:
        before: Its branches are counted from 1.
        after: What it becomes.
        varying: The parameters that are named when a branch comes new.
    """
    found = [
        Edit((), f"{name} {word(old)} -> {word(new)}")
        for name, old, new in _around(before, after)
        if old != new
    ]
    found += _of_stacks(before.genes, after.genes, varying)
    if not found and before != after:
        found.append(Edit((), "weights are shared in other places"))
    return [str(edit) for edit in _gathered(found)]


def _around(before: Genome, after: Genome) -> Iterator[tuple[str, Value, Value]]:
    yield "width", before.d_model, after.d_model
    for name, old in before.frame.items():
        yield name, old, after.frame[name]


def _gathered(found: Sequence[Edit]) -> list[Edit]:
    """The same thing in several places said once."""
    places: dict[str, tuple[str, ...]] = {}
    for edit in sorted(found, key=lambda edit: edit.at):
        places[edit.what] = places.get(edit.what, ()) + edit.places
    return [Edit(at, what) for what, at in places.items()]


def _of_stacks(
    before: Sequence[Gene], after: Sequence[Gene], varying: Varying, within: str = ""
) -> list[Edit]:
    pairs = _aligned(before, after)
    streams = _streams(pairs, len(after))
    removed = [i for i, j in pairs if i is not None and j is None]
    found, come = list[Edit](), dict[int, list[str]]()
    for i, j in pairs:
        if i is not None and j is not None:
            for edit in _of_genes(before[i], after[j], f"{within}{i + 1}", streams, varying):
                found.append(replace(edit, at=i + 1))
    for j, behind in _added(pairs):
        moved = next((i for i in removed if _bare(before[i]) == _bare(after[j])), None)
        if moved is None:
            come.setdefault(behind, []).append(_name(after[j], varying))
        else:
            removed.remove(moved)
            to = f"behind {within}{behind}" if behind else "to the front"
            what = f"{after[j].block} moved {to}"
            found.append(Edit((f"{within}{moved + 1}",), what, moved + 1))
    for behind, names in come.items():
        where = f"behind {within}{behind}" if behind else "in front"
        found.append(Edit((where,), f"{', '.join(names)} added", behind + 0.5))
    for i in removed:
        found.append(Edit((f"{within}{i + 1}",), f"{before[i].block} removed", i + 1))
    return found


def _added(pairs: Sequence[Pair]) -> Iterator[tuple[int, int]]:
    """The branches that come new, each with the number of the old one before it."""
    behind = 0
    for i, j in pairs:
        if i is not None:
            behind = i + 1
        elif j is not None:
            yield j, behind


def _streams(pairs: Sequence[Pair], last: int) -> dict[int, int]:
    """Where the streams of the first genome are in the second: n is the one after n branches."""
    found, ahead = {0: 0}, 0
    for i, j in pairs:
        ahead = ahead if j is None else j + 1
        if i is not None:
            found[i + 1] = min(ahead, last)
    return found


def _of_genes(
    old: Gene, new: Gene, place: str, streams: dict[int, int], varying: Varying
) -> Iterator[Edit]:
    """What differs between two branches in the same place."""
    if old.block != new.block:
        yield Edit((place,), f"{old.block} replaced by {_name(new, varying)}")
    else:
        changed = zip(old.params, new.params, strict=True)
        told = [f"{k} {word(a)} -> {word(b)}" for (k, a), (_, b) in changed if a != b]
        if told:
            yield Edit((place,), f"{old.block} {', '.join(told)}")
        yield from _of_stacks(old.inner, new.inner, varying, f"{place}.")
    if old.block == new.block and bool(old.share) != bool(new.share):
        yield Edit((place,), "weights shared" if new.share else "weights of its own")
    if tuple(streams[n] for n in old.inputs) != new.inputs or old.combine != new.combine:
        reads = " and ".join("the embedding" if n == 0 else f"branch {n}" for n in new.inputs)
        how = f" ({new.combine})" if len(new.inputs) > 1 else ""
        yield Edit((place,), f"reads {reads or 'the stream'}{how}")


def _name(gene: Gene, varying: Varying) -> str:
    shown = [f"{k} {word(v)}" for k, v in gene.changed.items() if (gene.block, k) in varying]
    shown += ["weights shared"] * bool(gene.share)
    return gene.block + (f" ({', '.join(shown)})" if shown else "")


def _bare(gene: Gene) -> Gene:
    """A branch without what depends on those around it."""
    return replace(gene, share=None, inputs=(), combine="add")


def _aligned(before: Sequence[Gene], after: Sequence[Gene]) -> list[Pair]:
    """The cheapest way to lay two stacks side by side (Needleman and Wunsch 1970)."""
    rows, columns = len(before) + 1, len(after) + 1
    kinds = {g.block: block_info(g.block).kind for g in itertools.chain(before, after)}
    old, new = [_bare(gene) for gene in before], [_bare(gene) for gene in after]
    cost = [[float(i + j) for j in range(columns)] for i in range(rows)]
    for i, j in itertools.product(range(1, rows), range(1, columns)):
        swap = cost[i - 1][j - 1] + _swap(old[i - 1], new[j - 1], kinds)
        cost[i][j] = min(swap, cost[i - 1][j] + 1, cost[i][j - 1] + 1)
    pairs, i, j = list[Pair](), rows - 1, columns - 1
    while i or j:
        here = cost[i][j]
        if i and j and here == cost[i - 1][j - 1] + _swap(old[i - 1], new[j - 1], kinds):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and here == cost[i - 1][j] + 1:
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]


def _swap(old: Gene, new: Gene, kinds: dict[str, str]) -> float:
    if old == new:
        return 0.0
    if old.block == new.block:
        return 0.5
    return 1.0 if kinds[old.block] == kinds[new.block] else FOREIGN

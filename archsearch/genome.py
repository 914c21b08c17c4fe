"""The genome: one resolved architecture, everything needed to rebuild a model but its weights.

A genome is the unrolled list of its residual branches, so its canonical form needs no rules for
stages and repeats: two files that unroll to the same branches are the same genome.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archsearch.catalogue import block_info
from archsearch.dims import Value, word
from archsearch.errors import SpaceError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

FORMAT = 1
NORMS = ("rms", "layer")
MOST_REPEATS = 64
"""Most repeats of a stage or a slot in a space file."""
MOST_GENES = 1024
"""Most branches of a genome."""


@dataclass(frozen=True, slots=True)
class Gene:
    """One residual branch: a block with all of its parameters.

    Genes with the same `share` use one set of weights.
    """

    block: str
    params: tuple[tuple[str, Value], ...] = ()
    share: str | None = None

    @classmethod
    def of(cls, block: str, share: str | None = None, **params: Value) -> Gene:
        """A gene in canonical form, its parameters checked and completed.

        Raises:
            SpaceError: if the block, a parameter or a value does not exist.
        """
        return cls(block, block_info(block).fill(params), share)

    @property
    def changed(self) -> dict[str, Value]:
        """The parameters that differ from what they are when nobody says."""
        given = dict(self.params)
        info = block_info(self.block)

        def default(name: str) -> Value:
            return dict(info.fill({k: v for k, v in given.items() if k != name}))[name]

        return {name: value for name, value in given.items() if value != default(name)}


@dataclass(frozen=True, slots=True)
class Genome:
    """One architecture in canonical form.

    Creating one drops every branch whose output nobody reads, forgets the sharing of weights that
    are used once and renames shared weights A, B, ... in order of first use. Hence equal models
    are equal genomes, whatever they were written as.

    Raises:
        SpaceError: if nothing is left or too much, genes that share weights differ, or there is no
            such width or norm.
    """

    d_model: int
    genes: tuple[Gene, ...]
    norm: str = "rms"
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        genes = list(self.genes)
        while genes and block_info(genes[-1].block).joins == "next":
            genes.pop()
        if not genes:
            raise SpaceError("a genome needs at least one block that is not 'none'")
        if len(genes) > MOST_GENES:
            raise SpaceError(f"a genome of {len(genes)} blocks; at most {MOST_GENES}")
        if type(self.d_model) is not int or self.d_model < 1:
            raise SpaceError(f"d_model cannot be {word(self.d_model)}; it is a whole number from 1")
        if self.norm not in NORMS:
            raise SpaceError(f"unknown norm '{self.norm}'; legal: {', '.join(NORMS)}")
        uses: dict[str, list[Gene]] = {}
        for gene in genes:
            if gene.share is not None:
                uses.setdefault(gene.share, []).append(gene)
        for share, members in uses.items():
            if len(set(members)) > 1:
                raise SpaceError(f"the blocks that share the weights '{share}' differ")
        kept = [share for share, members in uses.items() if len(members) > 1]
        names = {share: _letter(i) for i, share in enumerate(kept)}
        canonical = tuple(
            dataclasses.replace(gene, share=names.get(gene.share or "")) for gene in genes
        )
        object.__setattr__(self, "genes", canonical)

    @property
    def key(self) -> str:
        """Stable identity: equal models have equal keys on every machine."""
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).digest()
        return f"g{FORMAT}-{base64.b32encode(digest)[:10].decode().lower()}"

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Genome.from_json` is the inverse."""
        genes = [
            {"block": g.block, "params": dict(g.params)} | ({"share": g.share} if g.share else {})
            for g in self.genes
        ]
        return {
            "format": FORMAT,
            "d_model": self.d_model,
            "norm": self.norm,
            "tie_embeddings": self.tie_embeddings,
            "genes": genes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Genome:
        """Rebuild a genome.

        Raises:
            SpaceError: if the data are from a newer format or name what does not exist.
        """
        if data.get("format") != FORMAT:
            raise SpaceError(
                f"genome format {data.get('format')} is not format {FORMAT}; "
                "it was written by another version of archsearch"
            )
        genes = tuple(Gene.of(g["block"], g.get("share"), **g["params"]) for g in data["genes"])
        return cls(data["d_model"], genes, data["norm"], data["tie_embeddings"])

    def to_space(self) -> dict[str, Any]:
        """The genome as the plain data of a space file with this one member."""
        define = {
            g.share: {"shared": True, g.block: _spelled(g.params)} for g in self.genes if g.share
        }
        stack = []
        for count, motif in runs(self.genes, MOST_REPEATS):
            pattern = [
                {
                    block_info(g.block).kind: {"use": g.share}
                    if g.share
                    else {g.block: _spelled(g.params)}
                }
                for g in motif
            ]
            stack.append(
                {"repeat": count, "pattern": pattern} if count > 1 else {"pattern": pattern}
            )
        model = {
            "d_model": self.d_model,
            "norm": self.norm,
            "tie_embeddings": self.tie_embeddings,
            "stack": stack,
        }
        space: dict[str, Any] = {"version": 1, "name": self.key}
        return space | ({"define": define} if define else {}) | {"model": model}

    def text(self, varying: Collection[tuple[str, str]] | None = None) -> str:
        """The genome on one line: `2x(mamba2 swiglu) attention*A`.

        `*A` marks shared weights. Parameters are shown where they differ from their default; with
        `varying`, only those whose (block, parameter) is among them.
        """
        motifs = []
        for count, motif in runs(self.genes):
            inner = " ".join(_gene_text(g, varying) for g in motif)
            single = len(motif) == 1
            motifs.append(
                inner if count == 1 else f"{count}x{inner}" if single else f"{count}x({inner})"
            )
        return " ".join(motifs)


def runs(genes: Sequence[Gene], most: int = MOST_GENES) -> list[tuple[int, tuple[Gene, ...]]]:
    """The genes as (count, motif) pairs, the longest repetition first at every place.

    A count is at most `most`.
    """
    found: list[tuple[int, tuple[Gene, ...]]] = []
    kinds: dict[Gene, int] = {}
    numbers = [kinds.setdefault(gene, len(kinds)) for gene in genes]
    at = 0
    while at < len(genes):
        count, length = _longest(numbers[at:], most)
        motif = tuple(genes[at : at + length])
        if count == 1 and found and found[-1][0] == 1:
            motif = found.pop()[1] + motif
        found.append((count, motif))
        at += count * length
    return found


def _longest(numbers: list[int], most: int) -> tuple[int, int]:
    """Count and length of the longest repetition at the start; the shortest motif among equals."""
    best = (1, 1)
    for length in range(1, len(numbers) // 2 + 1):
        if numbers[0] != numbers[length]:
            continue
        motif, count = numbers[:length], 1
        while count < most and numbers[count * length : (count + 1) * length] == motif:
            count += 1
        if count > 1 and count * length > best[0] * best[1]:
            best = (count, length)
    return best


def _gene_text(gene: Gene, varying: Collection[tuple[str, str]] | None) -> str:
    shown = [
        f"{name}={word(value)}"
        for name, value in gene.changed.items()
        if varying is None or (gene.block, name) in varying
    ]
    share = f"*{gene.share}" if gene.share else ""
    return f"{gene.block}{share}" + (f"[{','.join(shown)}]" if shown else "")


def _spelled(params: tuple[tuple[str, Value], ...]) -> dict[str, Value]:
    return {name: "none" if value is None else value for name, value in params}


def _letter(index: int) -> str:
    rest, last = divmod(index, 26)
    return (_letter(rest - 1) if rest else "") + chr(ord("A") + last)

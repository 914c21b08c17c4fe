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

from archsearch.canonical import named, nested, wired
from archsearch.catalogue import block_info
from archsearch.dims import Dim, Value, word
from archsearch.errors import SpaceError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

FORMAT = 1
COMBINE = Dim(options=("add", "concat", "gate"), default="add")
"""add: the sum. concat: a matrix from all channels of all inputs to the width. gate: the sum, each
channel with a learned weight from 0 to 1."""
FRAME: Mapping[str, Dim] = {
    "norm": Dim(options=("rms", "layer"), default="rms"),
    "norm_place": Dim(options=("pre", "sandwich", "post"), default="pre"),
    "tie_embeddings": Dim(options=(False, True), default=False),
    "embedding_rank": Dim(low=1, high=65_536, step=1, optional=True, default=None),
    "soft_cap": Dim(low=1.0, high=1e4, optional=True, default=None),
    "pause_tokens": Dim(low=0, high=64, step=1, default=0),
    "layer_dropout": Dim(low=0.0, high=0.9, default=0.0),
    "exit_loss": Dim(low=0.0, high=10.0, default=0.0),
}
"""What stands around the stack, see the fields of `Genome`."""
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
    inner: tuple[Gene, ...] = ()
    """The branches that a wrapper holds."""
    inputs: tuple[int, ...] = ()
    """The streams that it reads: n is the one after the n-th gene, 0 the embedding. None: the last
    one. Whatever it reads, it adds to the last one."""
    combine: str = "add"
    """How several inputs become one, see `COMBINE`."""

    @classmethod
    def of(
        cls, block: str, share: str | None = None, of: Sequence[Gene] = (), **params: Value
    ) -> Gene:
        """A gene in canonical form, its parameters checked and completed.

        Raises:
            SpaceError: if the block, a parameter or a value does not exist, or the block can or
                must not hold others.
        """
        info = block_info(block)
        if of and info.wraps is None:
            raise SpaceError(f"block '{block}' holds no other blocks")
        return cls(block, info.fill(params), share, tuple(of))

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

    Creating one drops every branch whose output nobody reads and every wrapper that holds nothing,
    forgets the sharing of weights that are used once and what has no effect around the stack, and
    renames shared weights A, B, ... in order of first use. Hence equal models are equal genomes,
    whatever they were written as.

    Raises:
        SpaceError: if nothing is left or too much, genes that share weights differ, or a value is
            not legal.
    """

    d_model: int
    genes: tuple[Gene, ...]
    norm: str = "rms"
    """Kind of normalisation: of each branch, and before the readout."""
    tie_embeddings: bool = False
    """Whether input and output embeddings are one matrix."""
    norm_place: str = "pre"
    """pre: x + f(norm(x)). sandwich: x + norm(f(norm(x))). post: norm(x + f(x))."""
    embedding_rank: int | None = None
    """Width of factorised embeddings (ALBERT, arXiv 1909.11942, section 3.1)."""
    soft_cap: float | None = None
    """Logits become cap * tanh(logits / cap) (Gemma 2, arXiv 2408.00118)."""
    pause_tokens: int = 0
    """Learned tokens put after each token; the logits are read at the last (cf. 2310.02226)."""
    layer_dropout: float = 0.0
    """Chance that training skips the last branch; less for earlier ones (LayerSkip 2404.16710)."""
    exit_loss: float = 0.0
    """Weight of the losses of early exits in training, e_scale in LayerSkip."""

    def __post_init__(self) -> None:
        genes = wired(self.genes)
        if not genes:
            raise SpaceError("a genome needs at least one block that is not 'none'")
        count = sum(1 for _ in nested(genes))
        if count > MOST_GENES:
            raise SpaceError(f"a genome of {count} blocks; at most {MOST_GENES}")
        if type(self.d_model) is not int or self.d_model < 1:
            raise SpaceError(f"d_model cannot be {word(self.d_model)}; it is a whole number from 1")
        object.__setattr__(self, "genes", named(genes))
        for name, dim in FRAME.items():
            value = getattr(self, name)
            if value not in dim:
                raise SpaceError(f"{name} cannot be {word(value)}; legal: {dim.legal}")
            object.__setattr__(self, name, dim.default if name in self.idle else dim.cast(value))

    @property
    def branches(self) -> tuple[Gene, ...]:
        """Every branch, those within wrappers in the place of the wrapper."""
        return tuple(gene for gene in nested(self.genes) if not gene.inner)

    @property
    def idle(self) -> frozenset[str]:
        """What has no effect around the stack.

        One branch is never dropped nor left early; where no block is normalised by the model, there
        is no place of a norm.
        """
        joined = sum(block_info(gene.block).joins == "stream" for gene in self.genes)
        alone = {"layer_dropout": len(self.genes), "exit_loss": joined}
        idle = {name for name, count in alone.items() if count == 1}
        if not any(block_info(gene.block).prenorm for gene in nested(self.genes)):
            idle.add("norm_place")
        return frozenset(idle)

    @property
    def bidirectional(self) -> bool:
        """Whether some block looks ahead always, so that the model cannot decode."""
        return any(block_info(gene.block).bidirectional for gene in nested(self.genes))

    @property
    def frame(self) -> dict[str, Value]:
        """What stands around the stack, by name."""
        return {name: getattr(self, name) for name in FRAME}

    @property
    def key(self) -> str:
        """Stable identity: equal models have equal keys on every machine."""
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).digest()
        return f"g{FORMAT}-{base64.b32encode(digest)[:10].decode().lower()}"

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Genome.from_json` is the inverse."""
        always = ("norm", "tie_embeddings")
        return {
            "format": FORMAT,
            "d_model": self.d_model,
            **{k: v for k, v in self.frame.items() if k in always or v != FRAME[k].default},
            "genes": [_gene_json(gene) for gene in self.genes],
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
        genes = tuple(_gene_from(gene) for gene in data["genes"])
        return cls(data["d_model"], genes, **{k: data[k] for k in FRAME if k in data})

    def to_space(self) -> dict[str, Any]:
        """The genome as the plain data of a space file with this one member."""
        define = {g.share: {"shared": True, **_body(g)} for g in nested(self.genes) if g.share}
        stack = []
        for count, motif in runs(self.genes, MOST_REPEATS):
            pattern = [_slot(gene) for gene in motif]
            stack.append(
                {"repeat": count, "pattern": pattern} if count > 1 else {"pattern": pattern}
            )
        changed = {k: _plain(v) for k, v in self.frame.items() if v != FRAME[k].default}
        if self.bidirectional:
            changed["causal"] = False
        model = {"d_model": self.d_model, **changed, "stack": stack}
        space: dict[str, Any] = {"version": 1, "name": self.key}
        return space | ({"define": define} if define else {}) | {"model": model}

    def text(self, varying: Collection[tuple[str, str]] | None = None) -> str:
        """The genome on one line: `2x(mamba2 swiglu) attention*A`.

        `*A` marks shared weights. Parameters are shown where they differ from their default; with
        `varying`, only those whose (block, parameter) is among them.
        """
        return _text(self.genes, varying)


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


def _gene_json(gene: Gene) -> dict[str, Any]:
    data: dict[str, Any] = {"block": gene.block, "params": dict(gene.params)}
    if gene.share:
        data["share"] = gene.share
    if gene.inner:
        data["inner"] = [_gene_json(g) for g in gene.inner]
    if gene.inputs:
        data |= {"inputs": list(gene.inputs), "combine": gene.combine}
    return data


def _gene_from(data: Mapping[str, Any]) -> Gene:
    inner = [_gene_from(g) for g in data.get("inner", ())]
    gene = Gene.of(data["block"], data.get("share"), inner, **data["params"])
    if "inputs" in data:
        return dataclasses.replace(gene, inputs=tuple(data["inputs"]), combine=data["combine"])
    return gene


def _slot(gene: Gene) -> dict[str, Any]:
    """The slot of a space file in which nothing but this gene can stand."""
    what: dict[str, Any] = {"use": gene.share} if gene.share else _body(gene)
    slot: dict[str, Any] = {block_info(gene.block).kind: what}
    if gene.inputs:
        slot["inputs"] = list(gene.inputs)
    if gene.combine != "add":
        slot["combine"] = gene.combine
    return slot


def _body(gene: Gene) -> dict[str, Any]:
    params: dict[str, Any] = {name: _plain(value) for name, value in gene.params}
    return {gene.block: params | ({"of": [_slot(g) for g in gene.inner]} if gene.inner else {})}


def _text(genes: Sequence[Gene], varying: Collection[tuple[str, str]] | None) -> str:
    motifs = []
    for count, motif in runs(genes):
        inner = " ".join(_gene_text(g, varying) for g in motif)
        single = len(motif) == 1
        motifs.append(
            inner if count == 1 else f"{count}x{inner}" if single else f"{count}x({inner})"
        )
    return " ".join(motifs)


def _gene_text(gene: Gene, varying: Collection[tuple[str, str]] | None) -> str:
    shown = [
        f"{name}={word(value)}"
        for name, value in gene.changed.items()
        if varying is None or (gene.block, name) in varying
    ]
    share = f"*{gene.share}" if gene.share else ""
    held = f"({_text(gene.inner, varying)})" if gene.inner else ""
    reads = f"<{gene.combine}:{','.join(map(str, gene.inputs))}>" if gene.inputs else ""
    return f"{gene.block}{share}" + (f"[{','.join(shown)}]" if shown else "") + held + reads


def _plain(value: Value) -> Value:
    return "none" if value is None else value

"""Random genomes and random small spaces, and the many ways in which one genome can be written."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st

from archsearch.catalogue import block_info
from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome
from archsearch.space_yaml import Experiment, parse

VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "attention": {
        "heads": (1, 2, 4), "kv_heads": (None, 1), "pos": ("rope", "none"),
        "theta": (10_000.0, 100.0, 500_000.0), "qk_norm": (False, True),
        "qkv_bias": (False, True), "window": (None, 3, 5), "rotary": (1.0, 0.5),
    },
    "mamba2": {"d_state": (4, 8, 64), "head_dim": (4, 8), "expand": (1, 2), "conv": (1, 2, 4),
               "neg_eigval": (False, True)},
    "shared_attention": {
        "heads": (2, 4), "mult": (1, 2), "pos": ("none", "rope"), "theta": (10_000.0, 100.0),
        "lora_rank": (0, 2), "qkv_lora_rank": (0, 2),
    },
    "swiglu": {
        "mult": (1, 2, 3), "act": ("silu", "gelu", "relu2"), "grid": (12,), "groups": (8,),
    },
}  # fmt: skip
"""For each block, values that can be built at every width of `WIDTHS` in every combination."""
WIDTHS = (16, 32)
NEXT = "shared_attention"
"""The block whose output goes to the next block alone."""


def parsed(data: dict[str, Any]) -> Experiment:
    """The experiment that plain data describe."""
    return parse(yaml.safe_dump(data, sort_keys=False))


@st.composite
def params(draw: st.DrawFn, block: str) -> dict[str, Any]:
    """Some parameters of a block; those left out keep their defaults."""
    given = {name: draw(st.sampled_from(v)) for name, v in VALUES[block].items()}
    kept = {name for name in given if draw(st.booleans())}
    if block == "mamba2":
        kept.add("head_dim")  # the default head is wider than the smallest width
    return {name: value for name, value in given.items() if name in kept}


@st.composite
def genes(draw: st.DrawFn, share: str | None = None) -> Gene:
    """One branch."""
    block = draw(st.sampled_from(sorted(VALUES)))
    return Gene.of(block, share, **draw(params(block)))


@st.composite
def genomes(draw: st.DrawFn, most: int = 6) -> Genome:
    """Branches of which some repeat and some share their weights."""
    alphabet = draw(st.lists(genes(), min_size=1, max_size=3))
    alphabet += [draw(genes(share)) for share in draw(st.sampled_from(([], ["p"], ["q", "p"])))]
    chosen = draw(st.lists(st.sampled_from(alphabet), min_size=1, max_size=most))
    if all(gene.block == NEXT for gene in chosen):
        chosen.append(Gene.of("swiglu"))
    norm, tied = draw(st.sampled_from(("rms", "layer"))), draw(st.booleans())
    return Genome(draw(st.sampled_from(WIDTHS)), tuple(chosen), norm, tied)


@st.composite
def rewritings(draw: st.DrawFn, genome: Genome) -> dict[str, Any]:
    """A space file that says `genome` in other words."""
    names = st.from_regex(r"[a-z][a-z0-9_-]{0,5}", fullmatch=True)
    shares = sorted({gene.share for gene in genome.genes if gene.share})
    defined = dict(zip(shares, draw(st.permutations(["m", "zz", "A", "B", "x-1"])), strict=False))
    define: dict[str, Any] = {}
    for gene in genome.genes:
        if gene.share:
            body = {gene.block: draw(_spellings(gene))}
            body = draw(st.sampled_from((body, {"one_of": body})))
            define[defined[gene.share]] = {"shared": True, **body}

    def place(gene: Gene, uses: int) -> dict[str, Any]:
        """A slot that holds one branch and is used so often."""
        what: Any = {gene.block: draw(_spellings(gene))}
        if gene.share:
            what = {"use": defined[gene.share]}
        elif draw(st.integers(0, 4)) == 0:
            name = f"once{len(define)}"
            define[name] = what | ({"shared": True} if uses < 2 and draw(st.booleans()) else {})
            what = {"use": name}
        return draw(_slots(what, names))

    stack: list[dict[str, Any]] = []
    at = 0
    while at < len(genome.genes):
        length = draw(st.integers(1, len(genome.genes) - at))
        motif, count = genome.genes[at : at + length], 1
        while genome.genes[at + count * length : at + (count + 1) * length] == motif:
            count += 1
        count = draw(st.integers(1, count))
        pattern: list[dict[str, Any]] = []
        for gene in motif:
            if pattern and draw(st.integers(0, 3)) == 0:
                pattern.append(draw(_empty_slots()))
            pattern.append(place(gene, count))
        stack.append({"pattern": pattern, **draw(_repeats(count))})
        if length == 1 and draw(st.booleans()):
            stack[-1] = {"pattern": [pattern[0] | {"repeat": count}]}
        at += count * length
        if draw(st.integers(0, 3)) == 0:
            stack.append({"repeat": 0, "pattern": [place(draw(st.sampled_from(genome.genes)), 0)]})
    if draw(st.booleans()):
        tail = draw(st.lists(st.sampled_from([NEXT, "none"]), min_size=1, max_size=2))
        stack.append({"pattern": [{"mixer": block} for block in tail], "repeat": 2})
    for stage, name in zip(stack, draw(st.lists(names, unique=True)), strict=False):
        if name != "define" and name != "repeat":
            stage["stage"] = name
    model: dict[str, Any] = {"d_model": draw(st.sampled_from([[genome.d_model], genome.d_model]))}
    if genome.norm != "rms" or draw(st.booleans()):
        model["norm"] = genome.norm
    if genome.tie_embeddings or draw(st.booleans()):
        model["tie_embeddings"] = genome.tie_embeddings
    return {"define": define, "model": model | {"stack": stack}}


@st.composite
def _spellings(draw: st.DrawFn, gene: Gene) -> dict[str, Any] | None:
    """The parameters of a gene, those without effect as they come, defaults written or not."""
    info, given = block_info(gene.block), dict(gene.params)
    for name, dim in info.dims.items():
        if dim.when and given[dim.when[0]] != dim.when[1]:
            given[name] = draw(st.sampled_from(VALUES[gene.block][name]))
        if dim.default_from and given[name] == given[dim.default_from] and draw(st.booleans()):
            given[name] = None
    for name in sorted(given):
        without = {key: value for key, value in given.items() if key != name}
        if draw(st.booleans()) and info.fill(without) == gene.params:
            given = without
    spelled = {name: "none" if value is None else value for name, value in given.items()}
    return spelled or None


@st.composite
def _slots(draw: st.DrawFn, what: Any, names: st.SearchStrategy[str]) -> dict[str, Any]:
    name = draw(names.filter(lambda name: name not in ("slot", "one_of", "repeat", "prior")))
    what = draw(st.sampled_from((what, [what])))
    slot = {"slot": name, "one_of": what} if draw(st.booleans()) else {name: what}
    return slot | ({"repeat": 1} if draw(st.booleans()) else {})


def _empty_slots() -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from((
        {"ffn": "none"}, {"slot": "x", "one_of": ["none"]}, {"mixer": "attention", "repeat": 0},
    ))  # fmt: skip


def _repeats(count: int) -> st.SearchStrategy[dict[str, Any]]:
    ways: list[dict[str, Any]] = [{"repeat": count}, {"repeat": [count]}, {"repeat": count}]
    ways += [{}] if count == 1 else []
    ways += [{"repeat": {"from": count, "to": count}, "choose": "once"}]
    return st.sampled_from(ways)


@st.composite
def spaces(draw: st.DrawFn, most: float = 300, match: bool = False) -> Experiment:
    """Spaces of at most `most` combinations, with everything that a space can hold."""
    pool: list[Any] = ["none", "swiglu", "attention", NEXT, {"use": "macro"}, {"use": "weights"}]
    pool += [
        {"attention": {"heads": [2, 4], "kv_heads": ["none", 1]}},
        {"attention": {"pos": ["none", "rope"], "theta": [100.0, 500.0]}},
        {"swiglu": {"mult": {"from": 1, "to": 2}}},
        {"mamba2": {"d_state": 4, "head_dim": 4}},
        {NEXT: {"heads": [2, 4]}},
        {"use": "side"},
    ]
    define = {
        "macro": [{"swiglu": {"act": ["silu", "relu2"]}}, "none"],
        "weights": {"shared": True, "swiglu": {"mult": [1, 3]}},
        "side": {"shared": True, NEXT: {"mult": [1, 3]}},
    }
    repeats = st.sampled_from([1, 1, 1, [0, 1], [1, 2], 2, {"from": 0, "to": 2}])
    stack = []
    for _ in range(draw(st.integers(1, 2))):
        pattern = []
        for _ in range(draw(st.integers(1, 3))):
            choices = draw(st.lists(st.sampled_from(range(len(pool))), min_size=1, max_size=3,
                                    unique=True))  # fmt: skip
            options = [pool[i] for i in choices]
            if "none" in options and {"use": "macro"} in options:
                options.remove("none")
            if "swiglu" in options and {"swiglu": {"mult": {"from": 1, "to": 2}}} in options:
                options.remove("swiglu")
            pattern.append({"slot": "s", "one_of": options, "repeat": draw(repeats)})
        choose = draw(st.sampled_from(["once", "per_repeat"]))
        stack.append({"pattern": pattern, "repeat": draw(repeats), "choose": choose})
    widths = draw(st.sampled_from([16, [16, 32], {"from": 16, "to": 48, "step": 16}]))
    model = {"d_model": widths, "norm": draw(st.sampled_from(["rms", ["layer", "rms"]]))}
    try:
        experiment = parsed({"define": define, "model": model | {"stack": stack}})
    except SpaceError as error:
        raise AssertionError(str(error)) from None
    if experiment.space.size > most:
        return draw(spaces(most, match))
    return experiment

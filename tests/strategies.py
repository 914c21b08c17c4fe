"""Random genomes and random small spaces, and the many ways in which one genome can be written."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

import yaml
from hypothesis import strategies as st

from archsearch.canonical import nested
from archsearch.catalogue import block_info
from archsearch.errors import SpaceError
from archsearch.genome import COMBINE, FRAME, Gene, Genome
from archsearch.space_yaml import Experiment, parse
from archsearch.stack_yaml import RESERVED, SLOT_KEYS

VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "armt": {"d_mem": (4, 6), "nu": (1, 2), "segment": (4, 6), "writers": (1, 2)},
    "attention": {
        "heads": (1, 2, 4), "kv_heads": (None, 1), "pos": ("rope", "none"),
        "theta": (10_000.0, 100.0, 500_000.0), "qk_norm": (False, True),
        "qkv_bias": (False, True), "window": (None, 3, 5), "rotary": (1.0, 0.5),
    },
    "block_recurrent": {"heads": (1, 2), "window": (8, 16), "states": (2, 3),
                        "gate": ("fixed", "lstm"), "pos": ("rope", "none"),
                        "theta": (10_000.0, 100.0)},
    "gated_deltanet": {
        "head_dim": (8, 16), "expand_k": (1.0, 2.0), "expand_v": (1, 2), "value_heads": (1, 2),
        "conv": (1, 4), "beta": (1, 2), "decay": (True, False), "gate": (True, False),
    },
    "gla": {
        "head_dim": (4, 8), "expand_k": (0.5, 1.0), "expand_v": (1, 2), "rank": (2, 4),
        "decay": ("channel", "head", "fixed", "none"), "conv": (None, 2),
        "feature": ("none", "elu", "relu"), "gate": (True, False),
    },
    "hyena": {
        "filter_width": (4, 8), "filter_depth": (0, 1), "frequency": (1.0, 2.0), "bands": (1, 2),
        "span": (16, 64), "conv": (1, 3),
    },
    "kan": {"grid": (3, 4), "order": (1, 3), "mult": (1, 2), "reach": (3.0, 2.0)},
    "liquid_s4": {"d_state": (2, 4), "degree": (2, 3)},
    "mamba1": {"d_state": (2, 4), "expand": (1, 2), "conv": (1, 4), "dt_ratio": (4, 16),
               "norm": (False, True)},
    "mamba2": {"d_state": (4, 8, 64), "head_dim": (4, 8), "expand": (1, 2), "conv": (1, 2, 4),
               "neg_eigval": (False, True)},
    "moe": {
        "experts": (3, 4), "top_k": (1, 2), "mult": (0.5, 1.0), "shared": (0, 1),
        "router": ("softmax", "sigmoid", "noisy_top_k"), "renormalise": (True, False),
    },
    "peer": {"heads": (1, 2), "keys": (4, 6), "top_k": (1, 3), "key_width": (4, 6),
             "act": ("gelu", "silu", "relu")},
    "pkm": {"heads": (1, 2), "keys": (4, 6), "top_k": (1, 3), "key_width": (4, 6),
            "query_norm": ("layer", "rms", "none")},
    "rwkv7": {"head_dim": (8, 16), "decay_rank": (2, 4), "rate_rank": (2, 4), "gate_rank": (2, 4)},
    "shared_attention": {
        "heads": (2, 4), "mult": (1, 2), "pos": ("none", "rope"), "theta": (10_000.0, 100.0),
        "lora_rank": (0, 2), "qkv_lora_rank": (0, 2),
    },
    "short_conv": {"conv": (1, 3), "expand": (1, 2)},
    "skip": {"combine": ("add", "gate")},
    "swiglu": {
        "mult": (1, 2, 3, 1.5), "act": ("silu", "gelu", "relu2", "spline", "rational"),
        "grid": (6, 12), "groups": (1, 2, 8),
    },
    "ttt": {"head_dim": (4, 8), "mini_batch": (2, 4), "inner": ("linear", "mlp"),
            "pos": ("rope", "none"), "conv": (0, 3), "gate": (False, True)},
}  # fmt: skip
"""For each block, values that can be built at every width of `WIDTHS` in every combination."""
WRAPPERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "loop": {"times": (2, 3), "halting": ("act", "stick_breaking"), "ponder": (0.01, 0.1)},
    "mod": {"capacity": (0.25, 0.5), "gate": ("linear", "sigmoid")},
    "parallel": {"combine": ("add", "norm", "gate")},
}
"""The same for blocks that hold others."""
FITTING: dict[str, dict[str, Any]] = {
    "armt": {"segment": 4}, "gated_deltanet": {"head_dim": 8}, "gla": {"head_dim": 4},
    "mamba2": {"head_dim": 4}, "peer": {"keys": 4, "top_k": 1}, "pkm": {"keys": 4, "top_k": 1},
    "rwkv7": {"head_dim": 8}, "ttt": {"head_dim": 4, "mini_batch": 4},
}  # fmt: skip
"""Where the defaults are made for larger widths or longer texts, what must be given."""
AROUND: dict[str, tuple[Any, ...]] = {
    "norm": ("rms", "layer"), "norm_place": ("pre", "sandwich", "post"),
    "tie_embeddings": (False, True), "embedding_rank": (None, 4), "soft_cap": (None, 2.0),
    "pause_tokens": (0, 1, 2), "layer_dropout": (0.0, 0.5), "exit_loss": (0.0, 0.5),
}  # fmt: skip
"""Values of what stands around the stack, the default first."""
WIDTHS = (16, 32)
NEXT = "shared_attention"
"""The block whose output goes to the next block alone."""


def parsed(data: dict[str, Any]) -> Experiment:
    """The experiment that plain data describe."""
    return parse(yaml.safe_dump(data, sort_keys=False))


@st.composite
def params(draw: st.DrawFn, block: str) -> dict[str, Any]:
    """Some parameters of a block; those left out keep their defaults."""
    values = (VALUES | WRAPPERS)[block]
    given = {name: draw(st.sampled_from(v)) for name, v in values.items()}
    kept = {name for name in given if draw(st.booleans())} | set(FITTING.get(block, ()))
    return {name: value for name, value in given.items() if name in kept}


@st.composite
def genes(draw: st.DrawFn, share: str | None = None) -> Gene:
    """One branch that holds no others."""
    block = draw(st.sampled_from(sorted(VALUES)))
    return Gene.of(block, share, **draw(params(block)))


@st.composite
def wrapped(draw: st.DrawFn, alphabet: list[Gene], share: str | None = None) -> Gene:
    """A wrapper that holds some of these branches."""
    block = draw(st.sampled_from(sorted(WRAPPERS)))
    chosen = draw(st.lists(st.sampled_from(alphabet), min_size=1, max_size=3))
    if block_info(block).wraps == "set":
        chosen = [gene for gene in chosen if gene.block != NEXT] or [Gene.of("swiglu")]
    return Gene.of(block, share, chosen, **draw(params(block)))


@st.composite
def frames(draw: st.DrawFn) -> dict[str, Any]:
    """What stands around the stack, most of it as it is when nobody says."""
    rare = [name for name in AROUND if draw(st.integers(0, 3)) == 0]
    return {name: draw(st.sampled_from(AROUND[name])) for name in rare}


@st.composite
def genomes(draw: st.DrawFn, most: int = 6) -> Genome:
    """Branches of which some repeat, some share weights, some hold others, some read elsewhere."""
    alphabet = draw(st.lists(genes(), min_size=1, max_size=3))
    alphabet += [draw(genes(share)) for share in draw(st.sampled_from(([], ["p"], ["q", "p"])))]
    for share in draw(st.sampled_from(([], [None], [None, "w"], [None, None], ["w", None]))):
        alphabet.append(draw(wrapped(alphabet, share)))
    chosen = draw(st.lists(st.sampled_from(alphabet), min_size=1, max_size=most))
    for i, gene in enumerate(chosen):
        if draw(st.integers(0, 3)) == 0:
            reads = tuple(draw(st.lists(st.integers(0, i), min_size=1, max_size=3)))
            combine = draw(st.sampled_from(COMBINE.options))
            chosen[i] = dataclasses.replace(gene, inputs=reads, combine=combine)
    chosen.append(Gene.of("swiglu", mult=draw(st.sampled_from((1, 3)))))
    if draw(st.booleans()):
        with suppress(SpaceError):  # nothing was left
            return Genome(draw(st.sampled_from(WIDTHS)), tuple(chosen[:-1]), **draw(frames()))
    return Genome(draw(st.sampled_from(WIDTHS)), tuple(chosen), **draw(frames()))


@st.composite
def rewritings(draw: st.DrawFn, genome: Genome) -> dict[str, Any]:
    """A space file that says `genome` in other words."""
    names = st.from_regex(r"[a-z][a-z0-9_-]{0,5}", fullmatch=True)
    every = tuple(nested(genome.genes))
    shares = sorted({gene.share for gene in every if gene.share})
    defined = dict(zip(shares, draw(st.permutations(["m", "zz", "A", "B", "x-1"])), strict=False))
    define: dict[str, Any] = {}

    def body(gene: Gene) -> dict[str, Any]:
        spelled = draw(_spellings(gene))
        if gene.inner:
            held = list(gene.inner)
            if block_info(gene.block).wraps == "set":
                held = draw(st.permutations(held))
            spelled = (spelled or {}) | {"of": [place(inner, 2) for inner in held]}
        return {gene.block: spelled}

    def place(gene: Gene, uses: int, *, moves: bool = True) -> dict[str, Any]:
        """A slot that holds one branch and is used so often, maybe at several places."""
        what: Any
        if gene.share:
            what = {"use": defined[gene.share]}
        else:
            what = body(gene)
            if draw(st.integers(0, 4)) == 0:
                name = f"once{len(define)}"
                alone = uses < 2 and draw(st.booleans())
                define[name] = what | ({"shared": True} if alone else {})
                what = {"use": name}
        slot = draw(_slots(what, names))
        return slot | draw(_edges(gene, moves=moves))

    for gene in {gene.share: gene for gene in every if gene.share}.values():
        what = body(dataclasses.replace(gene, share=None))
        what = draw(st.sampled_from((what, {"one_of": what})))
        define[defined[gene.share or ""]] = {"shared": True, **what}

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
            pattern.append(place(gene, count, moves=count > 1))
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
        if name not in RESERVED:
            stage["stage"] = name
    model: dict[str, Any] = {"d_model": draw(st.sampled_from([[genome.d_model], genome.d_model]))}
    for name, value in genome.frame.items():
        if value != FRAME[name].default or draw(st.integers(0, 3)) == 0:
            model[name] = "none" if value is None else value
    return {"define": define, "model": model | {"stack": stack}}


@st.composite
def _spellings(draw: st.DrawFn, gene: Gene) -> dict[str, Any] | None:
    """The parameters of a gene, those without effect as they come, defaults written or not."""
    info, given = block_info(gene.block), dict(gene.params)
    for name, dim in info.dims.items():
        if dim.when and given[dim.when[0]] != dim.when[1]:
            given[name] = draw(st.sampled_from((VALUES | WRAPPERS)[gene.block][name]))
        if dim.default_from and given[name] == given[dim.default_from] and draw(st.booleans()):
            given[name] = None
    for name in sorted(given):
        without = {key: value for key, value in given.items() if key != name}
        if draw(st.booleans()) and info.fill(without) == gene.params:
            given = without
    spelled = {name: "none" if value is None else value for name, value in given.items()}
    return spelled or None


@st.composite
def _edges(draw: st.DrawFn, gene: Gene, *, moves: bool) -> dict[str, Any]:
    """What a slot says of its inputs; nothing is said by place where the slot `moves`."""
    if not gene.inputs:
        return {} if moves or draw(st.booleans()) else {"inputs": ["prev"]}
    reads = [draw(st.sampled_from(("embedding", 0))) if n == 0 else n for n in gene.inputs]
    edges: dict[str, Any] = {"inputs": draw(st.permutations(reads))}
    if gene.combine != "add" or (len(reads) > 1 and draw(st.booleans())):
        edges["combine"] = gene.combine
    return edges


@st.composite
def _slots(draw: st.DrawFn, what: Any, names: st.SearchStrategy[str]) -> dict[str, Any]:
    name = draw(names.filter(lambda name: name not in (*SLOT_KEYS, *RESERVED)))
    what = draw(st.sampled_from((what, [what])))
    slot = {"slot": name, "one_of": what} if draw(st.booleans()) else {name: what}
    return slot | ({"repeat": 1} if draw(st.booleans()) else {})


def _empty_slots() -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from((
        {"ffn": "none"}, {"slot": "x", "one_of": ["none"]}, {"mixer": "attention", "repeat": 0},
        {"mixer": {"mod": {"of": [{"a": "none"}, {"b": NEXT}]}}},
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
        {"mod": {"capacity": [0.25, 0.5], "of": [{"m": ["swiglu", "none"]}]}},
        {"parallel": {"of": [{"a": ["attention", "none"]}, {"b": ["attention", "swiglu"]}]}},
        {
            "parallel": {
                "combine": ["norm", "gate"],
                "of": [{"a": {"use": "weights"}}, {"b": "kan"}],
            }
        },
        {"loop": {"of": [{"s": {"use": "side"}}, {"m": [{"use": "held"}, "none"]}]}},
        {"use": "held"},
        {"skip": {"combine": ["add", "gate"]}},
    ]
    define = {
        "macro": [{"swiglu": {"act": ["silu", "relu2"]}}, "none"],
        "weights": {"shared": True, "swiglu": {"mult": [1, "3/2"]}},
        "side": {"shared": True, NEXT: {"mult": [1, 3]}},
        "held": {"shared": True, "mod": {"of": [{"m": {"use": "macro"}, "repeat": [1, 2]}]}},
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
            slot = {"slot": "s", "one_of": options, "repeat": draw(repeats)}
            if draw(st.integers(0, 3)) == 0:
                slot |= draw(_readings([stage["stage"] for stage in stack]))
            pattern.append(slot)
        choose = draw(st.sampled_from(["once", "per_repeat"]))
        stage = {"stage": f"t{len(stack)}", "pattern": pattern, "repeat": draw(repeats)}
        if draw(st.integers(0, 2)) == 0:
            stage["repeat"] = draw(st.sampled_from([2, 3, [0, 3], [2, 4]]))
            stage["unique"] = draw(st.sampled_from([1, 2, [1, 2]]))
            stage["scheme"] = draw(st.sampled_from(["cycle", ["sequence", "cycle", "cycle_rev"]]))
        stack.append(stage | {"choose": choose})
    widths = draw(st.sampled_from([16, [16, 32], {"from": 16, "to": 48, "step": 16}]))
    model = {"d_model": widths, "norm": draw(st.sampled_from(["rms", ["layer", "rms"]]))}
    for name, values in AROUND.items():
        if name != "norm" and draw(st.integers(0, 9)) == 0:
            model[name] = ["none" if value is None else value for value in values[:2]]
    try:
        experiment = parsed({"define": define, "model": model | {"stack": stack}})
    except SpaceError as error:
        raise AssertionError(str(error)) from None
    if experiment.space.size > most:
        return draw(spaces(most, match))
    return experiment


@st.composite
def _readings(draw: st.DrawFn, stages: list[str]) -> dict[str, Any]:
    """What a slot reads, where some stages are behind it."""
    legal = ["prev", "embedding", 0, 1, *(f"stage:{name}" for name in stages)]
    reads = draw(st.lists(st.sampled_from(legal), min_size=1, max_size=2, unique_by=str))
    kinds = st.sampled_from(["add", "concat", ["add", "gate"]])
    return {"inputs": reads} | ({"combine": draw(kinds)} if len(reads) > 1 else {})

"""Random genomes that fit a published architecture, and models with nothing at its start value."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch

from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome
from archsearch.model import Model, build
from archsearch.mup import Base
from archsearch.seeds import seed
from archsearch.train import generator

VOCAB = 61
ATTENTION = Gene.of("attention", heads=2)
MAMBA = Gene.of("mamba2", d_state=8, head_dim=8)
MAMBA1 = Gene.of("mamba1", d_state=4, norm=True)
NOPE = Gene.of("attention", heads=2, pos="none")
SWIGLU, RELU2 = Gene.of("swiglu"), Gene.of("swiglu", act="relu2")
DELTA = Gene.of("gated_deltanet", head_dim=8)


def genome_for(name: str, number: int) -> Genome:
    """A random genome for a target; the same for the same number."""
    rng = Random(seed("native", name, number))
    width = rng.choice((32, 48, 64))
    genes = GENES[name](rng, width)
    shares = [gene.share for gene in genes if gene.share]
    tied = len(set(shares)) < len(shares) or rng.random() < 0.5
    return Genome(width, genes, tie_embeddings=tied)


def model_of(genome: Genome, number: int, vocab: int = VOCAB) -> Model:
    """A model of it; every other one is scaled up from half of its width and depth.

    In every third one all matrices are small, so that the epsilon of every norm is seen.
    """
    base = Base(genome.d_model // 2, len(genome.genes) / 2) if number % 2 else None
    stream = generator("native", number)
    try:
        model = build(genome, vocab, generator=stream, base=base)
    except SpaceError:
        model = build(genome, vocab, generator=stream, base=Base(genome.d_model, 1.5))
    small = 0.1 if number % 3 == 2 else 1.0
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn(weight.shape, generator=stream), alpha=0.3)
            elif not weight.any():
                weight.normal_(0.0, math.prod(weight.shape[1:]) ** -0.5, generator=stream)
            if weight.dim() > 1:
                weight.mul_(small)
    return model.eval()


def _attention(rng: Random, width: int, **given: Any) -> Gene:
    heads = rng.choice((4, 8))
    shape = {"heads": heads, "kv_heads": rng.choice((heads, heads // 2, heads // 2, 1))}
    if given.get("pos") != "none":
        shape["theta"] = rng.choice((10_000.0, 500_000.0, 100.0))
    return Gene.of("attention", **shape | given)


def _mamba2(rng: Random, width: int) -> Gene:
    expand, head_dim = rng.choice((1, 2, 3)), rng.choice((4, 8, 16))
    heads = expand * width // head_dim
    groups = rng.choice([g for g in (1, 2, 4) if heads % g == 0])
    return Gene.of("mamba2", expand=expand, head_dim=head_dim, groups=groups,
                   d_state=rng.choice((4, 8, 16)), conv=rng.choice((1, 2, 4)))  # fmt: skip


def _mamba1(rng: Random, *, norm: bool) -> Gene:
    return Gene.of("mamba1", norm=norm, d_state=rng.choice((2, 4, 8)), expand=rng.choice((1, 2)),
                   conv=rng.choice((1, 2, 4)), dt_ratio=rng.choice((4, 16)))  # fmt: skip


def _delta(rng: Random) -> Gene:
    return Gene.of("gated_deltanet", head_dim=rng.choice((8, 16)), expand_k=rng.choice((1.0, 2.0)),
                   expand_v=rng.choice((1, 2)), value_heads=rng.choice((1, 2)),
                   conv=rng.choice((1, 2, 4)), decay=rng.random() < 0.7)  # fmt: skip


def _swiglu(rng: Random, *acts: str) -> Gene:
    return Gene.of("swiglu", mult=rng.choice((1, 2, 1.5)), act=rng.choice(acts or ("silu",)))


def _moe(rng: Random, **given: Any) -> Gene:
    shape = {"experts": rng.choice((2, 4)), "top_k": 2, "mult": rng.choice((0.5, 1.0))}
    return Gene.of("moe", **shape | given)


def _mixed(rng: Random, some: Gene, other: Gene, least: int = 2) -> list[Gene]:
    """Both genes in random order, each at least once."""
    mixers = [some, other, *rng.choices((some, other), k=rng.randint(least, 4) - 2)]
    rng.shuffle(mixers)
    return mixers


def _paired(mixers: list[Gene], ffns: list[Gene] | Gene) -> tuple[Gene, ...]:
    after = [ffns] * len(mixers) if isinstance(ffns, Gene) else ffns
    return tuple(gene for pair in zip(mixers, after, strict=True) for gene in pair)


def _llama(rng: Random, width: int, **given: Any) -> tuple[Gene, ...]:
    layers = [_attention(rng, width, **given)] * rng.randint(1, 3)
    return _paired(layers, _swiglu(rng, "silu", "gelu"))


def _qwen(rng: Random, width: int, *, qk_norm: bool) -> tuple[Gene, ...]:
    shape = dict(_attention(rng, width, qk_norm=qk_norm, qkv_bias=rng.random() < 0.7).params)
    window = rng.choice((3, 20))
    windows = [rng.choice((None, window)) for _ in range(rng.randint(1, 3))]
    layers = [Gene.of("attention", **shape | {"window": w}) for w in windows]
    return _paired(layers, _swiglu(rng, "silu", "gelu"))


def _nemotron_h(rng: Random, width: int) -> tuple[Gene, ...]:
    kinds = _mamba2(rng, width), _attention(rng, width, pos="none"), _swiglu(rng, "relu2")
    genes = [*kinds, *rng.choices(kinds, k=rng.randint(0, 4))]
    rng.shuffle(genes)
    return tuple(genes)


def _granite(rng: Random, width: int) -> tuple[Gene, ...]:
    attends = _attention(rng, width, pos=rng.choice(("rope", "none")), qkv_bias=rng.random() < 0.5)
    experts = _moe(rng, shared=rng.choice((0, 1, 2)), router=rng.choice(("softmax", "noisy_top_k")))
    if dict(experts.params)["router"] == "noisy_top_k":
        experts = _moe(rng, experts=4, router="noisy_top_k", shared=1)
    return _paired(_mixed(rng, _mamba2(rng, width), attends), rng.choice((_swiglu(rng), experts)))


def _bamba(rng: Random, width: int) -> tuple[Gene, ...]:
    attends = _attention(
        rng, width, heads=4, kv_heads=rng.choice((4, 2)), rotary=0.5, qkv_bias=rng.random() < 0.5
    )
    return _paired(_mixed(rng, _mamba2(rng, width), attends), _swiglu(rng))


def _zamba2(rng: Random, width: int) -> tuple[Gene, ...]:
    blocks, mamba = rng.randint(1, 2), _mamba2(rng, width)
    shape = {
        "heads": rng.choice((4, 8)), "mult": rng.choice((1, 2)),
        "pos": rng.choice(("rope", "none")),
        "lora_rank": rng.choice((0, 2, 3)), "qkv_lora_rank": rng.choice((0, 2, 5)),
    }  # fmt: skip
    genes: list[Gene] = [mamba] * rng.randint(0, 2)
    for use in range(rng.randint(blocks, 4)):
        genes += [Gene.of("shared_attention", f"S{use % blocks}", **shape)]
        genes += [mamba] * rng.randint(1, 2)
    return tuple(genes)


def _falcon_h1(rng: Random, width: int) -> tuple[Gene, ...]:
    attends = _attention(rng, width, qkv_bias=rng.random() < 0.5)
    both = Gene.of("parallel", of=(attends, _mamba2(rng, width)))
    return _paired([both] * rng.randint(1, 3), _swiglu(rng))


def _qwen3_next(rng: Random, width: int) -> tuple[Gene, ...]:
    rotary = rng.choice((0.25, 0.5, 1.0))
    attends = _attention(rng, width, heads=2, kv_heads=rng.choice((2, 2, 1)), rotary=rotary,
                         qk_norm=True, qkv_bias=rng.random() < 0.3)  # fmt: skip
    mixers = _mixed(rng, _delta(rng), attends)
    experts = _moe(rng, top_k=rng.choice((1, 2)), shared=rng.choice((0, 1, 2)),
                   renormalise=rng.random() < 0.5)  # fmt: skip
    dense = _swiglu(rng)
    return _paired(mixers, [rng.choice((dense, experts)) for _ in mixers])


def _jamba(rng: Random, width: int) -> tuple[Gene, ...]:
    mamba, attends = _mamba1(rng, norm=True), _attention(rng, width, pos="none")
    experts = _moe(rng, mult=1.0, renormalise=False)
    dense = Gene.of("swiglu", mult=1)
    layers, period, other = rng.randint(2, 4), rng.randint(2, 3), rng.randint(1, 2)
    at, where = rng.randrange(2), rng.randrange(other)
    mixers = [attends if i % period == at else mamba for i in range(layers)]
    return _paired(mixers, [experts if i % other == where else dense for i in range(layers)])


def _lfm2(rng: Random, width: int) -> tuple[Gene, ...]:
    conv = Gene.of("short_conv", conv=rng.choice((1, 2, 3, 5)))
    return _paired(_mixed(rng, conv, _attention(rng, width, qk_norm=True)), _swiglu(rng))


GENES: dict[str, Any] = {
    "Mamba2": lambda rng, width: (_mamba2(rng, width),) * rng.randint(1, 4),
    "Mamba": lambda rng, width: (_mamba1(rng, norm=False),) * rng.randint(1, 3),
    "Llama": _llama,
    "Mistral": lambda rng, width: _llama(rng, width, window=rng.choice((3, 20))),
    "Qwen2": lambda rng, width: _qwen(rng, width, qk_norm=False),
    "Qwen3": lambda rng, width: _qwen(rng, width, qk_norm=True),
    "NemotronH": _nemotron_h,
    "GraniteMoeHybrid": _granite,
    "Zamba2": _zamba2,
    "Bamba": _bamba,
    "FalconH1": _falcon_h1,
    "Qwen3Next": _qwen3_next,
    "Jamba": _jamba,
    "Lfm2": _lfm2,
}

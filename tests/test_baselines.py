"""Baselines: each is one architecture that works; in full size it has the published parameters."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

from archsearch.catalogue import block_info
from archsearch.genome import Gene, Genome
from archsearch.library import shipped
from archsearch.model import Model, cost
from archsearch.sections import Recipe
from archsearch.space_yaml import load_genome, parse
from archsearch.stack import configured
from archsearch.trial import run_trial
from mad_tasks import InContextRecall
from tests.streaming import around, require_that_it_streams

FULL = sorted(name for name in shipped() if name.startswith("baselines/full/"))
SMALL = sorted(name for name in shipped() if name.startswith("baselines/") and name not in FULL)
WANTED = {
    "transformer_pp", "mamba2", "zamba2", "jamba", "blackmamba", "mobillama", "albert", "gemma",
    "universal_transformer", "qwen2", "tinyllama", "minicpm",
}  # fmt: skip
RECIPE = Recipe(steps=2, evals=1, batch=4, eval_rows=8)


def test_the_baselines_are_there():
    assert {name.rpartition("/")[2] for name in SMALL} == WANTED
    assert set(PUBLISHED) == {name.rpartition("/")[2] for name in FULL}


@pytest.mark.parametrize("name", SMALL)
def test_a_baseline_is_one_small_architecture_that_trains_and_streams(name):
    genome = load_genome(name)
    assert genome.d_model == 64
    assert 1 <= len(genome.branches) <= 12
    assert all(head is None or head >= 16 for head in map(head_width, genome.branches))
    result = run_trial(genome, (InContextRecall(vocab=16, seq_len=32),), RECIPE, seed=0)
    assert (result.status, result.why) == ("ok", "")
    require_that_it_streams(result.models[0])


def head_width(gene: Gene) -> int | None:
    kind, config = configured(gene)
    return kind.channels_per_head(64, config)


@pytest.mark.parametrize("name", ["zamba2", "baselines/zamba2"])
def test_a_search_starts_from_a_baseline_by_its_name(name):
    space = "model: {stack: [pattern: [mixer: mamba2]]}\n"
    (seed,) = parse(space + f"search: {{start_from: [{name}]}}").seeds
    assert seed == load_genome("baselines/zamba2")


class Published(NamedTuple):
    """A model as it was published."""

    vocab: int
    params: int
    """Of the published model; embeddings that are tied count once."""
    kind: str
    """Its class in transformers."""
    config: dict[str, Any]
    """Of that class: hidden size, layers, heads, intermediate size and the like."""
    missing: int = 0
    """Parameters that ours lacks."""
    why: str = ""


def llama(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
    } | more  # fmt: skip


def zamba2(layers: int, hybrid: tuple[int, ...], blocks: int, **more: Any) -> dict[str, Any]:
    kinds = ["hybrid" if layer in hybrid else "mamba" for layer in range(layers)]
    return {
        "num_hidden_layers": layers, "layers_block_type": kinds, "num_mem_blocks": blocks,
        "num_attention_heads": 32, "adapter_rank": 128, "mamba_headdim": 64, "mamba_ngroups": 1,
        "tie_word_embeddings": True,
    } | more  # fmt: skip


JAMBA = llama(4096, 14_336, 32, 32, 8) | {
    "num_experts": 16, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
    "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_dt_rank": 256, "tie_word_embeddings": False,
}  # fmt: skip
PUBLISHED = {
    "tinyllama-1.1b": Published(
        32_000, 1_100_048_384, "Llama", llama(2048, 5632, 22, 32, 4, tie_word_embeddings=False)
    ),
    "qwen2-0.5b": Published(
        151_936, 494_032_768, "Qwen2", llama(896, 4864, 24, 14, 2, tie_word_embeddings=True)
    ),
    "gemma-2b": Published(
        256_000, 2_506_172_416, "Gemma",
        llama(2048, 16_384, 18, 8, 1, head_dim=256, tie_word_embeddings=True),
    ),
    # 2404.06395, table 2 has 2,442,057,984 without embeddings; the code is Llama's with multipliers
    "minicpm-2b": Published(
        122_753, 2_442_057_984 + 122_753 * 2304, "Llama",
        llama(2304, 5760, 40, 36, 36, tie_word_embeddings=True),
    ),
    "mamba2-130m": Published(
        50_288, 128_989_632, "Mamba2",
        {"hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24, "head_dim": 64,
         "state_size": 128, "n_groups": 1, "tie_word_embeddings": True},
    ),
    "zamba2-1.2b": Published(
        32_000, 1_215_064_704, "Zamba2",
        zamba2(38, (5, 11, 17, 23, 29, 35), 1, hidden_size=2048, intermediate_size=8192,
               mamba_d_state=128, n_mamba_heads=64, use_shared_attention_adapter=True,
               use_mem_rope=True),
    ),
    "zamba2-2.7b": Published(
        32_000, 2_662_214_560, "Zamba2",
        zamba2(54, (6, 12, 18, 24, 30, 36, 42, 47, 51), 2, hidden_size=2560,
               intermediate_size=10_240, mamba_d_state=64, n_mamba_heads=80),
    ),
    "jamba-v0.1": Published(65_536, 51_570_323_328, "Jamba", JAMBA),
    # the code ignores the 4 key heads of its config; `counted` makes its feed-forwards one
    "mobillama-0.5b": Published(
        32_000, 534_865_920, "Llama", llama(2048, 5632, 22, 32, 32, tie_word_embeddings=False),
        missing=21 * 2048,
        why="shared weights bring their norm, where each of the 22 layers has one of its own",
    ),
    # Mamba's class with 18 layers; `counted` adds the 18 layers of experts
    "blackmamba-2.8b": Published(
        50_304, 2_783_213_584, "Mamba",
        {"hidden_size": 1472, "num_hidden_layers": 18, "state_size": 16, "time_step_rank": 92,
         "tie_word_embeddings": True},
        missing=1472,
        why="the last norm is a LayerNorm with a bias, all others are RMSNorms; here all are alike",
    ),
}  # fmt: skip


@cache
def built(name: str) -> Model:
    """A full-size baseline, shapes without memory."""
    with torch.device("meta"):
        return Model(load_genome(name), PUBLISHED[name].vocab, "token")


def counted(name: str) -> int:
    """Parameters of the published model, counted on the published code."""
    transformers, known = pytest.importorskip("transformers"), PUBLISHED[name]
    config = getattr(transformers, f"{known.kind}Config")(vocab_size=known.vocab, **known.config)
    with torch.device("meta"):
        model = getattr(transformers, f"{known.kind}ForCausalLM")(config)
    more = 0
    if name == "mobillama-0.5b":
        for layer in model.model.layers:
            layer.mlp = model.model.layers[0].mlp
    if name == "blackmamba-2.8b":  # switch_mlp.py and mamba_block.py of its repository
        width, hidden, experts = 1472, 3872, 8
        router, norm, last_norm_bias = (width + 1) * experts, width, width
        more = 18 * (norm + router + experts * 3 * hidden * width) + last_norm_bias
    return sum(p.numel() for p in model.parameters()) + more


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_full_size_baseline_has_the_published_parameters_to_the_unit(name):
    known, model = PUBLISHED[name], built(name)
    sizes = {key: p.numel() for key, p in model.named_parameters()}
    assert sum(sizes.values()) == known.params - known.missing
    stack = sum(size for key, size in sizes.items() if not around(key))
    assert cost(model.genome, 1).params == stack
    assert bool(known.missing) == bool(known.why)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_parameters_are_those_of_the_published_code(name):
    assert counted(name) == PUBLISHED[name].params


@pytest.mark.parametrize(
    ("name", "said", "instead"),
    [
        ("tinyllama-1.1b", "kv_heads: 4", "kv_heads: 8"),
        ("qwen2-0.5b", "qkv_bias: true", "qkv_bias: false"),
        ("qwen2-0.5b", "mult: 38/7", "mult: 5.5"),
        ("gemma-2b", "tie_embeddings: true", "tie_embeddings: false"),
        ("minicpm-2b", "repeat: 40", "repeat: 39"),
        ("mamba2-130m", "d_state: 128", "d_state: 64"),
        ("zamba2-1.2b", "qkv_lora_rank: 128", "qkv_lora_rank: 0"),
        ("zamba2-2.7b", "global: {use: other}", "global: {use: one}"),
        ("jamba-v0.1", "experts: 16", "experts: 15"),
        ("mobillama-0.5b", "shared: true", "shared: false"),
        ("blackmamba-2.8b", "mult: 121/46", "mult: 2.625"),
    ],
)
def test_one_number_changed_is_seen(name, said, instead):
    text = shipped()[f"baselines/full/{name}"].read_text(encoding="utf-8")
    assert said in text
    genome = parse(text.replace(said, instead)).space.replay({})
    with torch.device("meta"):
        model = Model(genome, PUBLISHED[name].vocab, "token")
    known = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) != known.params - known.missing


def test_the_order_is_the_published_one():
    """Counts do not see it."""
    jamba = [gene.block for gene in built("jamba-v0.1").genome.genes]
    assert jamba[::2] == ["attention" if i % 8 == 4 else "mamba1" for i in range(32)]
    assert jamba[1::2] == ["moe" if i % 2 else "swiglu" for i in range(32)]
    for name in ("zamba2-1.2b", "zamba2-2.7b"):
        kinds = PUBLISHED[name].config["layers_block_type"]
        assert layers(built(name).genome) == kinds
    shares = [gene.share for gene in built("zamba2-2.7b").genome.genes if gene.share]
    assert shares == [*"ABABABABA"]


def layers(genome: Genome) -> list[str]:
    """What transformers calls the layers: a shared block counts with the one that it feeds."""
    genes = [block_info(gene.block).joins for gene in genome.genes]
    return [
        "hybrid" if before == "next" else "mamba"
        for before, joins in zip(["stream", *genes], genes, strict=False)
        if joins == "stream"
    ]

"""Which published architecture a genome is, and why it is none of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from archsearch.errors import ExportError
from archsearch.export.native import TARGETS, candidates, native, pattern
from archsearch.genome import Gene, Genome
from archsearch.library import shipped
from archsearch.model import Model, build
from archsearch.space_yaml import load_genome
from archsearch.train import generator
from tests.export.native_genomes import (
    ATTENTION,
    DELTA,
    MAMBA,
    MAMBA1,
    NOPE,
    RELU2,
    SWIGLU,
    VOCAB,
    model_of,
)
from tests.test_baselines import PUBLISHED

DOCS = Path(__file__).parent.parent.parent / "docs" / "export-native.md"
MOE = Gene.of("moe", experts=4, mult=1)
SHARED = Gene.of("shared_attention", "A", heads=2)
OTHER = Gene.of("shared_attention", "B", heads=2)
NORMED = Gene.of("attention", heads=2, qk_norm=True)


@pytest.fixture
def transformers():
    package = pytest.importorskip("transformers", reason="transformers needs the extra oracles")
    package.utils.logging.disable_progress_bar()
    return package


@pytest.mark.parametrize(
    ("genes", "name"),
    [
        ((MAMBA,) * 2, "Mamba2"),
        ((Gene.of("mamba1"),), "Mamba"),
        ((ATTENTION, SWIGLU), "Llama"),
        ((Gene.of("attention", heads=2, window=8), SWIGLU), "Mistral"),
        ((Gene.of("attention", heads=2, qkv_bias=True), SWIGLU), "Qwen2"),
        ((Gene.of("attention", heads=2, window=8), SWIGLU, ATTENTION, SWIGLU), "Qwen2"),
        ((NORMED, SWIGLU), "Qwen3"),
        ((MAMBA, NOPE, RELU2, RELU2), "NemotronH"),
        ((NOPE, SWIGLU), "GraniteMoeHybrid"),
        ((MAMBA, SWIGLU, ATTENTION, SWIGLU), "GraniteMoeHybrid"),
        ((ATTENTION, MOE), "GraniteMoeHybrid"),
        ((MAMBA, SHARED, MAMBA), "Zamba2"),
        ((MAMBA, SWIGLU, Gene.of("attention", heads=2, rotary=0.5), SWIGLU), "Bamba"),
        ((Gene.of("parallel", of=(MAMBA, ATTENTION)), SWIGLU), "FalconH1"),
        ((DELTA, SWIGLU, NORMED, MOE), "Qwen3Next"),
        ((MAMBA1, SWIGLU, NOPE, SWIGLU), "Jamba"),
        ((Gene.of("short_conv"), SWIGLU, NORMED, SWIGLU), "Lfm2"),
    ],
)
def test_the_first_that_fits_is_taken(genes, name):
    fits = [target for target, why in candidates(Genome(32, genes)) if not why]
    assert fits[0] == name


REFUSED = [
    ("NemotronH", (MAMBA, ATTENTION), "layer 2: attention with pos rope; NemotronH has none"),
    ("NemotronH", (MAMBA, Gene.of("peer")), "layer 2: peer has no equivalent in NemotronH"),
    ("NemotronH", (MAMBA, MOE), "layer 2: moe has no equivalent in NemotronH"),
    ("NemotronH", (MAMBA, SWIGLU), "layer 2: swiglu with act silu; NemotronH has relu2"),
    (
        "NemotronH",
        (MAMBA, NOPE, Gene.of("mamba2", head_dim=8)),
        "layer 3: mamba2 with d_state 64, 8 in layer 1; NemotronH has one for all layers",
    ),
    (
        "NemotronH",
        (replace(MAMBA, share="A"),) * 2,
        "layer 1: mamba2 shares its weights; NemotronH has a set for every layer",
    ),
    (
        "NemotronH",
        (MAMBA, replace(NOPE, inputs=(0,))),
        "layer 2: attention reads stream 0; NemotronH reads the last one",
    ),
    (
        "Mamba2",
        (Gene.of("mamba2", head_dim=8, neg_eigval=True),),
        "layer 1: mamba2 with neg_eigval true; Mamba2 has false",
    ),
    ("Mamba", (MAMBA1,), "layer 1: mamba1 with norm true; Mamba has false"),
    ("Llama", (Gene.of("attention", heads=2, window=4), SWIGLU),
     "layer 1: attention with window 4; Llama has none"),
    ("Llama", (SWIGLU, ATTENTION),
     "layer 1: swiglu stands where a mixer should; Llama alternates mixers and feed-forwards"),
    ("Llama", (ATTENTION,),
     "layer 1: nothing follows the last mixer; Llama alternates mixers and feed-forwards"),
    (
        "Qwen2",
        (Gene.of("attention", heads=2, window=4), SWIGLU,
         Gene.of("attention", heads=2, window=8), SWIGLU),
        "layer 3: attention with window 8, 4 in others; Qwen2 has one width of windows",
    ),
    (
        "GraniteMoeHybrid",
        (MAMBA, SWIGLU, ATTENTION, SWIGLU, NOPE, SWIGLU),
        "layer 5: attention with pos none, rope in layer 3; "
        "GraniteMoeHybrid has one for all layers",
    ),
    (
        "GraniteMoeHybrid",
        (MAMBA, SWIGLU, MAMBA, MOE),
        "layer 4: moe not in all layers; GraniteMoeHybrid has experts in all or in none",
    ),
    ("GraniteMoeHybrid", (MAMBA, Gene.of("moe", top_k=1, mult=1)),
     "layer 2: moe has gates that do not sum to 1; GraniteMoeHybrid's do"),
    ("GraniteMoeHybrid", (MAMBA, Gene.of("moe", router="sigmoid")),
     "layer 2: moe with router sigmoid; GraniteMoeHybrid has softmax or noisy_top_k"),
    ("Zamba2", (MAMBA,), "no layer is shared_attention; Zamba2 has one"),
    (
        "Zamba2",
        (SHARED, MAMBA, OTHER, MAMBA, OTHER, MAMBA),
        "layer 5: shared_attention comes out of turn; Zamba2's blocks take turns",
    ),
    ("Zamba2", (SHARED, OTHER, MAMBA),
     "layer 2: shared_attention before the same mamba2 as another; Zamba2 has one before each"),
    (
        "Zamba2",
        (SHARED, MAMBA, SHARED, MAMBA),
        "the model has embeddings of its own for the readout; transformers shares the blocks of "
        "Zamba2 only where embeddings are tied too",
    ),
    ("FalconH1", (Gene.of("parallel", of=(MAMBA, MAMBA)), SWIGLU),
     "layer 1: mamba2 beside mamba2; FalconH1 has attention beside mamba2"),
    (
        "FalconH1",
        (Gene.of("parallel", of=(MAMBA, replace(ATTENTION, share="A"))), SWIGLU) * 2,
        "layer 1: attention shares its weights; FalconH1 has a set for every layer",
    ),
    ("Qwen3Next", (Gene.of("gated_deltanet", head_dim=8, beta=2), SWIGLU),
     "layer 1: gated_deltanet with beta 2; Qwen3Next has 1"),
    ("Qwen3Next", (ATTENTION, SWIGLU),
     "layer 1: attention with qk_norm false; Qwen3Next has true"),
    (
        "Jamba",
        (MAMBA1, SWIGLU, NOPE, SWIGLU, NOPE, SWIGLU, MAMBA1, SWIGLU),
        "layer 5: attention does not stand in every so many layers; Jamba has a period",
    ),
    ("Jamba", (MAMBA1, Gene.of("moe", renormalise=False, mult=1), MAMBA1, SWIGLU),
     "layer 2: moe is 32 wide, swiglu 64; Jamba has one width"),
    ("Lfm2", (Gene.of("short_conv", expand=2), SWIGLU),
     "layer 1: short_conv with expand 2; Lfm2 has 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "genes", "why"), REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(name, genes, why, tmp_path):
    genome = Genome(32, genes)
    assert dict(candidates(genome))[name] == why
    with torch.device("meta"):
        model = Model(genome, VOCAB)
    with pytest.raises(ExportError) as error:
        native(model, tmp_path / "model", name=name)
    assert str(error.value) == f"{why}; --format hf writes any genome"
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("frame", "has"),
    [
        ({"norm": "layer"}, "LayerNorm"),
        ({"norm_place": "post"}, "post norms"),
        ({"embedding_rank": 8}, "embeddings of rank 8"),
        ({"soft_cap": 30.0}, "logits capped at 30"),
        ({"pause_tokens": 2}, "2 pause tokens"),
    ],
)
def test_what_stands_around_the_layers_is_looked_at(frame, has):
    reasons = dict(candidates(Genome(32, (ATTENTION, SWIGLU), **frame)))
    rest = "Llama has RMSNorm before every block and plain embeddings"
    assert reasons["Llama"] == f"the model has {has}; {rest}"
    assert all(reasons.values())


def test_training_alone_is_no_reason():
    frame = {"layer_dropout": 0.1, "exit_loss": 0.1}
    genome = Genome(32, (ATTENTION, SWIGLU) * 2, **frame)
    assert dict(candidates(genome))["Llama"] == ""


@pytest.mark.parametrize(
    ("genes", "why"),
    [
        ((MAMBA, ATTENTION), "layer 2: attention with pos rope; NemotronH has none"),
        (
            (MAMBA, SWIGLU, ATTENTION, Gene.of("swiglu", mult=3)),
            "layer 4: swiglu with mult 3, 2 in layer 2; GraniteMoeHybrid has one for all layers",
        ),
    ],
)
def test_the_reason_is_that_of_the_nearest(genes, why, tmp_path):
    with torch.device("meta"):
        model = Model(Genome(32, genes), VOCAB)
    with pytest.raises(ExportError) as error:
        native(model, tmp_path)
    assert str(error.value) == f"{why}; --format hf writes any genome"


def test_a_block_that_none_has_is_named(tmp_path):
    with torch.device("meta"):
        model = Model(Genome(32, (MAMBA, RELU2, Gene.of("peer"))), VOCAB)
    why = "layer 3: peer has no equivalent in {}; --format hf writes any genome"
    for name, what in ((None, "any architecture"), ("NemotronH", "NemotronH")):
        with pytest.raises(ExportError) as error:
            native(model, tmp_path, name=name)
        assert str(error.value) == why.format(what)


def test_an_unknown_name_and_a_code_are_refused(tmp_path):
    genome = Genome(32, (ATTENTION, SWIGLU))
    with pytest.raises(ExportError, match="unknown architecture 'Lama'; did you mean 'Llama'"):
        native(model_of(genome, 0), tmp_path, name="Lama")
    model = build(genome, VOCAB, "code", generator=generator("code"))
    with pytest.raises(ExportError, match="no language model"):
        native(model, tmp_path)


# --- patterns ---


def test_a_pattern_has_a_symbol_for_every_layer():
    assert pattern(Genome(32, (MAMBA, SWIGLU, MAMBA, NOPE, MOE), "layer")) == "M-M*E"


@pytest.mark.parametrize(
    ("gene", "why"),
    [
        (Gene.of("peer"), "layer 2: peer is none of M * - E"),
        (replace(ATTENTION, inputs=(0,)), "layer 2: attention reads another stream than the last"),
        (
            Gene.of("mamba2", head_dim=8, neg_eigval=True),
            "layer 2: mamba2 has negative eigenvalues",
        ),
    ],
)
def test_what_has_no_symbol_is_refused(gene, why):
    with pytest.raises(ExportError) as error:
        pattern(Genome(32, (SWIGLU, gene)))
    end = "which Megatron's patterns cannot say; --format hf writes any genome"
    assert str(error.value) == f"{why}, {end}"


# --- baselines ---


def table():
    """A line for every baseline: what it is written as, or why not."""
    lines = ["| baseline | written as | also fits |", "|---|---|---|"]
    for name in sorted(n for n in shipped() if n.startswith("baselines/")):
        found = candidates(load_genome(name))
        fits = [target for target, why in found if not why]
        first, others = (fits[0], ", ".join(fits[1:])) if fits else (reason(name), "")
        lines.append(f"| {name.removeprefix('baselines/')} | {first} | {others} |")
    return "\n".join(lines)


def reason(name):
    with torch.device("meta"):
        model = Model(load_genome(name), VOCAB)
    with pytest.raises(ExportError) as error:
        native(model, Path("nowhere"))
    return f"none: {str(error.value).rpartition('; ')[0]}"


def test_the_table_of_baselines_is_true():
    assert table() in DOCS.read_text()


FULL = {
    "tinyllama-1.1b": "Llama", "qwen2-0.5b": "Qwen2", "gemma-2b": "Llama", "minicpm-2b": "Llama",
    "mamba2-130m": "Mamba2", "zamba2-1.2b": "Zamba2", "zamba2-2.7b": "Zamba2",
    "jamba-v0.1": "Jamba",
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_a_full_size_baseline_has_the_published_parameters_there_too(transformers, name):
    known, target = PUBLISHED[name], FULL[name]
    fields = TARGETS[target].fields(load_genome(f"baselines/full/{name}"))
    config = getattr(transformers, f"{target}Config")(vocab_size=known.vocab, **fields)
    with torch.device("meta"):
        model = getattr(transformers, f"{target}ForCausalLM")(config)
    assert sum(p.numel() for p in model.parameters()) == known.params

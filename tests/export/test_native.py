"""A genome that is a published architecture is written as one, and answers as before."""

from __future__ import annotations

import json

import pytest
import torch

from archsearch.export.native import TARGETS, candidates, native
from archsearch.export.native.parity import parity
from archsearch.genome import Gene, Genome
from archsearch.train import generator
from tests.export.native_genomes import (
    ATTENTION,
    DELTA,
    GENES,
    MAMBA,
    MAMBA1,
    NOPE,
    RELU2,
    SWIGLU,
    VOCAB,
    genome_for,
    model_of,
)

CONV = Gene.of("short_conv")


@pytest.fixture
def transformers():
    package = pytest.importorskip("transformers", reason="transformers needs the extra oracles")
    package.utils.logging.disable_progress_bar()
    return package


def written(name, number, folder):
    """A random genome of a target as a model, and in a directory."""
    model = model_of(genome_for(name, number), number)
    assert native(model, folder, name=name) == name
    return model


def require_parity(name, number, folder):
    found = parity(written(name, number, folder), folder)
    assert found.logits < 1e-5
    # without attention transformers cannot count the tokens of a cache, so the config has none
    assert found.decode is None or found.decode < 1e-5
    return found


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", TARGETS)
def test_logits_and_cached_decode_are_those_of_the_model(transformers, name, number, tmp_path):
    assert require_parity(name, number, tmp_path).decode is not None


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3, 20))
@pytest.mark.parametrize("name", TARGETS)
def test_they_are_for_many_genomes(transformers, name, number, tmp_path):
    assert require_parity(name, number, tmp_path).decode is not None


def test_every_target_has_random_genomes():
    assert set(GENES) == set(TARGETS)
    for name in TARGETS:
        fits = [dict(candidates(genome_for(name, number)))[name] for number in range(20)]
        assert fits == [""] * 20


def edited(folder, change):
    """Change the weights in a directory, as a mistake in the writing would."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", TARGETS)
def test_swapped_heads_are_noticed(transformers, name, tmp_path):
    model = written(name, 0, tmp_path)

    def swap(weights):
        kinds = ("in_proj", "q_proj", "in_proj_qkvz")
        names = [n for n in weights if n.split(".")[-2] in kinds]
        rows = weights[names[0]]
        weights[names[0]] = torch.cat((rows[4:8], rows[:4], rows[8:]))

    edited(tmp_path, swap)
    assert parity(model, tmp_path).logits > 1e-4


@pytest.mark.parametrize("name", TARGETS)
def test_another_epsilon_is_noticed(transformers, name, tmp_path):
    """Number 2 has small matrices."""
    model = written(name, 2, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (field,) = {"rms_norm_eps", "layer_norm_epsilon", "norm_eps"} & set(config)
    config[field] = {1e-5: 1e-6, 1e-6: 1e-5}[config[field]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert parity(model, tmp_path).logits > 1e-4


def test_multipliers_of_mup_stand_in_the_config_where_it_has_them(transformers, tmp_path):
    model = model_of(Genome(32, (MAMBA, SWIGLU, NOPE, SWIGLU)), 1)
    native(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["residual_multiplier"], config["logits_scaling"]) == (0.5, 2.0)
    assert model.logit_multiplier == 0.5


@pytest.mark.parametrize(
    "genes",
    [(MAMBA, RELU2), (MAMBA, SWIGLU), (DELTA, SWIGLU), (MAMBA1, SWIGLU), (CONV, SWIGLU)],
    ids=["NemotronH", "GraniteMoeHybrid", "Qwen3Next", "Jamba", "Lfm2"],
)  # fmt: skip
def test_hybrids_without_attention_have_no_cache(transformers, genes, tmp_path):
    model = model_of(Genome(32, genes), 0)
    native(model, tmp_path)
    found = parity(model, tmp_path)
    assert found.decode is None
    assert found.logits < 1e-5
    assert_generates_as(model, tmp_path, transformers)


@pytest.mark.parametrize("name", ["Mamba2", "NemotronH", "Bamba", "Zamba2"])
def test_generate_says_what_the_model_says(transformers, name, tmp_path):
    assert_generates_as(written(name, 1, tmp_path), tmp_path, transformers)


@torch.no_grad()
def assert_generates_as(model, folder, transformers):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens_BT = torch.randint(VOCAB, (1, 7), generator=generator("prompt"))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    said_BT = loaded.generate(tokens_BT, attention_mask=torch.ones_like(tokens_BT), **options)
    for _ in range(8):
        tokens_BT = torch.cat((tokens_BT, model(tokens_BT)[:, -1:].argmax(-1)), 1)
    assert torch.equal(said_BT, tokens_BT)


def test_tied_embeddings_are_written_once_and_stay_tied(transformers, tmp_path):
    from safetensors.torch import load_file

    genome = Genome(32, (ATTENTION, SWIGLU), tie_embeddings=True)
    native(model_of(genome, 1), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_the_tokenizer_and_its_end_go_with_the_model(transformers, tmp_path):
    native(model_of(Genome(32, (ATTENTION, SWIGLU)), 0), tmp_path, {"a.json": "{}"}, end=3)
    assert (tmp_path / "a.json").read_text() == "{}"
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / file).read_text())["eos_token_id"] == 3


# --- what fits, and what is said of the rest ---

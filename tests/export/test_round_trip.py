"""What is written is the model that was in memory, for who knows nothing of archsearch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from archsearch.errors import ExportError
from archsearch.export.architecture import architecture, blocks_of, weights
from archsearch.export.check import TOLERANCES, check, deviations
from archsearch.export.runtime.model import Model as Runtime
from archsearch.export.write import WEIGHTS, fill
from archsearch.genome import Genome
from archsearch.model import build
from archsearch.train import generator
from tests.export.models import (
    GENOMES,
    HYDRA,
    SWIGLU,
    TRANSFORMERS,
    VOCAB,
    member,
    named,
    origin,
    scaled,
)

KINDS = pytest.mark.parametrize("kind", ["torch", pytest.param("hf", marks=TRANSFORMERS)])
FEW, MANY = range(5), range(100)


def require_a_round_trip(kind, models, folder):
    """Write models, load all of them in one process, and compare."""
    written = []
    for number, model in enumerate(models):
        place = folder / f"model-{number}"
        place.mkdir()
        fill(origin(model), place, kind, place.name)
        written.append((place, model))
    for (_, model), found in zip(written, deviations(kind, written), strict=True):
        wanted = {"logits"} if model.genome.bidirectional else set(TOLERANCES)
        assert set(found) == wanted
        for name, deviation in found.items():
            assert deviation <= TOLERANCES[name], f"{name} off by {deviation} for {model.genome}"


@KINDS
def test_random_models_of_all_blocks_come_back(kind, tmp_path):
    models = [scaled(member(seed), seed) for seed in FEW]
    models += [named(name) for name in GENOMES]
    models.append(scaled(Genome(16, (HYDRA, SWIGLU)), 0))
    require_a_round_trip(kind, models, tmp_path)


@pytest.mark.slow
@KINDS
def test_a_hundred_random_models_of_all_blocks_come_back(kind, tmp_path):
    require_a_round_trip(kind, [scaled(member(seed), seed) for seed in MANY], tmp_path)


@pytest.mark.parametrize("seed", range(20, 32))
def test_the_runtime_is_the_model(seed):
    """With the same blocks, what stands around them gives the same numbers to the last bit."""
    model = scaled(member(seed), seed)
    plain = architecture(model)
    blocks = {kind.info.name: kind for kind in blocks_of(model)}
    runtime = Runtime(plain, blocks).eval()
    named_weights = weights(model)
    runtime.load_state_dict(named_weights)
    tokens_BT = torch.randint(VOCAB, (2, 13), generator=generator("tokens"))
    with torch.no_grad():
        want_BTV, got_BTV = model(tokens_BT), runtime(tokens_BT)
        folded = model.logit_multiplier != 1 and plain["logit_multiplier"] == 1
        torch.testing.assert_close(got_BTV, want_BTV, rtol=0, atol=1e-5 if folded else 0)
        decoding = runtime.start(2, 1)  # grows on its way
        parts = [runtime.logits(runtime.advance(tokens_BT[:, :5], decoding))]
        parts += [runtime.step(token_B, decoding)[:, None] for token_B in tokens_BT.T[5:]]
    scale = max(1.0, float(want_BTV.abs().max()))
    torch.testing.assert_close(torch.cat(parts, 1), want_BTV, rtol=0, atol=1e-4 * scale)


def test_a_multiplier_of_the_logits_is_in_the_weights_where_nothing_else_uses_them():
    for tied, rank in ((False, None), (True, None), (True, 4), (False, 4)):
        genome = Genome(32, (SWIGLU,), tie_embeddings=tied, embedding_rank=rank)
        model = scaled(genome, 0)
        assert model.logit_multiplier == 0.5
        kept = 0.5 if tied and not rank else 1.0
        assert architecture(model)["logit_multiplier"] == kept
        last = "lower.weight" if rank else "embedding.weight" if tied else "readout.weight"
        assert torch.equal(
            weights(model)[last], dict(model.named_parameters())[last] * 0.5 / kept
        )  # fmt: skip


def test_a_weight_that_is_off_is_seen(tmp_path):
    model = build(GENOMES["attention"], VOCAB, generator=generator("export")).eval()
    fill(origin(model), tmp_path, "torch", "model")
    named_weights = load_file(tmp_path / WEIGHTS)
    name = next(name for name in named_weights if name.endswith("out.weight"))
    named_weights[name] *= 1.001
    save_file(named_weights, tmp_path / WEIGHTS)
    with pytest.raises(ExportError, match="the logits of what was written are off"):
        check(tmp_path, "torch", model)


def test_a_cache_that_is_wrong_is_seen(tmp_path):
    model = named("hybrid")
    fill(origin(model), tmp_path, "torch", "model")
    source = (tmp_path / "model.py").read_text()
    right, wrong = 'torch.cat((state["conv"], xBC_BC[..., None]), -1)', "[..., -4:]"
    assert right in source
    (tmp_path / "model.py").write_text(
        source.replace(right, f"torch.cat((state['conv'] * 0, xBC_BC[..., None]), -1){wrong}")
    )
    with pytest.raises(ExportError, match="the decode of what was written are off"):
        check(tmp_path, "torch", model)

"""Trained models of every kind as directories: of tasks, of text, of Hugging Face."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest
from safetensors.torch import save_file

from archsearch.export import export
from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.mup import Base
from archsearch.scale.corpus import Corpus
from archsearch.scale.pretrain import Pretraining, Settings
from archsearch.sections import Recipe
from archsearch.testing.text import Markov
from archsearch.train import generator
from archsearch.trial import run_trial
from archsearch.weights import save_weights
from mad_tasks import Compression, InContextRecall

TASKS = (InContextRecall(vocab=8, seq_len=16), Compression(vocab=8, seq_len=8))
HYBRID = Genome(
    16, (Gene.of("mamba2", d_state=8, head_dim=8), Gene.of("attention", heads=2), Gene.of("swiglu"))
)
SOURCE = Markov.draw(8, generator("test", "inference", "source"))
BASE = Base(8, 2)


@pytest.fixture(scope="session")
def of_tasks(tmp_path_factory):
    """What `archsearch export` writes of a genome with weights for two tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    recipe = Recipe(steps=40, evals=1, batch=16, eval_rows=16, lr=1e-2)
    result = run_trial(HYBRID, TASKS, recipe, 0)
    assert result.status == "ok", result.why
    save_weights(folder / "weights", result, TASKS, "here")
    return export(HYBRID, folder / "weights", folder / "model")


@pytest.fixture(scope="session")
def of_text(tmp_path_factory):
    """What `archsearch scale` writes of a training that has come to its end, and its text."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_bytes(SOURCE.sample(60_000, generator("test", "inference")))
    corpus = Corpus.open([str(folder / "text.txt")], "byte", folder / "scale" / "text")
    model = build(HYBRID, corpus.vocab, generator=generator("start"), base=BASE)
    recipe, settings = Recipe(steps=40, batch=8, lr=2e-2), Settings(context=32)
    training = Pretraining(model, corpus, recipe, settings)
    for _ in range(40):
        training.descend()
    about = {
        "genome": HYBRID.to_json(), "base": asdict(BASE), "recipe": recipe.model_dump(),
        "settings": asdict(settings), "text": corpus.key,
    }  # fmt: skip
    about = json.loads(json.dumps(about))
    training.save(folder / "scale" / "w16-d3" / "winner", about)
    return folder / "scale" / "w16-d3", model.eval(), corpus


@pytest.fixture
def copied(tmp_path):
    """A copy of a directory that a test may damage."""

    def copy(folder):
        shutil.copytree(folder, tmp_path / "copy")
        return tmp_path / "copy"

    return copy


def hugging_face(folder, model):
    """The parts of a Hugging Face directory of ours that are read back: config and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"model.{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    tied = model.genome.tie_embeddings
    if not tied:
        named["model.readout.weight"] = model.logit_multiplier * named["model.readout.weight"]
    stack = [{} if n.multiplier == 1 else {"multiplier": n.multiplier} for n in model.stack.nodes]
    architecture = {"logit_multiplier": model.logit_multiplier if tied else 1.0, "stack": stack}
    config = {"genome": model.genome.to_json(), "architecture": architecture, "auto_map": {}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(named, folder / "model.safetensors")
    return folder

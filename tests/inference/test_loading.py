"""Every directory with a model gives that model back; what does not fit is refused in words."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from archsearch.errors import CorpusError, ExportError
from archsearch.export import export
from archsearch.export import load as load_export
from archsearch.export.origin import of_task
from archsearch.genome import Gene, Genome
from archsearch.inference import load
from archsearch.model import build
from archsearch.mup import Base
from archsearch.scale.text import Text
from archsearch.scale.tokens import keep
from archsearch.sections import Recipe
from archsearch.train import generator
from archsearch.trial import run_trial
from archsearch.weights import save_weights
from mad_tasks import InContextRecall
from tests.inference.conftest import HYBRID, SOURCE, TASKS, hugging_face
from tests.scale.conftest import trained  # noqa: F401 - a fixture

ROWS = torch.randint(256, (2, 40), generator=generator("rows"))


def test_an_export_gives_the_weights_of_each_task_and_the_task(of_tasks):
    for task in TASKS:
        loaded = load(of_tasks, task.name)
        inputs_BT, _ = task.sample(4, generator("rows"))
        want_BTV = load_export(of_tasks, task.name)(inputs_BT)
        assert torch.equal(loaded.model(inputs_BT), want_BTV)
        assert (loaded.task, loaded.label, loaded.context) == (task, task.name, task.length)
        assert loaded.labels == tuple(t.name for t in TASKS)
    assert load(of_tasks).label == TASKS[0].name


def test_a_run_gives_its_best_model(of_tasks, tmp_path):
    shutil.copytree(of_tasks, tmp_path / "run" / "best")
    assert load(tmp_path / "run").label == TASKS[0].name


def test_a_training_of_scale_gives_the_model_of_its_last_step(of_text):
    folder, model, corpus = of_text
    step = next(folder.glob("winner/step-*"))
    for place in (folder, folder / "winner", step):
        loaded = load(place)
        assert torch.equal(loaded.model(ROWS), model(ROWS))
        assert not loaded.model.training
        assert (loaded.context, loaded.corpus, loaded.folder) == (32, corpus.key, step)
        assert loaded.cache == folder.parent / "text"
        assert loaded.vocabulary.decode(loaded.vocabulary.encode("naïve\n")) == "naïve\n"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scheme", ["completep", "depth_mup"])
def test_a_hugging_face_directory_gives_the_model_with_its_multipliers(tmp_path, tied, scheme):
    inner = (Gene.of("attention", heads=2), Gene.of("swiglu"))
    genome = Genome(16, (*HYBRID.genes, Gene.of("loop", of=inner)), tie_embeddings=tied)
    model = build(genome, 256, generator=generator("hf"), base=Base(8, 1.3, scheme)).eval()
    assert model.logit_multiplier != 1
    loaded = load(hugging_face(tmp_path / "hf", model))
    torch.testing.assert_close(loaded.model(ROWS), model(ROWS), rtol=1e-5, atol=1e-6)
    plain = build(genome, 256, generator=generator("hf")).eval()
    assert not torch.allclose(plain(ROWS), model(ROWS), rtol=1e-3, atol=1e-3), "no control"


def test_the_tokenizer_beside_the_weights_is_found(of_text, copied, trained, tmp_path):  # noqa: F811
    model = build(HYBRID, 401, generator=generator("bpe"))
    folder = hugging_face(tmp_path / "hf", model)
    assert load(folder).vocabulary.encode("400 3") == [400, 3], "without one it reads ids"
    assert load(folder, tokenizer=str(trained)).vocabulary.size == 401
    keep(str(trained), folder)
    vocabulary = load(folder).vocabulary
    ids = vocabulary.encode("The naïve café № 1")
    assert len(ids) < 18
    assert vocabulary.decode(ids) == "The naïve café № 1"
    assert vocabulary.end == 0
    place = copied(of_text[0])
    keep(str(trained), place)
    with pytest.raises(CorpusError, match=r"400 ids, the model in .* 256"):
        load(place)


def test_a_model_of_the_task_text_reads_and_writes_text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_bytes(SOURCE.sample(9000, generator("test", "task text")))
    tasks = (Text(source=str(tmp_path / "text.txt"), seq_len=16), InContextRecall(vocab=8))
    result = run_trial(HYBRID, tasks, Recipe(steps=2, evals=1, batch=4, eval_rows=8), 0)
    save_weights(tmp_path / "weights", result, tasks, "here")
    loaded = load(export(HYBRID, tmp_path / "weights", tmp_path / "model"))
    assert loaded.vocabulary.tokenizer == "byte"
    assert loaded.vocabulary.decode(loaded.vocabulary.encode("two words")) == "two words"
    assert (loaded.task, loaded.corpus) == (tasks[0], tasks[0].digest())
    of_ids = load(tmp_path / "model", "mad/in-context-recall")
    assert (of_ids.vocabulary.tokenizer, of_ids.corpus) == ("", "")
    origin = of_task(HYBRID, tmp_path / "weights", "text")
    assert (origin.tokenizer, origin.separator) == ("byte", 0)


def test_a_tokenizer_that_is_not_known_is_asked_for(of_text, copied):
    def enlarge(weights):
        for name in ("embedding.weight", "readout.weight"):
            weights[name] = torch.cat((weights[name], weights[name][:44]))

    step = next(of_text[0].glob("winner/step-*"))
    reweighted(enlarge)(lone := copied(step))
    with pytest.raises(CorpusError, match="not recorded; name it with --tokenizer"):
        load(lone)
    with pytest.raises(CorpusError, match=r"byte has 256 ids, the model in .* 300"):
        load(lone, tokenizer="byte")


def test_a_tokenizer_that_is_bytes_needs_no_file(tmp_path):
    keep("byte", tmp_path)
    assert not list(tmp_path.iterdir())


def test_pieces_of_text_are_whole_characters(of_text, trained):  # noqa: F811
    text = "The naïve café № 12 → 144\tends — here \N{GRINNING FACE}."
    model = build(HYBRID, 401, generator=generator("bpe"))
    place = hugging_face(trained.parent / "hf", model)
    for vocabulary in (load(of_text[0]).vocabulary, load(place, tokenizer=str(trained)).vocabulary):
        ids = vocabulary.encode(text)
        for cut in (0, 1, 7):
            pieces = list(vocabulary.pieces(ids[:cut], iter(ids[cut:])))
            assert "".join(pieces) == vocabulary.decode(ids)[len(vocabulary.decode(ids[:cut])) :]
            assert not any("\ufffd" in piece for piece in pieces)
    broken = [0x41, 0xE2, 0x82, 0x42, 0xFF, 0xE2]
    vocabulary = load(of_text[0]).vocabulary
    assert "".join(vocabulary.pieces([], broken)) == bytes(broken).decode("utf-8", "replace")


def damaged(change):
    def apply(folder):
        file = folder / "state.json"
        state = json.loads(file.read_text())
        change(state)
        file.write_text(json.dumps(state))

    return apply


def reweighted(change):
    def apply(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


DAMAGES = {
    "newer format": (damaged(lambda s: s.update(format=9)), "has format 9; this version reads"),
    "newer genome": (damaged(lambda s: s["about"]["genome"].update(format=9)), "format 9"),
    "no genome": (damaged(lambda s: s["about"].pop("genome")), "does not say what was trained"),
    "no base": (damaged(lambda s: s["about"].pop("base")), "damaged"),
    "unknown block": (
        damaged(lambda s: s["about"]["genome"]["genes"][1].update(block="atention")),
        "did you mean 'attention'",
    ),
    "a gene less": (damaged(lambda s: s["about"]["genome"]["genes"].pop()), "has no place in"),
    "wider": (
        damaged(lambda s: s["about"]["genome"]["genes"][0]["params"].update(d_state=16)),
        "has the shape",
    ),
    "a weight less": (reweighted(lambda w: w.pop("stack.branches.0.block.A_log")), "is missing"),
    "no embedding": (reweighted(lambda w: w.pop("embedding.weight")), "is missing"),
    "no json": (lambda f: (f / "state.json").write_text("{"), "damaged"),
    "a list": (lambda f: (f / "state.json").write_text("[1]"), "does not hold an object"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"1234"), "is damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_does_not_fit_is_refused_in_words(of_text, copied, name):
    folder = copied(next(of_text[0].glob("winner/step-*")))
    damage, words = DAMAGES[name]
    damage(folder)
    with pytest.raises(ExportError) as caught:
        load(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)


def test_what_holds_no_model_says_what_would(of_text, of_tasks, tmp_path):
    with pytest.raises(ExportError, match="is no directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="holds no model"):
        load(tmp_path)
    with pytest.raises(ExportError, match=r"models in it: .*w16-d3/winner"):
        load(of_text[0].parent)
    with pytest.raises(ExportError, match="trained on text"):
        load(of_text[0], task="mad/compression")
    with pytest.raises(ExportError, match=r"did you mean 'mad/compression'.*trained on them"):
        load(of_tasks, "mad/compresion")
    with pytest.raises(ExportError, match="no weights for"):
        load(of_tasks, task="mad/memorization")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ExportError, match="not a model of archsearch"):
        load(tmp_path)
    for told, words in (
        ({"format": 1, "kind": "gguf"}, r"for other programs \(--format gguf\)"),
        ({"format": 9, "kind": "hf"}, "has format 9; this version reads format 1"),
        ({}, "is damaged"),
    ):
        (tmp_path / "archsearch.json").write_text(json.dumps(told))
        with pytest.raises(ExportError, match=words):
            load(tmp_path)


def test_a_task_whose_parameters_are_not_recorded_is_not_guessed(of_tasks, copied):
    folder = copied(of_tasks)
    config = json.loads((folder / "config.json").read_text())
    for task in config["tasks"].values():
        del task["params"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).task is None

"""From what a person names to a directory: all that is there, or nothing."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from archsearch.errors import ArchsearchError, CorpusError, ExportError, RunError, SpaceError
from archsearch.export import load
from archsearch.export.architecture import weights
from archsearch.export.folder import MANIFEST, whole
from archsearch.export.native.nemotron_h import NemotronH
from archsearch.export.vocabulary import tokenizer_files
from archsearch.export.write import write, write_pattern
from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.mup import Base
from archsearch.report.export import Asked, export_other, export_run
from archsearch.scale import checkpoint
from archsearch.scale.parallel import World
from archsearch.scale.tokens import keep
from archsearch.space_yaml import dump
from archsearch.space_yaml import load as load_space
from archsearch.train import generator
from tests.export.models import ATTENTION, GENOMES, MAMBA, SWIGLU, TRANSFORMERS, named, origin
from tests.search.helpers import searched

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SPACE = """\
version: 1
name: several
model:
  d_model: 16
  stack: [{pattern: [{mixer: [{attention: {heads: 2}}, none]}, {ffn: {swiglu: {mult: [1, 2]}}}]}]
objectives: [{maximize: score}, {minimize: params}]
tasks:
  use:
    - mad/in-context-recall: {vocab: 8, seq_len: 16}
    - mad/compression: {vocab: 8, seq_len: 16}
recipe: {steps: 4, evals: 2, batch: 4, eval_rows: 16}
search: {trials: 4}
"""


def asked(kind="auto", **given):
    named_options = {"task": None, "tokenizer": "", "force": False, **given}
    return Asked(format=kind, **named_options)


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished search: its study and its directory."""
    folder = tmp_path_factory.mktemp("runs") / "several"
    return searched(folder, SPACE), folder


@pytest.fixture
def unchecked(monkeypatch):
    """Nothing is loaded again, which takes seconds and is not what the test is about."""
    monkeypatch.setattr("archsearch.export.write.check", lambda *written: None)


def stored(folder):
    """The weights in a directory."""
    return load_file(folder / "model.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.fixture
def trained(tmp_path):
    """What `archsearch scale` leaves, and the model that it trained."""
    genome, base = Genome(32, (MAMBA, SWIGLU)), Base(16, 1)

    def make(vocab=256, step=7):
        model = build(genome, vocab, generator=generator("scaled"), base=base).eval()
        about = {"genome": genome.to_json(), "base": asdict(base), "recipe": {}, "settings": {}}
        mark = {"step": step, "loss": 2.0, "held_out": 1.5, "seconds": 1.0}
        state = {"step": step, "about": about, "marks": [mark]}
        checkpoint.save(tmp_path / "w32-d2" / "winner", model, [], state, World())
        return tmp_path / "w32-d2", model

    return make


@TRANSFORMERS
def test_a_space_of_one_member_becomes_a_model_of_text(tmp_path):
    (tmp_path / "one.yaml").write_text(dump(GENOMES["hybrid"]))
    target = tmp_path / "out"
    export_other(str(tmp_path / "one.yaml"), target, asked(), quiet())
    told = json.loads((target / MANIFEST).read_text())
    assert {told["kind"], told["key"]} == {"hf", GENOMES["hybrid"].key}
    assert sorted(told["files"]) == sorted(p.name for p in target.iterdir() if p.name != MANIFEST)
    assert Genome.from_json(told["genome"]) == GENOMES["hybrid"]
    card = (target / "README.md").read_text()
    assert "random weights" in card
    assert "architecture.svg" in card
    assert str(tmp_path) not in card
    modes = {path.stat().st_mode for path in target.iterdir()}
    assert len(modes) == 1


def test_a_training_of_scale_becomes_one_file_with_its_factors_in_it(trained, tmp_path):
    folder, model = trained()
    export_other(str(folder), tmp_path / "out", asked("torch"), quiet())
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.py", "model.yaml", "model.safetensors", MANIFEST,
    }  # fmt: skip
    assert same(stored(tmp_path / "out"), weights(model))
    assert load_space(str(tmp_path / "out" / "model.yaml")).space.replay({}) == model.genome
    readout = stored(tmp_path / "out")["readout.weight"]
    torch.testing.assert_close(readout, model.readout.weight * model.logit_multiplier)
    assert model.logit_multiplier == 0.5


def test_the_tokenizer_must_be_that_of_the_training(trained, tmp_path):
    folder, _ = trained(vocab=300)
    with pytest.raises(ExportError, match=r"has 256 tokens, the model in .* 300; name the one"):
        export_other(str(folder), tmp_path / "out", asked(), quiet())
    assert not (tmp_path / "out").exists()


def test_a_run_gives_what_its_tasks_trained(run, tmp_path, unchecked):
    study, folder = run
    export_run(study, folder, "best", tmp_path / "yaml", asked(), quiet())
    recall = load(tmp_path / "yaml", "mad/in-context-recall")
    export_run(study, folder, "best", tmp_path / "file", asked("torch"), quiet())
    assert same(stored(tmp_path / "file"), weights(recall))
    code = asked("torch", task="mad/compression")
    export_run(study, folder, "best", tmp_path / "code", code, quiet())
    assert '"readout": "code"' in (tmp_path / "code" / "model.py").read_text()
    with pytest.raises(ExportError, match="is no language model"):
        export_run(
            study, folder, "best", tmp_path / "x", asked("hf", task="mad/compression"), quiet()
        )
    with pytest.raises(ExportError, match="did you mean 'mad/compression'"):
        export_run(
            study, folder, "best", tmp_path / "x", asked("hf", task="mad/compresion"), quiet()
        )
    assert not (tmp_path / "x").exists()


@TRANSFORMERS
def test_the_tokenizer_beside_a_training_goes_with_it(trained, tmp_path, unchecked):
    tokens = json.loads(tokenizer_files("byte", 256, 0)["tokenizer.json"])
    tokens["model"]["vocab"] |= {f"more {i}": i for i in range(256, 300)}
    folder, _ = trained(vocab=300)
    (tmp_path / "mine.json").write_text(json.dumps(tokens))
    keep(str(tmp_path / "mine.json"), folder)
    export_other(str(folder), tmp_path / "out", asked(), quiet())
    kept = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert kept["model"]["vocab"] == tokens["model"]["vocab"]


@TRANSFORMERS
def test_a_model_of_a_task_has_no_tokenizer_and_says_so(run, tmp_path, unchecked):
    study, folder = run
    asking = asked("hf", task="mad/in-context-recall")
    export_run(study, folder, "best", tmp_path / "out", asking, quiet())
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "there is no text" in card
    assert "accuracy on mad/in-context-recall" in card
    assert "accuracy on mad/compression" not in card, "other weights have that"
    assert re.search(r"on held-out rows \(in the (search|finals), first (fresh )?seed\)", card)
    assert "with embeddings" in card


@pytest.mark.parametrize("kind", ["auto", "yaml", "pattern"])
def test_a_task_is_refused_where_it_means_nothing(run, tmp_path, kind):
    study, folder = run
    with pytest.raises(ExportError, match="leave --task mad/copying out"):
        export_run(study, folder, "best", tmp_path / "x", asked(kind, task="mad/copying"), quiet())
    with pytest.raises(ExportError, match="leave --task mad/copying out"):
        export_other("gemma", tmp_path / "x", asked(kind, task="mad/copying"), quiet())
    assert not (tmp_path / "x").exists()


def test_a_directory_of_trainings_lists_them(trained, tmp_path):
    folder, _ = trained()
    with pytest.raises(RunError, match=rf"models in it: {folder / 'winner'}"):
        export_other(str(tmp_path), tmp_path / "out", asked(), quiet())


@pytest.mark.parametrize("kind", ["pattern", "yaml", "torch"])
@pytest.mark.parametrize("trial", ["best", "front"])
def test_an_export_says_once_what_to_do_next(run, tmp_path, unchecked, monkeypatch, kind, trial):
    study, folder = run
    monkeypatch.setattr("archsearch.export.write.pattern", lambda genome: "M-")
    console = Console(file=io.StringIO())
    export_run(study, folder, trial, tmp_path / "out", asked(kind), console)
    assert console.file.getvalue().count("next: ") == 1


def test_the_front_becomes_a_directory_for_each_of_its_trials(run, tmp_path):
    study, folder = run
    export_run(study, folder, "front", tmp_path / "front", asked(), quiet())
    names = {f"trial-{record.index}" for record in study.front()}
    assert {p.name for p in (tmp_path / "front").iterdir()} == names
    for record in study.front():
        place = tmp_path / "front" / f"trial-{record.index}" / "model.yaml"
        assert load_space(str(place)).space.replay({}) == record.genome
    with pytest.raises(ExportError, match="is not empty"):
        export_run(study, folder, "front", tmp_path / "front", asked(), quiet())


def test_one_of_the_front_that_does_not_fit_leaves_the_others(run, tmp_path, monkeypatch):
    study, folder = run
    first, *others = sorted(study.front(), key=lambda record: record.index)
    assert others

    def pattern(genome, target, *, force):
        if genome == first.genome:
            raise ExportError("layer 1 does not fit")
        return write_pattern(genome, target, force=force)

    monkeypatch.setattr("archsearch.report.export.write_pattern", pattern)
    why = f"^trial {first.index} was not written: layer 1 does not fit$"
    with pytest.raises(ExportError, match=why):
        export_run(study, folder, "front", tmp_path / "front", asked("pattern"), quiet())
    names = {f"trial-{record.index}" for record in others}
    assert {p.name for p in (tmp_path / "front").iterdir()} == names


@pytest.mark.parametrize(
    ("source", "kind", "error", "words"),
    [
        ("quickstart", "auto", SpaceError, "144 architectures, not one"),
        ("nowhere", "auto", SpaceError, "does not exist and is no shipped space"),
        (".", "auto", RunError, "holds no run"),
        ("universal_transformer", "native", ExportError, "loop has no equivalent"),
        ("universal_transformer", "pattern", ExportError, "loop is none of M"),
    ],
)
def test_a_source_that_is_none_is_refused(source, kind, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        export_other(source, tmp_path / "out", asked(kind), quiet())
    assert list(tmp_path.iterdir()) == []


NEMOTRON = Genome(
    32, (MAMBA, Gene.of("attention", heads=2, pos="none"), Gene.of("swiglu", act="relu2"))
)  # fmt: skip


def told(genome, kind, folder):
    """Export a genome and return what is printed."""
    (folder / "one.yaml").write_text(dump(genome))
    console = Console(file=io.StringIO())
    export_other(str(folder / "one.yaml"), folder / "out", asked(kind), console)
    return console.file.getvalue()


@TRANSFORMERS
@pytest.mark.parametrize("damaged", [False, True])
def test_a_published_architecture_has_its_tokenizer_and_is_compared(damaged, tmp_path, monkeypatch):
    if damaged:  # as a mistake in the writing would
        swapped = {"q_proj": "k_proj", "k_proj": "q_proj"}
        of = NemotronH.weights

        def mistaken(self, source):
            right = of(self, source)
            return {".".join(swapped.get(p, p) for p in n.split(".")): t for n, t in right.items()}

        monkeypatch.setattr(NemotronH, "weights", mistaken)
        with pytest.raises(ExportError, match="the logits of what was written are off"):
            told(NEMOTRON, "native", tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["one.yaml"]
        return
    assert "(as NemotronH, random weights)" in told(NEMOTRON, "native", tmp_path)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", MANIFEST} <= names


def test_a_file_for_llama_cpp_is_compared(tmp_path):
    pytest.importorskip("gguf", reason="gguf needs the extra gguf")
    pytest.importorskip("xllamacpp", reason="xllamacpp needs the extra gguf")
    told(NEMOTRON, "gguf", tmp_path)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model.gguf", MANIFEST}


def test_a_pattern_is_printed_and_needs_no_weights(tmp_path):
    assert "(M*-)" in told(NEMOTRON, "pattern", tmp_path)
    assert (tmp_path / "out" / "pattern.txt").read_text() == "M*-\n"
    assert "weights" not in json.loads((tmp_path / "out" / MANIFEST).read_text())


def test_a_tokenizer_that_is_none_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="unknown tokenizer"):
        export_other("transformer_pp", tmp_path / "out", asked(tokenizer="nothing"), quiet())
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ArchsearchError, match=r"no tokenizer\.json"):
        tokenizer_files(str(tmp_path / "broken.json"), 256, 0)


@pytest.mark.parametrize("damage", ["newer", "truncated", "other", "no state"])
def test_a_damaged_training_is_refused(trained, tmp_path, damage):
    folder, _ = trained()
    (step,) = (folder / "winner").iterdir()
    state = json.loads((step / "state.json").read_text())
    if damage == "newer":
        (step / "state.json").write_text(json.dumps(state | {"format": 99}))
    if damage == "truncated":
        (step / "model.safetensors").write_bytes((step / "model.safetensors").read_bytes()[:500])
    if damage == "other":
        state["about"]["genome"] = Genome(32, (ATTENTION, SWIGLU)).to_json()
        (step / "state.json").write_text(json.dumps(state))
    if damage == "no state":
        (step / "state.json").unlink()
    with pytest.raises(ExportError, match="step-00000007"):
        export_other(str(folder), tmp_path / "out", asked(), quiet())
    assert not (tmp_path / "out").exists()


def fill_with(text):
    def fill(target, *, force):
        with whole(target, {"kind": "test"}, force=force) as folder:
            (folder / "a.txt").write_text(text)
            (folder / f"{text}.txt").write_text(text)
            assert text != "half", "a failure in the middle"

    return fill


def test_a_directory_is_whole_or_as_it_was(tmp_path):
    target = tmp_path / "deep" / "out"
    fill_with("one")(target, force=False)
    assert {p.name for p in target.iterdir()} == {"a.txt", "one.txt", MANIFEST}
    with pytest.raises(ExportError, match="--force replaces it"):
        fill_with("two")(target, force=False)
    (target / "mine.txt").write_text("mine")
    with pytest.raises(AssertionError, match="in the middle"):
        fill_with("half")(target, force=True)
    assert (target / "a.txt").read_text() == "one"
    fill_with("two")(target, force=True)
    assert {p.name for p in target.iterdir()} == {"a.txt", "two.txt", "mine.txt", MANIFEST}
    assert list(target.parent.iterdir()) == [target]


def test_a_directory_that_was_not_there_does_not_stay(tmp_path):
    with pytest.raises(AssertionError, match="in the middle"):
        fill_with("half")(tmp_path / "a" / "b", force=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
def test_other_things_are_never_replaced(tmp_path, force):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(ExportError, match="nothing was written"):
            fill_with("one")(target, force=force)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_manifest_names_no_file_outside(tmp_path):
    fill_with("one")(tmp_path / "out", force=False)
    (tmp_path / "precious.txt").write_text("precious")
    told = json.loads((tmp_path / "out" / MANIFEST).read_text())
    told["files"].append("../precious.txt")
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(told))
    fill_with("two")(tmp_path / "out", force=True)
    assert (tmp_path / "precious.txt").is_file()


def test_what_is_not_finite_is_not_written(tmp_path):
    model = named("attention")
    with torch.no_grad():
        model.readout.weight[0, 0] = torch.nan
    with pytest.raises(ExportError, match="not finite"):
        write(origin(model), tmp_path / "out", "torch")
    assert list(tmp_path.iterdir()) == []

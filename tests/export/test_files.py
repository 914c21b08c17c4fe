"""An exported model is the trained one, bit for bit, and a damaged one is refused in words."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

import archsearch
from archsearch.errors import ArchsearchError, ExportError
from archsearch.export import export, load
from archsearch.genome import Gene, Genome
from archsearch.sections import Recipe
from archsearch.space_yaml import load as load_space
from archsearch.train import generator
from archsearch.trial import run_trial
from archsearch.weights import file_name, save_weights
from mad_tasks import Compression, InContextRecall, SelectiveCopying

RECALL = InContextRecall(vocab=8, seq_len=16)
TASKS = (RECALL, Compression(vocab=8, seq_len=16), SelectiveCopying(vocab=8, seq_len=16, copy=4))
RECIPE = Recipe(steps=3, evals=1, batch=4, eval_rows=8)
SHARED = Gene.of("shared_attention", "A", heads=2)
ATTENTION, SWIGLU = Gene.of("attention", heads=2), Gene.of("swiglu")
MAMBA = Gene.of("mamba2", d_state=8, head_dim=8)
GENOMES = {
    "plain": Genome(16, (ATTENTION, SWIGLU)),
    "tied": Genome(16, (ATTENTION, SWIGLU), tie_embeddings=True),
    "shared": Genome(16, (SHARED, MAMBA, SHARED, SWIGLU)),
    "shared mixer": Genome(16, (Gene.of("attention", "B", heads=2),) * 2 + (SWIGLU,)),
    "layer norm": Genome(24, (Gene.of("mamba2", d_state=8, head_dim=8),), norm="layer"),
    "tied and shared": Genome(16, (SHARED, ATTENTION, SHARED, SWIGLU), "layer", True),
}


@pytest.fixture(scope="module")
def trained():
    """The trial of a genome on three tasks, one of them with the code readout."""
    known = {}

    def train(name):
        if name not in known:
            known[name] = run_trial(GENOMES[name], TASKS, RECIPE, 0)
            assert known[name].status == "ok", known[name].why
        return known[name]

    return train


@pytest.fixture
def made(trained, tmp_path):
    """An export of a genome: its directory, the genome and the trained models by task."""

    def make(name="plain", target="model"):
        result = trained(name)
        save_weights(tmp_path / "weights", result, TASKS, "here")
        export(GENOMES[name], tmp_path / "weights", tmp_path / target)
        models = {run.task: m for run, m in zip(result.runs, result.models, strict=True)}
        return tmp_path / target, GENOMES[name], models

    return make


@pytest.mark.parametrize("name", GENOMES)
def test_the_loaded_model_answers_as_the_trained_one_to_the_last_bit(made, name):
    folder, genome, models = made(name)
    for task in TASKS:
        loaded, model = load(folder, task.name), models[task.name].eval()
        inputs_BT, _ = task.sample(4, generator("rows"))
        assert torch.equal(loaded(inputs_BT), model(inputs_BT))
        assert loaded.genome == genome
        assert not loaded.training
        assert {n: p.shape for n, p in loaded.named_parameters()} == {
            n: p.shape for n, p in model.named_parameters()
        }
        assert all(p.is_leaf and not p.is_meta for p in loaded.parameters())


def test_the_comparison_notices_a_single_bit(made):
    folder, _, models = made()
    file = folder / file_name(RECALL.name)
    weights = load_file(file)
    weights["readout.weight"].view(torch.int32)[0, 0] ^= 1
    save_file(weights, file)
    inputs_BT, _ = RECALL.sample(64, generator("rows"))
    assert not torch.equal(load(folder)(inputs_BT), models[RECALL.name].eval()(inputs_BT))


@pytest.mark.parametrize("name", GENOMES)
def test_decoding_goes_on_after_loading(made, name):
    folder, _, _ = made(name)
    model = load(folder, RECALL.name)
    inputs_BT, _ = RECALL.sample(2, generator("rows"))
    decoding = model.start(2, inputs_BT.shape[1])
    with torch.no_grad():
        steps = [model.step(token_B, decoding) for token_B in inputs_BT.T]
        whole_BTV = model(inputs_BT)
    torch.testing.assert_close(torch.stack(steps, 1), whole_BTV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GENOMES)
def test_model_yaml_is_a_space_with_one_member_and_that_is_the_genome(made, name):
    folder, genome, _ = made(name)
    space = load_space(str(folder / "model.yaml")).space
    assert space.size == 1
    assert space.replay({}) == genome


def test_the_first_weights_are_loaded_unless_others_are_named(made):
    folder, _, models = made()
    inputs_BT, _ = RECALL.sample(2, generator("rows"))
    expected = models[RECALL.name].eval()(inputs_BT)
    assert torch.equal(archsearch.load(folder)(inputs_BT), expected)
    assert torch.equal(archsearch.load(str(folder), RECALL.name)(inputs_BT), expected)
    with pytest.raises(ExportError, match="did you mean 'mad/compression'"):
        load(folder, "mad/compresion")


def test_two_tasks_of_one_name_keep_their_own_weights(tmp_path):
    tasks = (RECALL, InContextRecall(vocab=12, seq_len=16))
    result = run_trial(GENOMES["plain"], tasks, RECIPE, 0)
    save_weights(tmp_path / "weights", result, tasks, "here")
    export(GENOMES["plain"], tmp_path / "weights", tmp_path / "model")
    vocabs = [load(tmp_path / "model", run.task).vocab for run in result.runs]
    assert vocabs == [8, 12]


def test_of_several_seeds_the_first_is_kept(tmp_path):
    result = run_trial(GENOMES["plain"], (RECALL,), RECIPE.model_copy(update={"seeds": 2}), 0)
    save_weights(tmp_path / "weights", result, (RECALL,), "here")
    export(GENOMES["plain"], tmp_path / "weights", tmp_path / "model")
    inputs_BT, _ = RECALL.sample(2, generator("rows"))
    first, second = (model.eval()(inputs_BT) for model in result.models)
    assert torch.equal(load(tmp_path / "model")(inputs_BT), first)
    assert not torch.equal(first, second)


def test_no_file_holds_a_pickle(made):
    folder, _, _ = made()
    assert {path.suffix for path in folder.iterdir()} == {".yaml", ".json", ".safetensors"}
    for path in folder.glob("*.safetensors"):
        length = int.from_bytes(path.read_bytes()[:8], "little")
        json.loads(path.read_bytes()[8 : 8 + length])


def test_a_genome_without_weights_is_exported_and_says_so(tmp_path):
    export(GENOMES["plain"], None, tmp_path / "model")
    assert load_space(str(tmp_path / "model" / "model.yaml")).space.size == 1
    with pytest.raises(ExportError, match="without weights"):
        load(tmp_path / "model")


@pytest.mark.parametrize("force", [False, True])
def test_nothing_that_is_not_an_export_is_ever_replaced(made, tmp_path, force):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for target in (mine, tmp_path / "file"):
        with pytest.raises(ExportError, match="nothing was written") as caught:
            export(GENOMES["plain"], None, target, force=force)
        assert caught.value.exit_code == 4
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_an_earlier_export_is_replaced_when_asked_and_other_files_stay(made):
    folder, _, _ = made("plain")
    (folder / "notes.txt").write_text("mine")
    before = (folder / "config.json").read_bytes()
    other = GENOMES["tied"]
    with pytest.raises(ExportError, match="--force replaces it"):
        export(other, None, folder)
    assert (folder / "config.json").read_bytes() == before
    export(other, None, folder, force=True)
    assert {path.name for path in folder.iterdir()} == {"model.yaml", "config.json", "notes.txt"}
    assert load_space(str(folder / "model.yaml")).space.replay({}) == other


def test_an_empty_directory_is_filled_and_missing_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        export(GENOMES["plain"], None, target)
        assert (target / "model.yaml").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export(GENOMES["plain"], None, tmp_path / "file" / "model")


def test_a_failed_export_leaves_nothing_behind(made, tmp_path):
    made()
    (tmp_path / "weights" / file_name(RECALL.name)).unlink()
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ExportError, match="cannot be written"):
        export(GENOMES["plain"], tmp_path / "weights", tmp_path / "other")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


DAMAGES = {
    "newer format": (lambda c, t: c.update(format=99), "format 99"),
    "no format": (lambda c, t: c.pop("format"), "damaged"),
    "no genome": (lambda c, t: c.pop("genome"), "damaged"),
    "no tasks": (lambda c, t: c.pop("tasks"), "damaged"),
    "no real genome": (lambda c, t: c.update(genome="attention"), "damaged"),
    "no real tasks": (lambda c, t: c.update(tasks=[1]), "damaged"),
    "no vocab": (lambda c, t: t.pop("vocab"), "damaged"),
    "no real vocab": (lambda c, t: t.update(vocab="many"), "damaged"),
    "other vocab": (lambda c, t: t.update(vocab=9), "belong to another genome"),
    "no file": (lambda c, t: t.update(file="absent.safetensors"), "absent"),
    "newer genome": (lambda c, t: c["genome"].update(format=99), "format 99"),
    "other width": (lambda c, t: c["genome"].update(d_model=24), "belong to another genome"),
    "tied": (lambda c, t: c["genome"].update(tie_embeddings=True), "belong to another genome"),
    "a gene less": (lambda c, t: c["genome"]["genes"].pop(), "belong to another genome"),
    "unknown block": (
        lambda c, t: c["genome"]["genes"][0].update(block="atention"), "did you mean 'attention'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_what_does_not_fit_is_refused_with_its_place(made, name):
    folder, _, _ = made()
    change, message = DAMAGES[name]
    config = json.loads((folder / "config.json").read_text())
    change(config, config["tasks"][RECALL.name])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArchsearchError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert caught.value.exit_code in (2, 4)


@pytest.mark.parametrize("name", ["config.json", file_name(RECALL.name)])
def test_a_truncated_file_is_refused(made, name):
    folder, _, _ = made()
    whole = (folder / name).read_bytes()
    chosen = random.Random(0)
    for end in {0, 1, 8, len(whole) - 2, *(chosen.randrange(len(whole) - 1) for _ in range(30))}:
        (folder / name).write_bytes(whole[:end])
        with pytest.raises(ExportError) as caught:
            load(folder)
        assert name in str(caught.value)
    (folder / name).write_bytes(whole)
    load(folder)


def test_what_is_no_export_at_all_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ExportError, match=r"config\.json"):
            load(place)

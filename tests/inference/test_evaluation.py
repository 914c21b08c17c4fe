"""Scores: bits per byte of a source of known entropy, accuracy along what a task names."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch

from archsearch.errors import CorpusError, ModelError
from archsearch.inference import load
from archsearch.inference.evaluation import task_scores, text_score
from archsearch.inference.harness import harness
from archsearch.testing.text import ALPHABET
from archsearch.train import evaluate, generator
from mad_tasks import TASKS, NoisyInContextRecall
from tests.inference.conftest import SOURCE, hugging_face


class Knowing(torch.nn.Module):
    """Knows the source of a text: no model can do better."""

    def __init__(self):
        super().__init__()
        self.device = torch.device("cpu")
        ids = torch.tensor(list(ALPHABET[: len(SOURCE.chances)]))
        self.table = torch.full((256, 256), -20.0)
        self.table[ids[:, None], ids] = SOURCE.chances.log().float()

    def forward(self, tokens_BT):
        return self.table[tokens_BT]


def test_the_best_model_of_a_text_scores_its_entropy(of_text):
    corpus = of_text[2]
    for context in (16, 200):
        score = text_score(Knowing(), corpus, context, 1000)
        assert abs(score.bits - SOURCE.entropy_rate) < 4 * score.error + 0.01
        assert score.windows == (len(corpus.validation) - 1) // context
    few, many = (text_score(Knowing(), corpus, 16, n).error for n in (20, 180))
    assert 2 < few / many < 4.5, "the error falls with the root of the windows"


def test_every_context_is_scored_on_the_same_text(of_text):
    one, two, whole = (text_score(Knowing(), of_text[2], n, 8, 64) for n in (16, 32, 64))
    assert [score.windows for score in (one, two, whole)] == [32, 16, 8]
    assert one.bits == pytest.approx(whole.bits, rel=1e-5), "what it knows needs no context"
    assert two.bits == pytest.approx(whole.bits, rel=1e-5)


def test_a_trained_model_lies_between_its_source_and_chance(of_text):
    loaded = load(of_text[0])
    score = text_score(loaded.model, of_text[2], 32, 64)
    assert SOURCE.entropy_rate < score.bits < 8
    with pytest.raises(CorpusError, match="a shorter --context"):
        text_score(loaded.model, of_text[2], 10**6, 64)


def test_logits_that_are_not_finite_are_no_score(of_text):
    model = Knowing()
    model.table[:] = math.nan
    with pytest.raises(ModelError, match="not finite"):
        text_score(model, of_text[2], 16, 8)


def test_a_task_is_scored_as_training_scored_it_and_along_its_axes(of_tasks):
    loaded = load(of_tasks)
    scores = list(task_scores(loaded.model, loaded.task, 64))
    assert not loaded.model.training
    rows = loaded.task.sample(64, generator("eval", 0, repr(loaded.task)))
    assert (scores[0].accuracy, scores[0].error) == evaluate(loaded.model, rows)
    assert [(s.axis, s.value, s.trained) for s in scores] == [
        ("", None, True), ("seq_len", 16, True), ("seq_len", 32, False), ("seq_len", 64, False),
        ("seq_len", 128, False),
    ]  # fmt: skip
    assert [s.length for s in scores[1:]] == [15, 31, 63, 127]
    assert scores[1].accuracy == scores[0].accuracy
    assert all(0 <= s.accuracy <= 1 and s.error > 0 and s.chance == 1 / 4 for s in scores)


class Blind(torch.nn.Module):
    """Says the same everywhere."""

    def __init__(self, task):
        super().__init__()
        self.device = torch.device("cpu")
        self.vocab, self.readout_kind = task.vocab, task.readout

    def forward(self, tokens_BT):
        return torch.eye(self.vocab)[torch.full_like(tokens_BT, self.vocab // 2)]


@pytest.mark.parametrize("name", TASKS)
def test_every_axis_keeps_to_the_ids_of_the_model(name):
    task = TASKS[name]()
    scores = list(task_scores(Blind(task), task, 8))
    axes = {score.axis for score in scores}
    assert "vocab" not in axes
    assert axes <= {"", *task.axes}
    if name.endswith("noisy-in-context-recall"):
        assert {s.value for s in scores if s.axis == "frac_noise"} == {0.2, 0.4, 0.6, 0.8}
    with pytest.raises(ModelError, match="ids, the model"):
        list(task_scores(Blind(NoisyInContextRecall(vocab=48)), TASKS["mad/memorization"](), 8))


@pytest.fixture
def folder(of_text, tmp_path):
    return hugging_face(tmp_path / "hf", of_text[1])


def test_the_harness_needs_its_package_and_a_directory_that_it_reads(folder, of_tasks, monkeypatch):
    with pytest.raises(ModelError, match="--format hf"):
        harness(of_tasks, ["piqa"])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ModelError, match="pip install lm-eval"):
        harness(folder, ["piqa"])


def test_the_harness_gets_the_directory_and_gives_scores(folder, monkeypatch):
    asked = {}

    def simple_evaluate(**given):
        asked.update(given)
        if given["tasks"] == ["broken"]:
            raise OSError("no data")
        scores = {"alias": "piqa", "acc,none": 0.6, "acc_stderr,none": 0.01, "n,none": 7.0}
        return {"results": {"piqa": scores}}

    class TaskManager:
        def __init__(self, include_path=None):
            asked["path"] = include_path

        def match_tasks(self, names):
            return [name for name in names if name in ("piqa", "broken")]

    package, tasks = types.ModuleType("lm_eval"), types.ModuleType("lm_eval.tasks")
    package.simple_evaluate, tasks.TaskManager = simple_evaluate, TaskManager
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    scores = harness(folder, ["piqa"], tasks=folder)
    assert [(s.task, s.metric, s.value, s.error) for s in scores] == [
        ("piqa", "acc", 0.6, 0.01), ("piqa", "n", 7.0, None)
    ]  # fmt: skip
    assert asked["model_args"]["pretrained"] == str(folder)
    assert asked["model_args"]["trust_remote_code"] is True
    assert asked["path"] == str(folder)
    with pytest.raises(ModelError, match="no task 'piqaa'"):
        harness(folder, ["piqa", "piqaa"])
    with pytest.raises(ModelError, match=r"OSError: no data.*HF_HOME"):
        harness(folder, ["broken"])

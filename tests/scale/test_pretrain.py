"""Training on text: to the entropy of its source, resumable, the same in one process or many."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch

from archsearch.errors import Diverged, RunError
from archsearch.genome import Gene, Genome
from archsearch.kernels.dispatch import using
from archsearch.model import build
from archsearch.mup import Base
from archsearch.scale import checkpoint
from archsearch.scale.corpus import Corpus
from archsearch.scale.parallel import join_world
from archsearch.scale.pretrain import Mark, Pretraining, Settings, train
from archsearch.sections import Recipe
from archsearch.testing.text import Markov
from archsearch.train import generator

HYBRID = Genome(
    32,
    (
        Gene.of("attention", heads=2, share="A"),
        Gene.of("swiglu"),
        Gene.of("attention", heads=2, share="A"),
        Gene.of("mamba2", head_dim=16),
        Gene.of("mod", of=(Gene.of("swiglu"),), capacity=0.5),
        Gene.of("peer", keys=16, heads=2, top_k=4, key_width=8),
    ),
    tie_embeddings=True,
)
"""Shared weights, tied embeddings, a wrapper and tables."""
SOURCE = Markov.draw(8, generator("test", "source"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "markov.txt").write_bytes(SOURCE.sample(60_000, generator("test", "text")))
    return Corpus.open([str(folder / "markov.txt")], "byte", folder / "cache")


def pretraining(corpus, genome=HYBRID, world=None, **given):
    recipe = Recipe(steps=12, batch=8, lr=1e-2, evals=3)
    model = build(genome, corpus.vocab, generator=generator("start"), base=Base(16, 3))
    return Pretraining(model, corpus, recipe, Settings(context=32, held_out=8, **given), world)


def losses(training, steps):
    return [float(training.descend().loss) for _ in range(steps)]


def test_a_model_learns_its_source_to_the_entropy_and_not_below(corpus):
    genome = Genome(32, (Gene.of("short_conv"), Gene.of("swiglu")))
    model = build(genome, corpus.vocab, generator=generator("start"))
    recipe = Recipe(steps=200, batch=16, lr=1e-2, evals=1)
    training = Pretraining(model, corpus, recipe, Settings(context=64, held_out=200))
    train(training)
    bits = corpus.bits_per_byte(training.marks[-1].held_out)
    assert SOURCE.entropy_rate - 0.02 < bits < SOURCE.entropy_rate + 0.06
    assert corpus.order0 > bits + 0.2, "the text tells nothing: its order-0 entropy is its rate"


def test_a_training_that_was_put_down_goes_on_to_the_same_bits(corpus, tmp_path):
    whole = pretraining(corpus)
    expected = losses(whole, 12)
    half = pretraining(corpus)
    losses(half, 5)
    half.mark(0.0, 1.0)
    half.look(0.0)
    half.save(tmp_path, {})
    other = pretraining(corpus)
    other.restore(*checkpoint.latest(tmp_path))
    assert other.step == 5
    assert (other.marks, other.probes) == (half.marks, half.probes)
    assert losses(other, 7) == expected[5:]
    for a, b in zip(whole.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_in_parts_is_the_step(corpus):
    assert losses(pretraining(corpus, accumulate=4), 4) == pytest.approx(
        losses(pretraining(corpus), 4), abs=1e-4
    )


def test_bfloat16_stays_near_and_keeps_weights_in_float32(corpus):
    rough, exact = pretraining(corpus, dtype="bfloat16"), pretraining(corpus)
    assert losses(rough, 6) == pytest.approx(losses(exact, 6), rel=0.03)
    assert {p.dtype for p in rough.model.parameters()} == {torch.float32}
    assert rough.evaluate() == pytest.approx(exact.evaluate(), rel=0.03)


def test_looking_changes_nothing(corpus):
    looked, alone = pretraining(corpus), pretraining(corpus)
    for _ in range(4):
        looked.look(float(looked.descend().loss))
        looked.evaluate()
    losses(alone, 4)
    for a, b in zip(looked.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_training_that_diverges_says_so_and_keeps_its_last_checkpoint(corpus, tmp_path):
    training = pretraining(corpus)
    losses(training, 4)
    training.save(tmp_path, {})
    with torch.no_grad():
        next(training.model.parameters()).fill_(math.nan)
    loss = float(training.descend().loss)
    for notice in (training.look, lambda loss: training.mark(loss, 1.0)):
        with pytest.raises(Diverged, match=r"the loss is nan after step 5 at learning rate 0\.01"):
            notice(loss)
    pretraining(corpus).restore(*checkpoint.latest(tmp_path))


def test_a_loss_far_above_guessing_is_divergence_too(corpus):
    training = pretraining(corpus)
    with torch.no_grad():
        training.model.readout.weight.mul_(100)
    with pytest.raises(Diverged, match=r"that of guessing 5\.55, after step 0"):
        training.mark(0.0, 1.0)
    training.descend()
    assert training.mark(0.0, 1.0).held_out > 11, "it began there"


def test_the_best_checkpoint_is_kept_beside_the_last_ones(corpus, tmp_path):
    training = pretraining(corpus)
    for held_out in (2.0, 1.0, 3.0, 4.0, 5.0):
        training.step += 1
        training.marks.append(Mark(training.step, held_out, held_out, 1.0))
        training.save(tmp_path, {})
    names = ["step-00000002", "step-00000004", "step-00000005"]
    assert [p.name for p in sorted(tmp_path.iterdir())] == names
    assert checkpoint.latest(tmp_path)[1]["step"] == 5


def test_checkpoints_are_whole_or_not_there(corpus, tmp_path, monkeypatch):
    training = pretraining(corpus)
    for _ in range(3):
        losses(training, 1)
        training.save(tmp_path, {})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]

    def full(*given):
        raise OSError(28, "No space left on device")

    losses(training, 1)
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match=r"No space left on device.*after step-00000003, which is k"):
        training.save(tmp_path, {})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]
    assert checkpoint.latest(tmp_path)[1]["step"] == 3


def test_a_checkpoint_of_another_model_or_version_and_a_damaged_one_are_named(corpus, tmp_path):
    training = pretraining(corpus)
    losses(training, 1)
    training.save(tmp_path, {})
    found, state = checkpoint.latest(tmp_path)
    other = pretraining(corpus, dataclasses.replace(HYBRID, genes=HYBRID.genes[:2]))
    with pytest.raises(RunError, match="step-00000001 is damaged or belongs to another model"):
        other.restore(found, state)
    weights = found / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match="step-00000001 is damaged or belongs to another model"):
        training.restore(found, state)
    (found / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(RunError, match="has format 99; this version reads format 1"):
        checkpoint.latest(tmp_path)
    (found / "state.json").write_text("{")
    with pytest.raises(RunError, match="is damaged; remove it"):
        checkpoint.latest(tmp_path)


PROCESS = """
import sys, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from archsearch.scale.corpus import Corpus
from archsearch.scale.parallel import join_world
from tests.scale.test_pretrain import course
text, folder = map(Path, sys.argv[1:])
with join_world() as world:
    corpus = Corpus.open([str(text)], "byte", text.parent / "cache")
    for shard in (False, True):
        found = course(corpus, folder / f"shard-{shard}", 8, world, shard=shard)
        if world.first:
            print(json.dumps([world.size, found]))
"""


def course(corpus, folder, steps, world=None, **given):
    """Train up to a step and save; losses, the one on held-out text last."""
    training = pretraining(corpus, world=world, accumulate=2, **given)
    if found := checkpoint.latest(folder):
        training.restore(*found)
    seen = losses(training, steps - training.step)
    seen.append(training.evaluate())
    training.look(0.0)
    training.save(folder, {})
    assert training.model.readout.weight is training.model.embedding.weight
    return seen


def test_two_processes_train_as_one_and_one_goes_on_where_two_stopped(corpus, tmp_path):
    text, script = tmp_path / "markov.txt", tmp_path / "process.py"
    text.write_bytes(SOURCE.sample(60_000, generator("test", "text")))
    script.write_text(PROCESS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         str(script), str(text), str(tmp_path)],
        capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    alone = course(corpus, tmp_path / "alone", 8)
    straight = course(corpus, tmp_path / "alone", 12)
    for shard, line in zip((False, True), done.stdout.splitlines()[-2:], strict=True):
        size, both = json.loads(line)
        assert size == 2
        assert both == pytest.approx(alone, abs=1e-4)
        more = course(corpus, tmp_path / f"shard-{shard}", 12)
        assert more == pytest.approx(straight, abs=1e-4)


def test_a_process_that_no_launcher_started_is_a_world_of_one():
    with join_world() as world:
        assert (world.first, world.size) == (True, 1)
        assert world.mean(torch.tensor(2.0)) == 2


def test_a_training_and_its_checkpoints_say_what_computed_each_op(corpus, tmp_path):
    training = pretraining(corpus)
    train(training, on_mark=lambda mark: training.save(tmp_path, {}))
    _, state = checkpoint.latest(tmp_path)
    every = dict.fromkeys(("ssd", "peer", "product_keys", "mod"), "torch")
    assert training.backends == state["backends"] == every
    with using("ssd:reference"):
        other = pretraining(corpus)
        other.restore(*checkpoint.latest(tmp_path))
        other.recipe = other.recipe.model_copy(update={"steps": 13})
        train(other)
    assert other.backends == {**every, "ssd": "reference+torch"}

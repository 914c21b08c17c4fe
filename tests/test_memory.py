"""Memory before training: bounds what a trial takes, refuses what is too much, disturbs nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from archsearch import memory, trial
from archsearch.errors import OutOfMemory
from archsearch.genome import Gene, Genome
from archsearch.memory import Alive, estimate, group_limits, machine_bytes, require_room
from archsearch.model import Model
from archsearch.rules import settle
from archsearch.sections import Recipe
from archsearch.space_yaml import load
from archsearch.train import batches_drawn
from archsearch.trial import CPU, run_trial
from mad_tasks import Compression, InContextRecall, Memorization

EVERYTHING = load("everything")
TASK = InContextRecall(vocab=16, seq_len=32)
RECIPE = Recipe(steps=2, evals=1, batch=16, eval_rows=64)
PAIR = (Gene.of("attention", heads=4), Gene.of("swiglu"))
GENOME = Genome(64, PAIR)
MIB = 2**20


def everything(seed):
    space = EVERYTHING.space
    genome = space.replay(space.sample(random.Random(seed)))
    return settle(space, genome, EVERYTHING.context)


def alive(genome, tasks=(TASK,), recipe=RECIPE):
    """The most bytes that are alive at a time while a trial is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "estimate", lambda *args: 0)
        with Alive([]) as count:
            result = run_trial(genome, tasks, recipe, seed=0)
    assert result.status == "ok"
    return count.peak


GENOMES = {
    "attention": GENOME,
    "mamba2": Genome(64, (Gene.of("mamba2", head_dim=16), Gene.of("swiglu"))),
    "moe": Genome(64, (PAIR[0], Gene.of("moe", experts=8, top_k=2))),
    "peer": Genome(64, (PAIR[0], Gene.of("peer", keys=32))),
    "sparse": Genome(16, (PAIR[0], Gene.of("peer", keys=256))),
    "mod": Genome(64, (PAIR[0], replace(Gene.of("mod", capacity=0.5), inner=PAIR))),
    **{f"everything {seed}": everything(seed) for seed in (1, 2, 6)},
}


@pytest.mark.parametrize("name", GENOMES)
def test_what_is_alive_in_a_trial_is_at_most_the_estimate_and_at_least_half_of_it(name):
    needed, real = estimate(GENOMES[name], (TASK,), RECIPE), alive(GENOMES[name])
    assert real <= needed * 1.05
    assert needed <= real * 2


def test_tasks_of_every_kind_and_several_seeds_are_counted():
    tasks = (Compression(vocab=16, seq_len=32), Memorization(vocab=512), TASK)
    recipe = RECIPE.model_copy(update={"seeds": 2, "z_loss": 1e-4})
    needed, real = estimate(GENOME, tasks, recipe), alive(GENOME, tasks, recipe)
    assert real <= needed <= real * 2


def test_a_training_more_is_its_weights_gradients_moments_and_rows():
    once, twice, thrice = (
        estimate(GENOME, (TASK,), RECIPE.model_copy(update={"seeds": seeds})) for seeds in (1, 2, 3)
    )
    model = Model(GENOME, TASK.vocab)
    row = sum(part.nbytes for part in TASK.sample(1, torch.Generator()))
    drawn = batches_drawn(RECIPE) * RECIPE.batch * row
    assert twice - once == thrice - twice == 16 * sum(p.numel() for p in model.parameters()) + drawn


def test_memory_grows_with_rows_in_proportion():
    def of(**more):
        return estimate(GENOME, (TASK,), RECIPE.model_copy(update=more))

    row = sum(part.nbytes for part in TASK.sample(1, torch.Generator()))
    steps = [of(batch=batch) - 4 * batch * row for batch in (1, 101, 201)]
    assert steps[2] - steps[1] == pytest.approx(steps[1] - steps[0], rel=1e-9)
    held_out = [of(eval_rows=rows) - rows * row for rows in (28, 78, 128, 1000)]
    assert held_out[2] - held_out[1] == held_out[1] - held_out[0] > 0
    assert held_out[3] == held_out[2]  # no more than 128 rows are evaluated at once


@pytest.mark.parametrize("name", ["attention", "moe", "everything 1", "everything 6"])
def test_a_trial_is_the_same_to_the_last_bit_with_and_without_it(monkeypatch, name):
    stream = torch.get_rng_state()
    measured = run_trial(GENOMES[name], (TASK,), RECIPE, seed=0)
    assert torch.equal(torch.get_rng_state(), stream)
    assert measured.memory == estimate(GENOMES[name], (TASK,), RECIPE)
    monkeypatch.setattr(trial, "estimate", lambda *args: 0)
    unmeasured = run_trial(GENOMES[name], (TASK,), RECIPE, seed=0)
    assert measured.runs == unmeasured.runs
    parameters = (list(r.models[0].parameters()) for r in (measured, unmeasured))
    for a, b in zip(*parameters, strict=True):
        assert torch.equal(a, b)


def test_a_trial_that_does_not_fit_ends_before_its_first_step(monkeypatch):
    needed = estimate(GENOME, (TASK,), RECIPE)
    monkeypatch.setattr(trial, "build", None)  # whoever builds a model for training fails
    monkeypatch.setattr(memory, "machine_bytes", lambda: needed - 1)
    result = run_trial(GENOME, (TASK,), RECIPE, seed=0)
    assert (result.status, result.runs, result.tokens) == ("oom", (), 0)
    assert result.memory == needed
    there = f"{needed / MIB:.3g} MiB"
    assert result.why == f"needs about {there}, this machine has {there}"
    monkeypatch.undo()
    monkeypatch.setattr(memory, "machine_bytes", lambda: needed)
    assert run_trial(GENOME, (TASK,), RECIPE, seed=0).status == "ok"


def test_weights_that_do_not_fit_are_never_made(monkeypatch):
    monkeypatch.setattr(Model, "to_empty", None)
    huge = Genome(8192, (Gene.of("moe", experts=256, mult=4.0),) * 4)
    for genome, task in ((huge, TASK), (Genome(65_536, PAIR), replace(TASK, vocab=2**24))):
        result = run_trial(genome, (task,), RECIPE, seed=0)
        assert result.status == "oom"
        assert result.why.startswith("needs about ")
        assert "GiB, this machine has " in result.why
        assert result.memory > machine_bytes()


@pytest.mark.parametrize("error", [RuntimeError("no"), MemoryError(), KeyError("x")])
def test_without_an_estimate_training_goes_on(monkeypatch, error):
    def broken(*args):
        raise error

    expected = run_trial(GENOME, (TASK,), RECIPE, seed=0)
    monkeypatch.setattr(trial, "estimate", broken)
    result = run_trial(GENOME, (TASK,), RECIPE, seed=0)
    assert (result.status, result.memory) == ("ok", None)
    assert result.runs == expected.runs


def test_alive_counts_each_storage_once_and_only_while_it_lives():
    known = torch.zeros(1000)
    with Alive([known]) as count:
        a = known * 2
        assert (count.now, count.peak) == (4000, 4000)
        b = a.view(10, 100).T[3:]
        known.add_(1)
        c = known.view(-1)[5:]
        a += 1
        assert count.now == 4000
        del a
        assert count.now == 4000  # b is a view of it
        d = (b + 1).sum()
        assert (count.now, count.peak) == (4004, 4000 + b.nbytes + 4)
        del b, c, d
    assert (count.now, count.peak) == (0, 4000 + 97 * 10 * 4 + 4)


def test_the_limits_of_all_enclosing_control_groups_count(tmp_path):
    for place, text in (("memory.max", "max\n"), ("a/memory.max", "5000\n"),
                        ("a/b/memory.max", "7000\n"), ("a/other/memory.max", "1\n")):  # fmt: skip
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert sorted(group_limits("0::/a/b\n", tmp_path)) == [5000, 7000]
    assert group_limits("0::/\n", tmp_path) == []
    assert group_limits("0::/seen/from/outside\n1:cpu:/a/b\n", tmp_path) == []
    assert group_limits("", tmp_path) == []


def test_version_one_of_control_groups_is_read_too(tmp_path):
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9000\n")
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text("4000\n")
    text = "11:cpu,cpuacct:/job\n4:hugetlb,memory:/job\n0::/\n"
    assert sorted(group_limits(text, tmp_path)) == [4000, 9000]
    assert group_limits("4:memory:/elsewhere\n", tmp_path) == [9000]


def test_the_memory_of_the_machine_is_plausible():
    assert 2**28 < machine_bytes() < 2**50


def test_what_does_not_fit_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(memory, "machine_bytes", lambda: 24 * 2**30)
    require_room(24 * 2**30, CPU)
    with pytest.raises(OutOfMemory) as caught:
        require_room(41 * 2**30, CPU)
    assert str(caught.value) == "needs about 41 GiB, this machine has 24 GiB"


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_a_process_grows_by_about_the_estimate():
    script = Path(__file__).parent.parent / "benchmarks" / "memory.py"
    names = ["mamba2-small", "sparse-peer-small"]
    command = [sys.executable, str(script), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["case"] for row in rows] == names
    assert all(0.5 < row["ratio"] < 2 for row in rows)
    assert not all(0.5 < 4 * row["weights"] / row["real"] < 2 for row in rows)

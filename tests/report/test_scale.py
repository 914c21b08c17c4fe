"""`archsearch scale` as a person meets it: the plan, the training, its end, and what goes wrong."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from archsearch.mup import Base, widened
from archsearch.report import scale as report
from archsearch.scale.plan import ScalePlan
from archsearch.scale.pretrain import train
from archsearch.scale.stability import Stability
from archsearch.sections import Recipe
from archsearch.space_yaml import load_genome
from archsearch.testing.text import Markov
from archsearch.train import generator
from tests.helpers import in_process

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

THREE = """\
model:
  d_model: 16
  stack:
    - pattern: [mixer: [mamba2: {head_dim: 16}], ffn: [swiglu], mixer: [attention: {heads: 2}]]
"""
SIZE = ("--width", "32", "--context", "32", "--set", "recipe.evals=3")


@pytest.fixture(scope="module")
def place(finished):
    source = Markov.draw(8, generator("test", "scale"))
    (finished / "text.txt").write_bytes(source.sample(40_000, generator("test", "text")))
    return finished


def scale(place, *args, source="runs/tiny"):
    return in_process("scale", source, *SIZE, "--text", "text.txt", *args, cwd=place)


def test_the_plan_is_shown_and_nothing_is_trained(place):
    done = scale(place, "--depth", "4", "--dry-run", "--out", "dry")
    assert done.returncode == 0, done.stderr
    for word in ("winner", "baseline", "parameters", "memory", "time", "learning rate", "decay"):
        assert word in done.stdout
    assert "block hidden" in done.stdout
    assert not (place / "dry").exists()


def test_the_winner_ends_beside_a_baseline_and_the_text_itself(place):
    done = scale(place, "--steps", "6")
    assert done.returncode == 0, done.stderr
    for word in (
        "winner",
        "baseline",
        "bytes by frequency",
        "xz",
        "the baseline; one seed of each",
    ):
        assert word in done.stdout
    (result,) = place.glob("runs/tiny/scale/w32-d*/result.json")
    told = json.loads(result.read_text())
    assert told["winner"]["tokens"] == told["baseline"]["tokens"] == 6 * 8 * 32
    assert told["baseline"]["params"] / told["winner"]["params"] == pytest.approx(1, abs=0.3)
    again = scale(place, "--steps", "6")
    assert again.returncode == 0
    assert "6/6" not in again.stdout, "it was trained again"
    assert json.loads(result.read_text())["winner"]["loss"] == told["winner"]["loss"]


def test_a_killed_training_goes_on_to_the_same_end(place):
    straight = scale(place, "--steps", "30", "--baseline", "none", "--out", "straight")
    assert straight.returncode == 0, straight.stderr
    command = [sys.executable, "-m", "archsearch", "scale", "runs/tiny", *SIZE, "--text",
               "text.txt", "--steps", "30", "--baseline", "none", "--out", "killed"]  # fmt: skip
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not list(place.glob("killed/winner/step-*")) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = scale(place, "--steps", "30", "--baseline", "none", "--out", "killed")
    assert done.returncode == 0, done.stderr
    results = [json.loads((place / p / "result.json").read_text()) for p in ("straight", "killed")]
    assert results[0]["winner"]["loss"] == results[1]["winner"]["loss"]


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--context", "5000"), 5, "a window of length 5000"),
        (("--text", "missing.txt"), 5, "missing.txt"),
        (("--tokenizer", "nonsense"), 5, "nonsense"),
        (("--lr", "1e9"), 2, "recipe.lr"),
        (("--trial", "999"), 3, "no finished trial '999'"),
    ],
)
def test_what_cannot_be_scaled_is_said_in_a_sentence(place, args, code, told):
    done = scale(place, *args, "--out", "wrong")
    assert (done.returncode, done.stderr.count("Traceback")) == (code, 0), done.stderr
    assert told in done.stderr
    assert not (place / "wrong" / "winner").exists()


def test_a_learning_rate_that_diverges_ends_in_a_sentence_and_keeps_a_checkpoint(place):
    wild = ("--lr", "10", "--scheme", "sp", "--set", "recipe.clip=0", "--set", "recipe.warmup=0.5")
    done = scale(place, *wild, "--steps", "30", "--baseline", "none", "--out", "wild")
    assert done.returncode == 1, done.stdout
    assert "winner diverged: " in done.stderr
    assert "try a lower learning rate with --lr" in done.stderr


def test_a_directory_that_cannot_be_made_is_said_before_anything_is_trained(place):
    (place / "file").write_text("")
    done = scale(place, "--out", "file/below")
    assert done.returncode == 5
    assert "file/text cannot be written" in done.stderr


def test_a_width_that_does_not_fit_the_heads_is_refused_with_those_that_do(place):
    done = scale(place, "--width", "40", "--out", "wrong", source="transformer_pp")
    assert done.returncode == 2
    assert "cannot be 40 wide" in done.stderr
    assert "legal widths: 32, 48" in done.stderr


def test_a_directory_with_another_training_is_left_alone(place):
    first = scale(place, "--steps", "3", "--baseline", "none", "--out", "mine")
    assert first.returncode == 0, first.stderr
    other = scale(place, "--steps", "4", "--baseline", "none", "--out", "mine")
    assert other.returncode == 3
    assert "holds a training with another recipe (steps: 3 -> 4). Name" in other.stderr


def test_a_genome_can_be_scaled_without_a_run(place):
    done = scale(place, "--steps", "2", "--baseline", "none", "--out", "albert", source="albert")
    assert done.returncode == 0, done.stderr
    assert "winner 2/2" in done.stdout


def test_a_space_of_many_that_was_searched_is_asked_about(place):
    done = scale(place, source="tiny.yaml")
    assert done.returncode == 2
    assert "architectures, not one; did you mean runs/tiny?" in done.stderr


def test_a_training_that_is_stopped_says_where_and_goes_on(place, monkeypatch):
    def stopping(training, on_step, on_mark):
        def stop(step):
            if step.number == 3:
                raise KeyboardInterrupt

        train(training, stop, on_mark)

    command = ("--steps", "6", "--baseline", "none", "--out", "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(report, "train", stopping)
        done = scale(place, *command)
    assert done.returncode == 130
    assert done.stdout.endswith(
        "winner: stopped at step 3; checkpoints are kept. The same command continues after "
        "step 2.\n"
    )
    assert "winner: goes on after step 2" in scale(place, *command).stdout


def test_a_depth_that_is_no_multiple_is_said_in_the_plan(place):
    (place / "three.yaml").write_text(THREE)
    dry = ("--dry-run", "--baseline", "none")
    done = scale(place, "--depth", "16", *dry, source="three.yaml")
    assert "depth 16 is not a multiple of 3 branches: 15" in done.stdout, done.stderr
    assert "multiple" not in scale(place, "--depth", "15", *dry, source="three.yaml").stdout
    fit = ("--fit", "--depth", "16", "--widths", "16,32", "--context", "32", "--text", "text.txt")
    done = in_process("scale", "three.yaml", *fit, *dry, cwd=place)
    assert "winner: depth 16 is not a multiple of 3 branches: 15" in done.stdout, done.stderr


def test_kinds_of_parameters_that_differ_in_eps_alone_are_one_row(place):
    (place / "three.yaml").write_text(THREE)
    done = scale(place, "--dry-run", "--baseline", "none", "--width", "64", source="three.yaml")
    kinds = re.findall(r"^(?:block|outer) \w+", done.stdout, re.M)
    assert sorted(kinds) == [
        "block hidden", "block vector", "outer embedding", "outer readout", "outer vector"
    ]  # fmt: skip
    assert re.search(r"^block vector .* 0.25 to 0.\d+$", done.stdout, re.M), done.stdout


def test_a_baseline_of_another_size_is_said_beside_the_verdict():
    def scaled(width):
        genome = widened(load_genome("transformer_pp"), width)
        base = Base(width, len(genome.genes))
        plan = ScalePlan(genome=genome, base=base, recipe=Recipe(), context=16, vocab=256)
        return report.Scaled(plan, 1.0, 5.5, 1.4, Stability(), 1.0)

    said = report.in_words({"winner": scaled(128), "baseline": scaled(160)})[-1]
    assert re.match(r"the baseline has \d\d% more parameters", said)
    (verdict,) = report.in_words({"winner": scaled(128), "baseline": scaled(128)})
    assert "one seed of each" in verdict


def test_two_processes_under_torchrun_speak_with_one_voice(place):
    started = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "archsearch", "scale", "runs/tiny", *SIZE, "--text", "text.txt", "--steps", "3",
         "--baseline", "none", "--out", "both", "--shard"],
        cwd=place, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr[-2000:]
    alone = scale(place, "--steps", "3", "--baseline", "none", "--out", "alone")
    assert alone.returncode == 0
    assert started.stdout.count("winner 3/3") == 1
    losses = [
        json.loads((place / p / "result.json").read_text())["winner"]["loss"]
        for p in ("both", "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)

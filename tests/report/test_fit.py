"""`archsearch scale --fit` as a person meets it."""

import json
import xml.etree.ElementTree as ET

import pytest

from archsearch.testing.text import Markov
from archsearch.train import generator
from tests.helpers import in_process

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SIZE = ("--context", "16", "--text", "fit.txt", "--steps", "3", "--batch", "2", "--workers", "1")
FIT = (
    "--fit", "--widths", "16,32,64", "--lrs", "-8:-6", "--finalists", "2", "--seeds", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(finished):
    source = Markov.draw(8, generator("test", "fit"))
    (finished / "fit.txt").write_bytes(source.sample(20_000, generator("test", "text")))
    return finished


def scale(place, *args):
    return in_process("scale", "runs/tiny", *SIZE, *args, cwd=place)


def test_winner_finalist_and_baseline_have_laws_and_nothing_is_trained_twice(place):
    done = scale(place, *FIT)
    assert done.returncode == 0, done.stderr
    assert "27 of 27 trainings to do" in done.stdout
    home = place / "runs" / "tiny" / "scale" / "fit"
    told = json.loads((home / "fit.json").read_text())
    winner, other, baseline = told["genomes"]
    assert (winner, other[0], baseline) == ("winner", "#", "transformer_pp")
    for of in told["genomes"].values():
        assert len(of["sizes"]) == 3
        assert {"law", "nats_per_doubling"} <= of.keys()
        assert [len(size["trained"]) for size in of["sizes"]] == [3, 3, 3]
    page = done.stdout[done.stdout.index("\nloss = floor") :]
    for word in (winner, other, baseline, "exponent", "nats per doubling", "cross"):
        assert word in page
    assert ET.parse(home / "fit.svg").getroot().tag.endswith("svg")
    again = scale(place, *FIT)
    assert "0 of 27 trainings to do" in again.stdout
    assert again.stdout.endswith(page)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--widths", "16,32"), 3, "--widths, --lrs, --batches and --finalists go with --fit"),
        (("--fit", "--lrs", "3e-3"), 3, "names no learning rates"),
        (("--fit", "--width", "32"), 3, "--width, --accumulate, --bf16"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_a_sentence(place, args, code, words):
    done = scale(place, *args, "--out", "wrong")
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_width_that_a_genome_cannot_have_is_refused(place):
    done = in_process(
        "scale", "transformer_pp", *SIZE, "--fit", "--widths", "64,72", "--out", "wrong", cwd=place
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "72" in done.stderr
    assert "legal widths: " in done.stderr

"""Trainings side by side are those one after the other, and what a file knows is not done again."""

import json
from dataclasses import replace

import pytest

from archsearch.errors import RunError
from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.mup import Base
from archsearch.scale.corpus import Corpus
from archsearch.scale.pretrain import Pretraining, Settings, train
from archsearch.scale.trainings import Training, train_all
from archsearch.sections import Recipe
from archsearch.testing.text import Markov
from archsearch.train import generator

GENOME = Genome(16, (Gene.of("short_conv"), Gene.of("swiglu")))


def wanted(*lrs):
    return [
        Training(
            genome=GENOME,
            base=Base(16, 2),
            recipe=Recipe(steps=6, batch=4, lr=lr, evals=2),
            settings=Settings(context=16, held_out=8, seed=seed),
        )
        for lr in lrs
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainings")
    source = Markov.draw(8, generator("test", "trainings"))
    (folder / "text.txt").write_bytes(source.sample(20_000, generator("test", "text")))
    return folder


@pytest.fixture(scope="module")
def ended(text):
    told = []
    found = train_all(
        wanted(1e-2), [str(text / "text.txt")], "byte", text / "cache", text / "known.jsonl", 2,
        lambda training, ended: told.append(training),
    )  # fmt: skip
    assert len(told) == len(found) == 2
    return found


def again(text, *trainings, told=None):
    return train_all(
        trainings, [str(text / "text.txt")], "byte", text / "cache", text / "known.jsonl", 1,
        lambda training, ended: told.append(training) if told is not None else None,
    )  # fmt: skip


def test_a_process_trains_as_this_one_does(text, ended):
    corpus = Corpus.open([str(text / "text.txt")], "byte", text / "cache")
    first, _ = wanted(1e-2)
    model = build(GENOME, corpus.vocab, generator=generator(0, "scale", "start"), base=first.base)
    training = Pretraining(model, corpus, first.recipe, first.settings)
    train(training)
    assert ended[first].loss == pytest.approx(training.marks[-1].held_out, abs=1e-5)
    assert [m.step for m in ended[first].marks] == [3, 6]


WILD = replace(
    wanted(10.0)[0],
    recipe=Recipe(steps=6, batch=4, lr=10.0, evals=2, warmup=0.0, clip=0.0, schedule="constant"),
)
"""A training that diverges."""


def test_what_is_known_is_not_trained_again_and_the_rest_is_added(text, ended):
    more, told = [*wanted(1e-2), *wanted(3e-3)[:1], WILD], []
    found = again(text, *more, told=told)
    assert set(told) == {wanted(3e-3)[0], WILD}
    assert {t: found[t] for t in ended} == ended
    assert again(text, *more) == found
    assert found[WILD].loss == float("inf")
    assert "at learning rate 10" in found[WILD].why


def test_a_line_that_was_cut_off_is_dropped_and_a_damaged_one_named(text, ended):
    file = text / "known.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines) + "\n" + lines[0][:100])
    assert again(text, *wanted(1e-2)) == ended
    assert file.read_text().splitlines() == lines
    file.write_text("\n".join([lines[0][:100], *lines[1:]]) + "\n")
    with pytest.raises(RunError, match=r"known\.jsonl:1 is damaged"):
        again(text, *wanted(1e-2))
    file.write_text("\n".join(lines) + "\n")


def test_every_line_says_what_was_trained(text, ended):
    for line in (text / "known.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert {"key", "genome", "base", "recipe", "settings", "text", "ended"} <= row.keys()

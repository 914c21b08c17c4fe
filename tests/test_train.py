"""The training loop against a plain reading of it: scores, schedules, determinism, ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.errors import Diverged
from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.sections import Recipe
from archsearch.train import Training, cross_entropy, evaluate, generator, rate
from mad_tasks import InContextRecall

TASK = InContextRecall(vocab=8, seq_len=16)
GENOME = Genome(16, (Gene.of("attention", heads=2), Gene.of("swiglu")))
RECIPE = Recipe(steps=12, evals=3, batch=4, eval_rows=16, lr=0.01)


@dataclass(frozen=True)
class Copy:
    """The answer at every position is the token there: anything can learn it."""

    vocab: int = 6
    readout: str = "token"
    name: str = "copy"
    length: int = 8
    chance: float = 1 / 6

    def sample(self, n, rng, *, train=False):
        tokens_BT = torch.randint(self.vocab, (n, self.length), generator=rng)
        return tokens_BT, tokens_BT.clone()


class Answers(torch.nn.Module):
    """A model that says what it is told to, whatever the input: logits of given shape."""

    def __init__(self, logits_NTV):
        super().__init__()
        self.logits_NTV, self.at = logits_NTV, 0

    def forward(self, inputs_BT):
        at, self.at = self.at, self.at + len(inputs_BT)
        return self.logits_NTV[at : self.at]


def train(recipe=RECIPE, task: Any = TASK, genome=GENOME, start="start", data="data"):
    """A model, and the points of its training."""
    model = build(genome, task.vocab, task.readout, generator=generator(start))
    held_out = task.sample(recipe.eval_rows, generator("held-out"))
    return model, list(Training(model, task, recipe, generator(data), held_out))


rows = st.integers(1, 9).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=5, max_size=5), min_size=n, max_size=n
    )
)


@settings(deadline=None)
@given(targets=rows, seed=st.integers(0, 2**31), batch=st.integers(1, 4))
def test_accuracy_and_its_error_are_those_of_a_plain_count(targets, seed, batch):
    targets_NT = torch.tensor(targets)
    logits_NTV = torch.randn(*targets_NT.shape, 3, generator=torch.Generator().manual_seed(seed))
    said = logits_NTV.argmax(-1).tolist()
    counts = [
        (sum(w != -100 and w == s for w, s in zip(want, words, strict=True)),
         sum(w != -100 for w in want))
        for want, words in zip(targets, said, strict=True)
    ]  # fmt: skip
    right, scored = (sum(column) for column in zip(*counts, strict=True))
    if not scored:
        return
    got, error = evaluate(Answers(logits_NTV), (targets_NT, targets_NT), batch)
    assert got == pytest.approx(right / scored, abs=1e-12)
    mean = scored / len(counts)
    spread = sum(((r - got * s) / mean) ** 2 for r, s in counts)
    assert error == pytest.approx(math.sqrt(spread) / len(counts), abs=1e-12)


def test_the_error_is_the_spread_of_the_accuracy_over_redrawn_rows():
    """Where every row has as many targets, it is the textbook error of a mean."""
    rng = torch.Generator().manual_seed(0)
    accuracies, errors = [], []
    for _ in range(400):
        hard_N1 = torch.rand(40, 1, generator=rng)
        targets_NT = (torch.rand(40, 10, generator=rng) < hard_N1).long()
        logits_NTV = torch.tensor([0.0, 1.0]).expand(40, 10, 2)
        accuracy, error = evaluate(Answers(logits_NTV), (targets_NT, targets_NT))
        accuracies.append(accuracy)
        errors.append(error)
    spread = torch.tensor(accuracies).std()
    assert torch.tensor(errors).mean() == pytest.approx(float(spread), rel=0.15)


def test_targets_of_minus_100_never_score_and_never_teach():
    _, targets_BT = TASK.sample(4, generator("rows"))
    logits_BTV = torch.randn(*targets_BT.shape, 8, generator=generator("logits"))
    unscored_BT = targets_BT == -100
    assert 0 < unscored_BT.sum() < unscored_BT.numel()
    other_BTV = torch.where(unscored_BT[..., None], torch.randn_like(logits_BTV), logits_BTV)
    for measure in (
        lambda logits: cross_entropy(logits, targets_BT).item(),
        lambda logits: evaluate(Answers(logits), (targets_BT, targets_BT)),
    ):
        assert measure(other_BTV) == measure(logits_BTV)
        assert measure(-logits_BTV) != measure(logits_BTV)


def test_the_loss_is_the_mean_over_scored_tokens_in_nats():
    targets_BT = torch.tensor([[1, -100, 0], [-100, -100, 2]])
    logits_BTV = torch.randn(2, 3, 4, generator=generator("logits"))
    losses = []
    for b, t in ((0, 0), (0, 2), (1, 2)):
        row = logits_BTV[b, t].tolist()
        losses.append(math.log(sum(map(math.exp, row))) - row[targets_BT[b, t]])
    assert cross_entropy(logits_BTV, targets_BT).item() == pytest.approx(sum(losses) / 3, rel=1e-5)


@given(steps=st.integers(1, 2000), warmup=st.sampled_from([0, 0.01, 0.1, 0.5, 1]))
def test_every_schedule_rises_to_its_peak_and_never_leaves_its_bounds(steps, warmup):
    for schedule in ("cosine", "wsd", "multistep", "constant"):
        recipe = Recipe(steps=steps, warmup=warmup, schedule=schedule)
        rates = [rate(recipe, step) for step in range(steps)]
        warm = round(steps * warmup)
        assert all(0 <= r <= 1 for r in rates)
        assert rates[:warm] == pytest.approx([(i + 1) / warm for i in range(warm)])
        after = rates[warm:]
        assert after == sorted(after, reverse=True)
        if schedule not in ("wsd", "multistep") or warmup <= 0.5:
            assert max(rates) == pytest.approx(1)


def test_the_cosine_ends_near_zero_and_wsd_is_flat_then_falls_in_a_line():
    steps = 1000
    cosine, wsd, constant = (
        [rate(Recipe(steps=steps, warmup=0.1, schedule=name), i) for i in range(steps)]
        for name in ("cosine", "wsd", "constant")
    )
    assert cosine[-1] < 1e-5
    assert cosine[550] == pytest.approx(0.5)
    assert wsd[100:801] == [1.0] * 701
    falls = [a - b for a, b in pairwise(wsd[800:])]
    assert falls == pytest.approx([1 / 200] * 199)
    assert wsd[-1] == pytest.approx(1 / 200)
    assert constant[100:] == [1.0] * 900


@pytest.mark.parametrize(("steps", "evals"), [(12, 3), (7, 3), (5, 8), (1, 4), (100, 1)])
def test_evaluations_are_spread_evenly_and_the_last_is_at_the_end(steps, evals):
    _, points = train(RECIPE.model_copy(update={"steps": steps, "evals": evals}), Copy())
    at = [point.step for point in points]
    assert at[-1] == steps
    assert at == sorted({round(steps * (i + 1) / evals) for i in range(evals)} - {0})


def test_training_is_the_same_to_the_last_bit_every_time():
    first, again = train(), train()
    assert first[1] == again[1]
    for one, other in zip(first[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("changed", [{"start": "other"}, {"data": "other"}])
def test_start_and_data_have_streams_of_their_own(changed):
    assert train(**changed)[1] != train()[1]


def test_training_does_not_touch_the_global_generator():
    before = torch.random.get_rng_state()
    train()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_solved_task_ends_early():
    recipe = Recipe(steps=400, evals=40, batch=16, eval_rows=16, lr=0.03, solved=0.9)
    _, points = train(recipe, Copy())
    assert points[-1].solved
    assert points[-1].accuracy >= 0.9
    assert points[-1].step < 400
    assert not any(point.solved or point.accuracy >= 0.9 for point in points[:-1])


def test_losses_fall_and_accuracy_rises_where_there_is_something_to_learn():
    recipe = Recipe(steps=80, evals=20, batch=4, eval_rows=64, lr=0.01, solved=1)
    losses = [point.loss for point in train(recipe, Copy())[1]]
    assert len(losses) > 3
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    assert train(recipe, Copy())[1][-1].accuracy > 0.9
    still = train(recipe.model_copy(update={"lr": 1e-8}), Copy())[1]
    assert still[-1].accuracy < 0.6


def test_only_matrices_decay():
    """With a learning rate of almost nothing, decay alone moves a weight."""
    strong = RECIPE.model_copy(update={"lr": 1e-7, "weight_decay": 10.0, "steps": 4})
    decayed, plain = (
        train(strong.model_copy(update={"weight_decay": decay}))[0] for decay in (10.0, 0.0)
    )
    for (name, one), other in zip(decayed.named_parameters(), plain.parameters(), strict=True):
        matrix = one.dim() == 2 and name != "embedding.weight"
        same = torch.allclose(one, other, rtol=1e-9, atol=0)
        assert same != matrix, name


def test_the_norm_of_a_gradient_is_clipped():
    def first_step(clip):
        recipe = RECIPE.model_copy(update={"steps": 2, "clip": clip, "betas": (0.0, 0.0)})
        return train(recipe)[1]

    assert first_step(1e-12) != first_step(0.0)
    assert first_step(1e9) == first_step(0.0)


@pytest.mark.parametrize("where", ["weights", "last update"])
def test_what_is_not_finite_has_diverged(where):
    model = build(GENOME, TASK.vocab, TASK.readout, generator=generator("start"))
    held_out = TASK.sample(16, generator("held-out"))
    recipe = RECIPE.model_copy(update={"steps": 1, "evals": 1})
    if where == "weights":
        torch.nn.init.constant_(model.readout.weight, math.inf)
    else:
        hook = lambda gradient: gradient * math.nan  # noqa: E731
        model.readout.weight.register_hook(hook)
    with pytest.raises(Diverged, match=r"mad/in-context-recall is|logits on mad/in-context-recall"):
        list(Training(model, TASK, recipe, generator("data"), held_out))

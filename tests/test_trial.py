"""A trial: all of its trainings side by side, one score, and an end for every reason."""

from __future__ import annotations

import statistics

import pytest
import torch

from archsearch.blocks.swiglu import SwiGLU
from archsearch.errors import RunError
from archsearch.genome import Gene, Genome
from archsearch.kernels.dispatch import using
from archsearch.sections import Recipe
from archsearch.trial import WORST_LOSS, run_trial, task_label
from mad_tasks import InContextRecall, Memorization

SHORT, LONG = InContextRecall(vocab=8, seq_len=16), InContextRecall(vocab=8, seq_len=24)
TASKS = (SHORT, Memorization(vocab=16, seq_len=16), LONG)
GENOME = Genome(16, (Gene.of("attention", heads=2), Gene.of("swiglu")))
RECIPE = Recipe(steps=8, evals=4, batch=4, eval_rows=16, lr=0.01)


def trial(tasks=TASKS, seed=0, genome=GENOME, **more):
    names = ("on_progress", "hopeless", "stretches", "checkpoint")
    calls = {name: more.pop(name) for name in names if name in more}
    return run_trial(genome, tasks, RECIPE.model_copy(update=more), seed, **calls)


def test_all_trainings_advance_together():
    seen = []
    result = trial(seeds=2, on_progress=seen.append)
    names = [(run.task, run.seed) for run in result.runs]
    assert len(names) == len(set(names)) == 6
    assert [(p.task, p.seed) for p in seen] == names * 4
    assert [p.point.step for p in seen] == [2] * 6 + [4] * 6 + [6] * 6 + [8] * 6
    assert [p.stretched for p in seen] == ([False] * 5 + [True]) * 4
    done = [p.done for p in seen]
    assert done == pytest.approx([(i + 1) / 24 for i in range(24)])
    assert len(result.scores) == 4


def test_the_score_is_the_mean_over_tasks_and_seeds_at_every_stretch():
    result = trial(seeds=3)
    for stretch, score in enumerate(result.scores):
        accuracies = [run.curve[stretch].accuracy for run in result.runs]
        assert score == pytest.approx(statistics.mean(accuracies), abs=1e-12)
    assert result.score == pytest.approx(result.scores[-1], abs=1e-12)
    assert result.score == pytest.approx(statistics.mean(result.accuracies.values()), abs=1e-12)
    assert result.loss == pytest.approx(statistics.mean(r.curve[-1].loss for r in result.runs))
    assert result.tokens == sum(8 * 4 * task.length for task in TASKS) * 3


def test_the_error_is_over_seeds_where_there_are_several_and_over_rows_where_not():
    several = trial(seeds=3)
    errors = [
        statistics.stdev(r.accuracy for r in several.runs if r.task == task) / 3**0.5
        for task in several.accuracies
    ]
    assert several.error == pytest.approx(sum(e * e for e in errors) ** 0.5 / 3)
    one = trial()
    errors = [run.curve[-1].error for run in one.runs]
    assert one.error == pytest.approx(sum(e * e for e in errors) ** 0.5 / 3)


def test_equal_tasks_are_told_apart_by_a_number():
    assert [task_label(task, TASKS) for task in TASKS] == [
        "mad/in-context-recall", "mad/memorization", "mad/in-context-recall#2",
    ]  # fmt: skip
    assert task_label(SHORT, (SHORT,)) == "mad/in-context-recall"


def test_a_trial_is_the_same_to_the_last_bit_every_time():
    first, again = trial(seeds=2), trial(seeds=2)
    assert first.runs == again.runs
    for one, other in zip(first.models, again.models, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    assert trial(seeds=2, seed=1).runs != first.runs


def test_a_task_or_a_seed_more_shifts_no_other_stream():
    alone = trial(tasks=(TASKS[1],))
    beside = trial(seeds=2)
    assert alone.runs[0] == next(r for r in beside.runs if r.task == "mad/memorization")


def test_all_genomes_meet_the_same_rows(monkeypatch):
    def rows(genome):
        drawn = []

        def sample(self, n, rng, *, train=False, original=InContextRecall.sample):
            batch = original(self, n, rng, train=train)
            drawn.append(torch.stack(batch))
            return batch

        with monkeypatch.context() as patch:
            patch.setattr(InContextRecall, "sample", sample)
            trial(tasks=(SHORT,), genome=genome)
        return torch.cat(drawn, 1)

    other = Genome(24, (Gene.of("swiglu", mult=4),))
    assert torch.equal(rows(GENOME), rows(other))


def test_a_hopeless_trial_ends_with_its_reason():
    asked = []

    def hopeless(scores):
        asked.append(scores)
        return "others are better" if len(scores) == 3 else ""

    result = trial(hopeless=hopeless)
    assert (result.status, result.why) == ("pruned", "others are better")
    assert asked == [result.scores[:i] for i in (1, 2, 3)]
    assert [len(run.curve) for run in result.runs] == [3, 3, 3]
    assert result.runs == tuple(
        type(r)(r.task, r.seed, r.curve[:3]) for r in trial().runs
    )  # fmt: skip


def test_a_finished_trial_is_not_pruned_at_its_end():
    result = trial(hopeless=lambda scores: "late" if len(scores) == 4 else "")
    assert (result.status, result.why) == ("ok", "")


@pytest.mark.parametrize("call", ["on_progress", "hopeless"])
def test_what_a_listener_does_wrong_is_no_result_of_the_genome(call):
    def broken(argument):
        raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError):
        trial(**{call: broken})


def test_a_solved_training_drops_out_and_the_others_go_on(monkeypatch):
    from archsearch import train

    original = train.evaluate

    def evaluate(model, held_out):
        return (1.0, 0.0) if held_out[0].shape[1] == SHORT.length else original(model, held_out)

    monkeypatch.setattr(train, "evaluate", evaluate)
    result = trial(tasks=(SHORT, LONG))
    assert [len(run.curve) for run in result.runs] == [1, 4]
    assert len(result.scores) == 4
    assert result.status == "ok"
    assert result.scores[-1] == pytest.approx((1 + result.runs[1].accuracy) / 2)


@pytest.mark.parametrize("when", [1, 3, 17])
def test_a_failure_at_any_moment_keeps_what_came_before(monkeypatch, when):
    calls = []
    forward = SwiGLU.forward

    def fails(self, x_BTD, ctx):
        calls.append(1)
        if len(calls) >= when:
            raise RuntimeError("it broke\nwith a long story")
        return forward(self, x_BTD, ctx)

    normal = trial()
    monkeypatch.setattr(SwiGLU, "forward", fails)
    result = trial()
    assert (result.status, result.why) == ("invalid", "RuntimeError: it broke")
    for broken, whole in zip(result.runs, normal.runs, strict=True):
        assert broken.curve == whole.curve[: len(broken.curve)]
    assert result.scores == normal.scores[: len(result.scores)]
    assert len(result.scores) < 4


def test_a_width_that_a_block_refuses_makes_an_invalid_trial_and_no_crash():
    result = trial(genome=Genome(18, (Gene.of("attention", heads=4),)))
    assert result.status == "invalid"
    assert "heads" in result.why
    assert (result.runs, result.scores, result.score) == ((), (), 0)


def test_a_diverged_trial_has_the_worst_score_and_a_finite_loss(monkeypatch):
    monkeypatch.setattr(SwiGLU, "forward", lambda self, x_BTD, ctx: x_BTD * float("nan"))
    result = trial()
    assert result.status == "diverged"
    assert "not finite" in result.why or "nan" in result.why
    assert (result.score, result.loss) == (0, WORST_LOSS)


@pytest.mark.parametrize("stretches", [1, 2, 3])
def test_a_trial_that_was_put_down_ends_as_one_that_was_not(tmp_path, stretches):
    file, whole = tmp_path / "trial.pt", trial(seeds=2)
    half = trial(seeds=2, stretches=stretches, checkpoint=file)
    assert (half.status, half.why) == ("paused", f"after {2 * stretches} of 8 steps")
    assert half.scores == whole.scores[:stretches]
    seen = []
    rest = trial(seeds=2, checkpoint=file, on_progress=seen.append)
    assert (rest.status, rest.runs, rest.scores) == ("ok", whole.runs, whole.scores)
    assert min(progress.point.step for progress in seen) == 2 * stretches + 2
    assert half.tokens + rest.tokens == whole.tokens
    for one, other in zip(rest.models, whole.models, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1}, {"tasks": TASKS[:2]}, {"lr": 0.02}, {"seeds": 2},
        {"genome": Genome(16, (Gene.of("swiglu"),))},
    ],
)  # fmt: skip
def test_the_checkpoint_of_another_trial_is_not_taken_up(tmp_path, other):
    file = tmp_path / "trial.pt"
    trial(stretches=2, checkpoint=file, **other)
    assert trial(checkpoint=file).runs == trial().runs


def test_a_trial_that_is_further_on_than_it_may_be_starts_again(tmp_path):
    file = tmp_path / "trial.pt"
    trial(stretches=3, checkpoint=file)
    again = trial(stretches=1, checkpoint=file)
    assert again.scores == trial().scores[:1]


def test_a_checkpoint_that_cannot_be_written_is_no_result_of_the_genome(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        trial(checkpoint=tmp_path / "file" / "trial.pt")


def test_a_trial_says_which_backend_computed_each_op_that_it_used():
    genome = Genome(16, (Gene.of("mamba2", head_dim=8), Gene.of("swiglu")))
    assert trial((SHORT,), genome=genome).backends == {"ssd": "torch"}
    with using("ssd:reference"):
        assert trial((SHORT,), genome=genome).backends == {"ssd": "reference"}
    assert trial((SHORT,)).backends == {}

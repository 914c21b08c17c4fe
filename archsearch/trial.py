"""One trial: a genome trained on every task with every seed, side by side.

All trainings of a trial advance together, one stretch at a time, so the score of an unfinished
trial is a mean over the same tasks as that of a finished one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from archsearch.errors import TrialError
from archsearch.model import Model, build
from archsearch.train import Point, Task, fit, generator

if TYPE_CHECKING:
    from archsearch.genome import Genome
    from archsearch.sections import Recipe

Status = Literal["ok", "pruned", "diverged", "oom", "invalid"]
WORST_LOSS = 1e3
"""The loss that a trial without a result is recorded with."""


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One training within a trial."""

    task: str
    seed: int
    curve: tuple[Point, ...]

    @property
    def accuracy(self) -> float:
        """Token accuracy on held-out rows at the last evaluation."""
        return self.curve[-1].accuracy if self.curve else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """What became of one genome."""

    key: str
    status: Status
    why: str = ""
    """One sentence for every status but ok."""
    runs: tuple[TaskRun, ...]
    scores: tuple[float, ...]
    """Mean accuracy after each stretch: what pruning looks at."""
    seconds: float
    tokens: int
    models: tuple[Model, ...] = field(default=(), repr=False, compare=False)

    @property
    def score(self) -> float:
        """Token accuracy, the mean over tasks and seeds; 0 for a trial that diverged."""
        return 0.0 if self.status == "diverged" else _mean([r.accuracy for r in self.runs])

    @property
    def loss(self) -> float:
        """Training loss of the last stretch in nats per scored token, mean over tasks and seeds."""
        if self.status == "diverged" or not self.runs:
            return WORST_LOSS
        return _mean([run.curve[-1].loss if run.curve else WORST_LOSS for run in self.runs])

    @property
    def error(self) -> float:
        """Standard error of the score.

        Over seeds where there are several, over held-out rows where there is one.
        """
        errors = []
        for task in self.accuracies:
            mine = [run for run in self.runs if run.task == task]
            if len(mine) > 1:
                errors.append(statistics.stdev([r.accuracy for r in mine]) / len(mine) ** 0.5)
            else:
                errors.append(mine[0].curve[-1].error if mine[0].curve else 0.0)
        return sum(e * e for e in errors) ** 0.5 / max(1, len(errors))

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracy per task, the mean over seeds."""
        tasks = dict.fromkeys(run.task for run in self.runs)
        return {t: _mean([r.accuracy for r in self.runs if r.task == t]) for t in tasks}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running trial is."""

    task: str
    seed: int
    point: Point
    done: float
    """Share of the trial's steps that is behind it."""
    stretched: bool
    """Whether every training of the trial has come as far as this one."""


def task_label(task: Any, tasks: tuple[Any, ...]) -> str:
    """A name for one of several tasks: its own, with a number from the second of that name on."""
    same = [other for other in tasks if other.name == task.name]
    place = same.index(task)
    return f"{task.name}#{place + 1}" if place else task.name


def run_trial(
    genome: Genome,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    seed: int,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    hopeless: Callable[[tuple[float, ...]], str] = lambda scores: "",
) -> TrialResult:
    """Train and score one genome. Never raises for what the genome does wrong.

    Args:
        genome: The architecture.
        tasks: What it is trained on, each with a model of its own.
        recipe: How.
        seed: The study's seed. Starts and data depend on it, the task and the replicate, not on
            the genome: all genomes meet the same rows.
        on_progress: Called after every evaluation.
        hopeless: Told the scores so far after every stretch; a reason ends the trial as pruned.
            What these two raise passes through.
    """
    began = time.perf_counter()
    curves: dict[tuple[str, int], list[Point]] = {}
    models: dict[tuple[str, int], Model] = {}
    scores: list[float] = []
    status: Status = "ok"
    why = ""
    course = _course(genome, tasks, recipe, seed, curves, models)
    while not why:
        try:
            progress = next(course, None)
        except TrialError as error:
            status, why = cast("Status", error.status), str(error)
        except Exception as error:  # noqa: BLE001 - whatever a block does wrong is the trial's result
            status, why = _reason(error)
        else:
            if progress is None:
                break
            on_progress(progress)
            if progress.stretched:
                scores.append(_mean([curve[-1].accuracy for curve in curves.values()]))
                why = hopeless(tuple(scores)) if progress.done < 1 else ""
                status = "pruned" if why else "ok"
    runs = tuple(TaskRun(task, k, tuple(curve)) for (task, k), curve in curves.items())
    lengths = {task_label(task, tasks): task.length for task in tasks}
    tokens = sum(r.curve[-1].step * recipe.batch * lengths[r.task] for r in runs if r.curve)
    return TrialResult(
        key=genome.key, status=status, why=why, runs=runs, scores=tuple(scores),
        seconds=time.perf_counter() - began, tokens=tokens, models=tuple(models.values()),
    )  # fmt: skip


def _course(
    genome: Genome,
    tasks: tuple[Task, ...],
    recipe: Recipe,
    seed: int,
    curves: dict[tuple[str, int], list[Point]],
    models: dict[tuple[str, int], Model],
) -> Iterator[Progress]:
    """Advance every training by one evaluation, again and again; those that ended drop out."""
    trainings = {}
    for task in tasks:
        label = task_label(task, tasks)
        held_out = task.sample(recipe.eval_rows, generator(seed, label, "held-out"))
        for k in range(recipe.seeds):
            names = "start", "data", "noise"
            start, data, noise = (generator(seed, label, k, name) for name in names)
            model = build(genome, task.vocab, task.readout, generator=start)
            models[label, k], curves[label, k] = model, []
            trainings[label, k] = fit(model, task, recipe, data, held_out, noise)
    ended: dict[tuple[str, int], float] = dict.fromkeys(trainings, 0.0)
    while trainings:
        for name in (running := list(trainings)):
            point = next(trainings[name])
            curves[name].append(point)
            ended[name] = 1.0 if point.solved else point.step / recipe.steps
            if ended[name] == 1:
                del trainings[name]
            yield Progress(*name, point, _mean(list(ended.values())), name == running[-1])


def _reason(error: Exception) -> tuple[Status, str]:
    text = str(error).strip().split("\n")[0]
    memory = ("not enough memory", "can't allocate memory", "out of memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(m in text for m in memory):
        return "oom", f"the model does not fit into memory: {text}"
    return "invalid", f"{type(error).__name__}: {text}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0

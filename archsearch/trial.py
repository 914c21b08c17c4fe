"""One trial: a genome trained on every task with every seed, side by side.

All trainings of a trial advance together, one stretch at a time, so the score of an unfinished
trial is a mean over the same tasks as that of a finished one. Between two stretches a trial can be
put down in a file and taken up again, to the same result.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from archsearch.errors import RunError, TrialError
from archsearch.kernels.dispatch import recorded
from archsearch.memory import estimate, require_room
from archsearch.model import Model, build
from archsearch.train import Point, Task, Training, generator

if TYPE_CHECKING:
    from archsearch.genome import Genome
    from archsearch.sections import Recipe

Status = Literal["ok", "paused", "pruned", "diverged", "oom", "invalid"]
CPU = torch.device("cpu")
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
    """Of this call; what came before it, from a checkpoint, is left out of it and of `tokens`."""
    tokens: int
    memory: int | None = None
    """Bytes that its training was judged to need; None where that could not be said."""
    backends: dict[str, str] = field(default_factory=dict)
    """What computed each op that the models used, see `kernels.dispatch`."""
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
    device: torch.device = CPU,
    stretches: int | None = None,
    checkpoint: Path | None = None,
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
        device: Where it is trained. Starts, rows and noise are the same everywhere.
        stretches: After how many evaluations the trial pauses; None to train to the end.
        checkpoint: A file that is written after every stretch but the last. If it holds this very
            trial, that goes on where it was put down, to the same bits; if not, it begins anew.
        on_progress: Called after every evaluation.
        hopeless: Told the scores so far after every stretch; a reason ends the trial as pruned.
            What these two raise passes through.

    Raises:
        RunError: if the checkpoint cannot be written.
    """
    began = time.perf_counter()
    course = Course(genome, tasks, recipe, seed, device)
    most = len(recipe.stops) if stretches is None else stretches
    status: Status = "ok"
    why = ""
    try:
        course.begin(checkpoint, most)
    except Exception as error:  # noqa: BLE001 - whatever a block does wrong is the trial's result
        status, why = _reason(error)
    tokens = course.tokens
    advance = course.advance(most)
    with recorded() as backends:
        while not why and course.running and len(course.scores) < most:
            try:
                progress = next(advance)
            except Exception as error:  # noqa: BLE001
                status, why = _reason(error)
            else:
                on_progress(progress)
                if progress.stretched:
                    why = hopeless(tuple(course.scores)) if course.running else ""
                    status = "pruned" if why else "ok"
                    if checkpoint and course.running and not why:
                        course.save(checkpoint)
    if status == "ok" and course.running:
        status, why = "paused", f"after {recipe.stops[most - 1]} of {recipe.steps} steps"
    runs = tuple(TaskRun(task, k, tuple(curve)) for (task, k), curve in course.curves.items())
    return TrialResult(
        key=genome.key, status=status, why=why, runs=runs, scores=tuple(course.scores),
        seconds=time.perf_counter() - began, tokens=course.tokens - tokens, memory=course.memory,
        backends=backends, models=tuple(course.models.values()),
    )  # fmt: skip


class Course:
    """The trainings of a trial, advanced side by side; those that ended drop out."""

    def __init__(
        self,
        genome: Genome,
        tasks: tuple[Task, ...],
        recipe: Recipe,
        seed: int,
        device: torch.device,
    ) -> None:
        self.genome, self.tasks, self.recipe, self.seed = genome, tasks, recipe, seed
        self.device = device
        self.trainings: dict[tuple[str, int], Training] = {}
        self.curves: dict[tuple[str, int], list[Point]] = {}
        self.scores: list[float] = []
        self.memory: int | None = None

    @property
    def models(self) -> dict[tuple[str, int], Model]:
        """The model of each training."""
        return {name: training.model for name, training in self.trainings.items()}

    @property
    def running(self) -> list[tuple[str, int]]:
        """The trainings that have not ended."""
        return [name for name, training in self.trainings.items() if not training.ended]

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        lengths = {task_label(task, self.tasks): task.length for task in self.tasks}
        return sum(
            training.step * self.recipe.batch * lengths[label]
            for (label, _), training in self.trainings.items()
        )

    def begin(self, checkpoint: Path | None, most: int) -> None:
        """Build the models; take them up from `checkpoint` if it holds this very trial.

        One that is further on than `most` stretches is left alone.

        Raises:
            OutOfMemory: before a model is built, if the trainings need more than the device has.
        """
        with suppress(Exception):  # what is wrong with the genome, its training will say
            self.memory = estimate(self.genome, self.tasks, self.recipe)
        require_room(self.memory or 0, self.device)
        for task in self.tasks:
            label = task_label(task, self.tasks)
            held_out = task.sample(self.recipe.eval_rows, generator(self.seed, label, "held-out"))
            for k in range(self.recipe.seeds):
                names = "start", "data", "noise"
                streams = (generator(self.seed, label, k, name) for name in names)
                start, data, noise = streams
                model = build(self.genome, task.vocab, task.readout, generator=start)
                model = model.to(self.device)
                self.trainings[label, k] = Training(model, task, self.recipe, data, held_out, noise)
                self.curves[label, k] = []
        state = _read(checkpoint) if checkpoint else None
        if state and state.get("about") == self._about and len(state["scores"]) <= most:
            self.scores = list(state["scores"])
            for name, training, curve in zip(
                self.trainings, state["trainings"], state["curves"], strict=True
            ):
                self.trainings[name].load_state_dict(training)
                self.curves[name] = [Point(**point) for point in curve]

    def advance(self, most: int) -> Iterator[Progress]:
        """Advance every training by one evaluation, again and again."""
        last = self.recipe.stops[most - 1]
        while running := self.running:
            for name in running:
                point = next(self.trainings[name])
                self.curves[name].append(point)
                shares = [1.0 if t.ended else t.step / last for t in self.trainings.values()]
                stretched = name == running[-1]
                if stretched:
                    accuracies = [curve[-1].accuracy for curve in self.curves.values()]
                    self.scores.append(_mean(accuracies))
                yield Progress(*name, point, _mean(shares), stretched)

    def save(self, checkpoint: Path) -> None:
        """Put the trial down; a process that dies meanwhile leaves the file as it was.

        Raises:
            RunError: if it cannot be written.
        """
        state = {
            "about": self._about,
            "scores": self.scores,
            "trainings": [training.state_dict() for training in self.trainings.values()],
            "curves": [[asdict(point) for point in curve] for curve in self.curves.values()],
        }
        scratch = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
        try:
            checkpoint.parent.mkdir(exist_ok=True)
            torch.save(state, scratch)
            scratch.replace(checkpoint)
        except (OSError, RuntimeError) as error:  # the latter is torch's, for a full disk
            reason = getattr(error, "strerror", None) or "is the disk full?"
            raise RunError(
                f"{checkpoint} cannot be written: {reason}. Finished trials are safe; the same "
                "command continues once it can be"
            ) from None

    @property
    def _about(self) -> str:
        """All that the trial depends on."""
        tasks = [repr(task) for task in self.tasks]
        return json.dumps([self.genome.to_json(), tasks, self.recipe.model_dump(), self.seed])


def _read(checkpoint: Path) -> dict[str, Any] | None:
    """A checkpoint; None if there is none that can be read."""
    try:
        state = torch.load(checkpoint, "cpu", weights_only=True)  # noqa: TID251 - no pickle
    except (OSError, RuntimeError, EOFError, UnpicklingError):
        return None
    return state if isinstance(state, dict) else None


def _reason(error: Exception) -> tuple[Status, str]:
    if isinstance(error, TrialError):
        return cast("Status", error.status), str(error)
    text = str(error).strip().split("\n")[0]
    memory = ("not enough memory", "can't allocate memory", "out of memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(m in text for m in memory):
        return "oom", f"the model does not fit into memory: {text}"
    return "invalid", f"{type(error).__name__}: {text}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0

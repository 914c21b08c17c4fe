"""Trainings on fresh seeds, side by side in processes of their own, and the memory of them.

The stream of seed k depends on the seed of the study and on k alone, so every genome meets the same
rows, and who asks for a training changes nothing in it.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from archsearch.device import chosen
from archsearch.errors import RunError
from archsearch.processes import side_by_side
from archsearch.search.finals import Fresh, Known, from_plain, merged, to_plain
from archsearch.seeds import seed
from archsearch.train import evaluate, generator
from archsearch.trial import WORST_LOSS, run_trial, task_label
from archsearch.weights import save_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from archsearch.genome import Genome
    from archsearch.model import Model
    from archsearch.search.study import Study
    from archsearch.space_yaml import Experiment
    from archsearch.trial import TrialResult

MEMORY = "fresh.json"
ROWS = 128
"""Rows evaluated at once on a task; fewer of longer ones."""


def missing(genomes: Iterable[Genome], seeds: int, known: Known) -> list[tuple[Genome, int]]:
    """The trainings that are not known yet: genome, and number of the seed."""
    distinct = dict.fromkeys(genomes)
    return [(g, k) for g in distinct for k in range(seeds) if k not in known.get(g.key, {})]


def train(
    experiment: Experiment,
    genomes: Iterable[Genome],
    seeds: int,
    workers: int,
    known: Known,
    on_trained: Callable[[Genome, int, Fresh, float], None] = lambda *told: None,
    weights: Path | None = None,
) -> None:
    """Train genomes on fresh seeds; what is known already is left alone.

    Args:
        experiment: Tasks and recipe.
        genomes: What to train.
        seeds: How many trainings of each.
        workers: Processes.
        known: Receives the trainings.
        on_trained: Told genome, number of the seed, outcome and seconds after each training.
        weights: Where the weights of seed 0 go, in a folder by key, unless there are some.

    Raises:
        RunError: if a process dies. KeyboardInterrupt passes through once all have ended.
    """
    wanted = missing(genomes, seeds, known)
    for (genome, k), (fresh, seconds) in side_by_side(
        _training, wanted, workers, experiment, weights
    ):
        known.setdefault(genome.key, {})[k] = fresh
        on_trained(genome, k, fresh, seconds)


def _training(
    wanted: tuple[Genome, int], experiment: Experiment, weights: Path | None
) -> tuple[Fresh, float]:
    """One training on every task, and the seconds that it took."""
    genome, k = wanted
    stream = seed(experiment.search.seed, "fresh", k)
    recipe = experiment.recipe.model_copy(update={"seeds": 1})
    result = run_trial(genome, experiment.tasks, recipe, stream, device=chosen())
    if result.status != "ok":
        nothing = (0.0,) * len(experiment.tasks)
        return Fresh(0.0, WORST_LOSS, None, result.why, nothing), result.seconds
    folder = weights / genome.key if weights and k == 0 else None
    if folder and not (folder / "tasks.json").is_file():
        try:
            save_weights(folder, result, experiment.tasks, "in the finals, first fresh seed")
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"{folder} cannot be written: {reason}") from None
    harder, accuracies = _harder(experiment, result, stream), tuple(result.accuracies.values())
    return Fresh(result.score, result.loss, harder, "", accuracies), result.seconds


def _harder(experiment: Experiment, result: TrialResult, stream: int) -> float | None:
    """Mean accuracy of trained models on the harder tasks; None if one of them cannot be read."""
    accuracies = []
    for task, model in zip(experiment.tasks, result.models, strict=True):
        harder = getattr(task, "harder", lambda: None)()
        if harder is not None:
            label = task_label(task, experiment.tasks)
            rows = max(1, ROWS * task.length // harder.length)
            rng = generator(stream, label, "harder")
            accuracies.append(_accuracy(model, harder, experiment.recipe.eval_rows, rows, rng))
    if not accuracies or any(map(math.isnan, accuracies)):
        return None
    return statistics.mean(accuracies)


def _accuracy(model: Model, task: Any, rows: int, batch: int, rng: Any) -> float:
    """Accuracy on fresh rows of a task; NaN for a model that cannot read them."""
    inputs_NT, targets_NT = task.sample(rows, rng)
    held_out = inputs_NT.to(model.device), targets_NT.to(model.device)
    try:
        return evaluate(model, held_out, batch)[0]
    except Exception:  # noqa: BLE001 - a block may have no place for rows of another length
        return math.nan


def recall(folder: Path, study: Study) -> Known:
    """Every fresh training that is known of a study: in its storage, and in its run directory.

    The directory counts where both know one, as an older study kept only means over tasks.
    """
    try:
        data = json.loads((folder / MEMORY).read_text())
        known = from_plain(data["fresh"]) if data["made"] == _made(study.experiment()) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = {}
    return merged(study.fresh, known)


def remember(folder: Path, experiment: Experiment, known: Known) -> None:
    """Keep fresh trainings in a run directory.

    Raises:
        RunError: if it cannot be written.
    """
    text = json.dumps({"made": _made(experiment), "fresh": to_plain(known)})
    write(folder / MEMORY, text)


def write(file: Path, text: str) -> None:
    """Write a file whole, or leave it as it was.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        scratch = file.with_name(f".{file.name}")
        scratch.write_text(text)
        scratch.replace(file)
    except OSError as error:
        raise RunError(f"{file.parent} cannot be written: {error.strerror}") from None


def _made(experiment: Experiment) -> list[Any]:
    """All that a fresh training depends on beside genome and seed."""
    recipe = experiment.recipe.model_dump(mode="json", exclude={"seeds"})
    return [[repr(task) for task in experiment.tasks], recipe, experiment.search.seed]

"""Tasks of lm-evaluation-harness, by name, on a Hugging Face directory of ours.

The harness brings its own tasks and fetches its own data; it loads the model by itself, with the
code in the directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archsearch.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

INSTALL = "pip install lm-eval"


@dataclass(frozen=True, slots=True)
class HarnessScore:
    """One metric of one task, as the harness reports it."""

    task: str
    metric: str
    value: float
    error: float | None
    """Standard error; None where the harness gives none."""


def harness(
    folder: Path, names: Sequence[str], device: str = "cpu", tasks: Path | None = None
) -> list[HarnessScore]:
    """Evaluate on tasks of lm-evaluation-harness.

    Args:
        folder: What `archsearch export --format hf` wrote.
        names: Tasks or groups of them.
        device: "cpu" or "cuda".
        tasks: A directory with more tasks, as YAML.

    Raises:
        ModelError: if the harness is not installed, a task is unknown, the directory is of another
            format, or the harness fails.
    """
    if not _is_hugging_face(folder):
        raise ModelError(
            f"{folder} is no Hugging Face directory, which the harness reads; write one with "
            "archsearch export RUN DIR --format hf"
        )
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ModelError(f"lm-evaluation-harness is not installed: {INSTALL}") from None
    manager = TaskManager(include_path=None if tasks is None else str(tasks))
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise ModelError(
            f"lm-evaluation-harness has no task '{unknown[0]}'; lm-eval ls tasks lists them"
        )
    arguments = {"pretrained": str(folder), "trust_remote_code": True, "dtype": "float32"}
    try:
        results = simple_evaluate(
            model="hf", model_args=arguments, tasks=list(names), task_manager=manager,
            device=device, log_samples=False,
        )  # fmt: skip
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ModelError(
            f"lm-evaluation-harness failed: {type(error).__name__}: {text}. It fetches the data of "
            "its tasks itself; HF_HOME says where they are kept"
        ) from error
    return [score for name, of in results["results"].items() for score in _scores(name, of)]


def _scores(task: str, results: dict[str, Any]) -> list[HarnessScore]:
    found = []
    for key, value in results.items():
        metric, _, rest = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        if metric in ("alias", "sample_len"):
            continue
        error = results.get(f"{metric}_stderr,{rest}")
        found.append(HarnessScore(task, metric, value, error if isinstance(error, float) else None))
    return found


def _is_hugging_face(folder: Path) -> bool:
    try:
        return "auto_map" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False

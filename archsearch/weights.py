"""The weights of a finished trial as safetensors, one file per task."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_model

from archsearch.trial import task_label

if TYPE_CHECKING:
    from pathlib import Path

    from archsearch.trial import TrialResult


def file_name(label: str) -> str:
    """The weights file of a task: `mad/compression` becomes `mad-compression.safetensors`."""
    return label.replace("/", "-").replace("#", "-") + ".safetensors"


def _params(task: Any) -> dict[str, Any]:
    """What makes a task again."""
    return asdict(task) if is_dataclass(task) and not isinstance(task, type) else {}


def _of_text(task: Any) -> dict[str, str]:
    """What turns the ids of a task into text, and which text that was; else nothing."""
    if not hasattr(task, "tokenizer"):
        return {}
    return {"tokenizer": task.tokenizer, "corpus": task.digest()}


def save_weights(folder: Path, result: TrialResult, tasks: tuple[Any, ...], trained: str) -> None:
    """Write the weights of a trial's first seed, one file per task, and what they belong to.

    Args:
        folder: Directory to make.
        result: The trial, with its models.
        tasks: What it was trained on.
        trained: Which training this is, in words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = {}
    made = {(r.task, r.seed): (r, m) for r, m in zip(result.runs, result.models, strict=True)}
    for task in tasks:
        label = task_label(task, tasks)
        run, model = made[label, 0]
        save_model(model, str(folder / file_name(label)))
        described[label] = {
            "file": file_name(label),
            "vocab": task.vocab,
            "readout": task.readout,
            "length": task.length,
            "params": _params(task),
            **_of_text(task),
            "accuracy": run.accuracy,
            "trained": trained,
        }
    (folder / "tasks.json").write_text(json.dumps(described, indent=2) + "\n")

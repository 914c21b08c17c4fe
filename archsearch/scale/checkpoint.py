"""Checkpoints of a long training: safetensors and JSON, written whole; no pickle.

    FOLDER/step-00000300/model.safetensors
    FOLDER/step-00000300/optimizer.safetensors    `<parameter>.<moment>`
    FOLDER/step-00000300/state.json               step, what is trained, the curve so far

Weights are stored whole, however many processes hold them, so any number of processes goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from archsearch.errors import RunError

if TYPE_CHECKING:
    from archsearch.model import Model
    from archsearch.scale.parallel import World

FORMAT = 1
KEPT = 2
"""Checkpoints that are kept: the last ones, beside the best."""


def save(
    folder: Path,
    model: Model,
    optimizers: list[torch.optim.Optimizer],
    state: dict[str, Any],
    world: World,
    best: int | None = None,
) -> None:
    """Write a checkpoint and drop the oldest.

    A process that dies meanwhile leaves the earlier ones. Every process of the world must call it.

    Args:
        folder: Where checkpoints are.
        model: What is trained.
        optimizers: Its optimizers.
        state: Plain data with a `step`.
        world: The processes.
        best: The step of one that is kept however old it is.

    Raises:
        RunError: if it cannot be written.
    """
    weights = {name: _whole(p) for name, p in model.named_parameters()}
    moments = {
        f"{name}.{key}": _whole(value)
        for name, p in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(p, {}).items()
    }
    if not world.first:
        return
    target = folder / _name(state["step"])
    scratch = folder / f".{target.name}.{os.getpid()}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        save_file(weights, scratch / "model.safetensors")
        save_file(moments, scratch / "optimizer.safetensors")
        (scratch / "state.json").write_text(json.dumps({"format": FORMAT, **state}) + "\n")
        if target.exists():
            shutil.rmtree(target)
        scratch.replace(target)
        for old in _steps(folder)[:-KEPT]:
            if old.name != _name(best):
                shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        kept = _steps(folder)
        after = f"continues after {kept[-1].name}, which is kept" if kept else "begins anew"
        raise RunError(f"{target} cannot be written: {reason}. The same command {after}") from None


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint and its state; None if there is none.

    Raises:
        RunError: if it is damaged or from a newer version.
    """
    known = _steps(folder)
    if not known:
        return None
    try:
        state = json.loads((known[-1] / "state.json").read_text())
        written = state["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{known[-1]} is damaged; remove it to go on from the one before") from None
    if written != FORMAT:
        raise RunError(f"{known[-1]} has format {written}; this version reads format {FORMAT}")
    return known[-1], state


def restore(folder: Path, model: Model, optimizers: list[torch.optim.Optimizer]) -> None:
    """Fill a model and its optimizers from one checkpoint, in a world of any size.

    Raises:
        RunError: if the files are damaged or belong to another model.
    """
    try:
        weights = load_file(folder / "model.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        for name, p in model.named_parameters():
            _fill(p, weights.pop(name))
            for optimizer in optimizers:
                if any(p is own for group in optimizer.param_groups for own in group["params"]):
                    optimizer.state[p] = {
                        key.removeprefix(f"{name}."): _like(p, moments.pop(key))
                        for key in [k for k in moments if k.rpartition(".")[0] == name]
                    }
        if weights:
            raise KeyError(min(weights))
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise RunError(
            f"{folder} is damaged or belongs to another model: {text}. Remove it to go on from the "
            "one before"
        ) from None


def _name(step: int | None) -> str:
    return "" if step is None else f"step-{step:08d}"


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous()


@torch.no_grad()
def _fill(parameter: Tensor, value: Tensor) -> None:
    if value.shape != parameter.shape:
        raise ValueError(f"shape {tuple(value.shape)} instead of {tuple(parameter.shape)}")
    parameter.copy_(_like(parameter, value))


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A tensor where the parameter lies: on its device, in the same shards."""
    value = value.to(parameter.device)
    if value.ndim and isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value

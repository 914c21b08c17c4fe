"""How much memory the training of a trial takes, said before its first step.

What stays: weights, gradients and moments of every training of the trial, and the rows that each
has drawn. What comes and goes: a training step and an evaluation, of one training at a time. Those
two are measured and not modelled. A model of the genome runs with one row and with two under a
count of the bytes that are alive, and every further row takes as much as the second did.

The step and the evaluation are added up, although one follows the other: their tensors differ in
size, so what an allocator keeps of the first seldom serves the second. `benchmarks/memory.py`
compares the sum with the peak of real trials.

Shapes: B batch, T time.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from archsearch.errors import OutOfMemory
from archsearch.model import Extras, Model
from archsearch.train import (
    EVAL_BATCH,
    batches_drawn,
    cross_entropy,
    evaluate,
    generator,
    objective,
)
from archsearch.words import size

if TYPE_CHECKING:
    from archsearch.genome import Genome
    from archsearch.sections import Recipe
    from archsearch.train import Task


def estimate(genome: Genome, tasks: tuple[Task, ...], recipe: Recipe) -> int:
    """Bytes that training a genome on all tasks takes at its peak, without the process itself.

    Where what stays is already more than the machine has, it is that alone: then no model is built.
    Draws from streams of its own, so a trial is the same with and without it.

    Raises:
        BlockError: if a block cannot be built at this width.
    """
    with torch.device("meta"):
        models = [Model(genome, task.vocab, task.readout) for task in tasks]
    rows = [task.sample(1, generator("memory", "rows")) for task in tasks]
    stays = recipe.seeds * sum(_trained_bytes(model) for model in models)
    stays += _row_bytes(rows, recipe)
    if stays > machine_bytes():
        return stays
    different = {
        (task.vocab, task.readout, task.length): (model, row)
        for task, model, row in zip(tasks, models, rows, strict=True)
    }
    return stays + max(pass_bytes(*pair, recipe) for pair in different.values())


def require_room(needed: int, device: torch.device) -> None:
    """Refuse what a device cannot hold.

    Raises:
        OutOfMemory: saying what is needed and what there is.
    """
    gpu = device.type == "cuda"
    there = torch.cuda.mem_get_info(device)[1] if gpu else machine_bytes()
    if needed > there:
        has = "the GPU has" if gpu else "this machine has"
        raise OutOfMemory(f"needs about {size(needed)}, {has} {size(there)}")


def machine_bytes() -> int:
    """The physical memory, or the limit of the process if that is smaller."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text()
        return min(physical, *group_limits(groups, Path("/sys/fs/cgroup")))
    return physical


def group_limits(groups: str, root: Path) -> list[int]:
    """The memory limits of the control groups of a process, enclosing ones included.

    Args:
        groups: `/proc/self/cgroup`, a line for each hierarchy: `number:controllers:path`, without
            controllers in version 2.
        root: Where control groups are mounted. In a container that is often the innermost group
            itself, so a path that is not there is none.
    """
    limits = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (
            (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        )
        group = top / path.lstrip("/")
        for place in (group, *group.parents):
            if place.is_relative_to(top):
                with suppress(OSError, ValueError):  # "max" is no limit
                    limits.append(int((place / name).read_text()))
    return limits


def process_bytes() -> int:
    """Memory that this process alone holds now; code that processes share is left out on Linux."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _sparse(model: Model) -> set[Tensor]:
    """Tables whose gradient holds the rows of a batch alone."""
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return {table.weight for table in tables if table.sparse}


def _trained_bytes(model: Model) -> int:
    """Weights, two moments of each and, unless it is sparse, its gradient."""
    sparse = _sparse(model)
    return sum(p.nbytes * (3 if p in sparse else 4) for p in model.parameters())


def _row_bytes(rows: list[tuple[Tensor, Tensor]], recipe: Recipe) -> int:
    """What each training has drawn, what one of them draws anew, and the rows held out."""
    row = [sum(part.nbytes for part in parts) for parts in rows]
    drawn = batches_drawn(recipe) * recipe.batch
    return drawn * (recipe.seeds * sum(row) + max(row)) + recipe.eval_rows * sum(row)


def pass_bytes(model: Model, row: tuple[Tensor, Tensor], recipe: Recipe) -> int:
    """Bytes of a training step and of an evaluation, beside what stays; `model` is on meta.

    What is alive between forward and backward is followed by itself: with few rows the peak may lie
    where the gradient of a large matrix is made, with many it seldom does.
    """
    model.to_empty(device="cpu").init(generator("memory", "start"))
    one, two = (_measured(model, row, count, recipe) for count in (1, 2))
    counts = (recipe.batch, recipe.batch, min(EVAL_BATCH, recipe.eval_rows))
    forward, step, evaluation = (
        a + (b - a) * (count - 1) for a, b, count in zip(one, two, counts, strict=True)
    )
    return max(forward, step) + evaluation


def _measured(
    model: Model, row: tuple[Tensor, Tensor], count: int, recipe: Recipe
) -> tuple[int, int, int]:
    """Bytes after a forward pass, at the peak of a step, and at the peak of an evaluation."""
    inputs_BT, targets_BT = (part.repeat(count, 1) for part in row)
    sparse = _sparse(model)
    for parameter in model.parameters():
        parameter.grad = None if parameter in sparse else torch.zeros_like(parameter)
    stays = [inputs_BT, targets_BT, *model.parameters()]
    stays += [p.grad for p in model.parameters() if p.grad is not None]
    extras = Extras(generator("memory", "noise"))
    with Alive(stays) as step:
        logits_BTV = model(inputs_BT, extras)
        loss = cross_entropy(logits_BTV, targets_BT)
        forward = step.now
        objective(loss, logits_BTV, targets_BT, extras, recipe.z_loss).backward()
    with Alive(stays) as evaluation:
        evaluate(model, (inputs_BT, targets_BT))
    return forward, step.peak, evaluation.peak


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on: those alive now, and the most.

    A storage counts once, whatever views there are of it. What an operator makes and drops inside
    itself is not seen.

    Args:
        known: Tensors that do not count, nor do their views.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._storages: dict[int, object] = {t.untyped_storage()._cdata: t for t in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else (made,):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, count = storage._cdata, storage.nbytes()
        if place in self._storages:
            return

        def freed(reference: object) -> None:
            del self._storages[place]
            self.now -= count

        self._storages[place] = weakref.ref(storage, freed)
        self.now += count
        self.peak = max(self.peak, self.now)

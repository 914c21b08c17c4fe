"""What verbs of the command line share."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from archsearch.errors import RunError, SpaceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from archsearch.search.study import Study
    from archsearch.space_yaml import Experiment

console = Console(highlight=False)

SpaceArg = Annotated[str, typer.Argument(help="A space file, or the name of a shipped space.")]
RunArg = Annotated[str, typer.Argument(help="A run directory, e.g. runs/quickstart.")]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one value, e.g. --set recipe.steps=100. Repeatable."),
]
TextOpt = Annotated[
    list[str] | None,
    typer.Option(
        help="A file, a directory, or hf:NAME of a Hugging Face dataset; by default the standard "
        "library of this Python. Repeatable."
    ),
]
TokenizerOpt = Annotated[
    str, typer.Option(help="byte, a tokenizer.json, or a Hugging Face tokenizer.")
]


class Device(Enum):
    """Where models are trained and used."""

    cpu = "cpu"
    cuda = "cuda"


DeviceOpt = Annotated[
    Device | None,
    typer.Option(envvar="ARCHSEARCH_DEVICE", help="By default a GPU where there is one."),
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(help="Processes; by default one per core, on GPUs 4 for each.", min=1),
]


def with_tasks(space: str, overrides: Iterable[str]) -> Experiment:
    """What a space file says.

    Raises:
        SpaceError: if it is wrong, or names nothing to train on.
    """
    from archsearch.space_yaml import load

    experiment = load(space, tuple(overrides))
    if not experiment.tasks:
        raise SpaceError(f"{space} names no tasks; add e.g. `tasks: {{use: [mad/*]}}`")
    return experiment


def study_of(run: str, storage: str) -> Study:
    """The study of a run directory.

    Raises:
        RunError: if there is no run there, or none is named.
    """
    from archsearch.search.storage import JOURNAL, must_be_there, open_storage
    from archsearch.search.study import Study

    folder = Path(run).resolve()
    if not run or not (folder / "space.yaml").is_file():
        here = sorted(str(p.parent) for p in Path().glob("runs/*/space.yaml"))
        what = f"{run} is no run directory" if run else "name a run"
        raise RunError(f"{what}; runs here: {', '.join(here) or 'none'}")
    if storage:
        must_be_there(storage)
        return Study(open_storage(storage), folder.name)
    if not (folder / JOURNAL).is_file():
        raise RunError(
            f"the study of {run} is not kept there; name its storage with --storage, or in the "
            "environment as ARCHSEARCH_STORAGE"
        )
    return Study.only(open_storage(folder))


def whole_numbers(said: str) -> tuple[int, ...]:
    """Whole numbers with commas between them; none of an empty text.

    Raises:
        RunError: if that is no such text.
    """
    try:
        return tuple(int(number) for number in said.split(",") if said)
    except ValueError:
        raise RunError(f"'{said}' is no list of whole numbers, e.g. 32,64,128") from None


def place(device: Device | None) -> torch.device:
    """Choose the device of this process and of those that it starts.

    Raises:
        RunError: if the device is not there.
    """
    from archsearch.device import ASKED, chosen

    if device:
        os.environ[ASKED] = device.value
    return chosen()


def workers_on(device: Device | None, workers: int | None) -> int:
    """Choose the device as `place` does; how many processes work on it.

    Raises:
        RunError: if the device is not there.
    """
    from archsearch.device import at_once

    place(device)
    return workers or at_once(cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

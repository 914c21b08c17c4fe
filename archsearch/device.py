"""Where processes train: on the CPU, or on which GPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from archsearch.errors import RunError

if TYPE_CHECKING:
    import torch

ASKED = "ARCHSEARCH_DEVICE"
"""Environment variable: cpu, cuda, or empty for a GPU where there is one."""
PLACE = "ARCHSEARCH_PLACE"
"""Environment variable: the number of a process among those that train side by side."""
PER_GPU = 4
"""Trainings side by side on one GPU, unless said otherwise: small models leave most of it idle."""


def chosen() -> torch.device:
    """The device of this process. Those that train side by side are dealt to the GPUs in turn.

    Raises:
        RunError: if what was asked for is unknown or not there.
    """
    import torch

    asked, gpus = os.environ.get(ASKED, ""), torch.cuda.device_count()
    if asked not in ("", "cpu", "cuda"):
        raise RunError(f"device '{asked}' is unknown; legal: cpu, cuda")
    if asked == "cuda" and not gpus:
        raise RunError(f"torch {torch.__version__} finds no GPU here; legal: cpu")
    if asked == "cpu" or not gpus:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get(PLACE, "0")) % gpus)


def at_once(cores: int) -> int:
    """How many trainings run side by side by default."""
    import torch

    gpus = torch.cuda.device_count() if chosen().type == "cuda" else 0
    return min(cores, PER_GPU * gpus) if gpus else cores

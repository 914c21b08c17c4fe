"""The six tasks of MAD as vectorised generators. Poli et al. 2024, arXiv 2403.17844.

A task is a frozen dataclass; `sample` draws rows from an explicit `torch.Generator`. `harder` makes
the same task at a held-out difficulty: longer rows of the same ids, with the same readout.
Importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from typing import TypeAlias

from ._common import IGNORE, difficulties
from .compression import Compression
from .fuzzy_in_context_recall import FuzzyInContextRecall
from .in_context_recall import InContextRecall
from .memorization import Memorization
from .noisy_in_context_recall import NoisyInContextRecall
from .selective_copying import SelectiveCopying

Task: TypeAlias = (
    InContextRecall
    | NoisyInContextRecall
    | FuzzyInContextRecall
    | Memorization
    | Compression
    | SelectiveCopying
)

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        InContextRecall,
        NoisyInContextRecall,
        FuzzyInContextRecall,
        Memorization,
        Compression,
        SelectiveCopying,
    )
}
"""The six classes by name."""

__all__ = [
    "IGNORE",
    "TASKS",
    "Compression",
    "FuzzyInContextRecall",
    "InContextRecall",
    "Memorization",
    "NoisyInContextRecall",
    "SelectiveCopying",
    "Task",
    "difficulties",
]

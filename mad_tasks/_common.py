"""What all six tasks share and what needs no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from dataclasses import Field

IGNORE = -100
"""Target where nothing is scored; the default `ignore_index` of torch's cross-entropy."""


class _Varied(Protocol):
    """A task dataclass whose fields all have defaults, and the axes along which it is varied."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    axes: ClassVar[Mapping[str, tuple[float, ...]]]


T = TypeVar("T", bound=_Varied)


def difficulties(task_class: type[T]) -> Iterator[T]:
    """Yield the baseline, then every value of every axis with the other fields at the baseline.

    These are MAD's settings without the variations of the training-set size, because here
    training data are drawn fresh.
    """
    baseline = task_class()
    yield baseline
    for field, values in task_class.axes.items():
        for value in values:
            yield replace(baseline, **{field: value})

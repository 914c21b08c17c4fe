"""The names under which a run is kept: NAME, then NAME (2), NAME (3), ... as its space changes.

Optuna lets no parameter of a study take other choices, so a run goes on in another study of the
same storage when its space changes. The name of a space holds neither blanks nor parentheses. A
revision counts once it is complete: its attribute `experiment` is written last.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.storages import BaseStorage

_NUMBERED = re.compile(r"(.+) \(([2-9]|[1-9]\d+)\)")


def split(name: str) -> tuple[str, int]:
    """The run that a study belongs to, and which revision of it."""
    found = _NUMBERED.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 1)


def title(run: str, number: int) -> str:
    """The name of a revision."""
    return run if number == 1 else f"{run} ({number})"


def revisions(storage: BaseStorage, run: str) -> dict[int, Mapping[str, Any]]:
    """The user attributes of every revision of a run, half-written ones too, by number."""
    found: dict[int, Mapping[str, Any]] = {}
    for study in storage.get_all_studies():
        name, number = split(study.study_name)
        if name == run:
            found[number] = study.user_attrs
    return found


def newest(storage: BaseStorage, name: str) -> str:
    """The newest complete revision of the run `name`; a name with a number means that one."""
    run, number = split(name)
    if number > 1:
        return name
    complete = [n for n, attrs in revisions(storage, run).items() if "experiment" in attrs]
    return title(run, max(complete, default=1))

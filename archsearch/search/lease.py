"""Who works on a trial, whether they still live, and what becomes of a trial whose worker died.

Optuna's heartbeat knows neither journals nor ask and tell, so a running trial carries its owner and
a time stamp. Public Optuna calls only; it works in every storage.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from archsearch.search.storage import TROUBLE
from archsearch.search.study import FAILED, indexed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from archsearch.search.study import Study

BEAT = 30.0
"""Seconds between two signs of life."""
EXPIRY = 240.0
"""Seconds without one after which the owner counts as dead."""
ATTEMPTS = 3
"""How often a trial may lose its worker before it counts as failed."""
KEPT = ("move", "parent", "origin", "rung", "continues", "outside")
"""What is known of a trial that holds for its repetition, too."""


def me() -> dict[str, Any]:
    """This process, so that it cannot be taken for a later one with the same number."""
    return {
        "host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid()),
        "parent": _PARENT, "parent_born": _PARENT_BORN,
    }  # fmt: skip


def ended(process: Mapping[str, Any]) -> bool:
    """Whether a process, see `me`, is known to be gone; those of other machines never are."""
    here = process["host"] == socket.gethostname()
    return here and not _born(process["pid"]) == process["born"] != 0


@contextmanager
def hold(trial: optuna.Trial) -> Iterator[None]:
    """Own a trial, and show a sign of life while the body runs."""
    trial.set_user_attr("owner", me() | {"seen": time.time()})
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with suppress(UpdateFinishedTrialError, *TROUBLE):
                trial.set_user_attr("owner", me() | {"seen": time.time()})

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def give_back(study: Study, trial: optuna.Trial) -> None:
    """End a trial without a result. If its place is still wanted, it will be queued again."""
    with suppress(UpdateFinishedTrialError):
        trial.set_user_attr("given_back", True)
        study.optuna.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def reap(study: Study, total: int, *, alone: bool = False) -> None:
    """Give the trials of dead workers back to the queue.

    A trial without a result whose worker is gone is told as failed, and its place in the order of
    proposals is queued again with the same decisions.

    Args:
        study: The study.
        total: Places that are to be filled.
        alone: Whether no other process works on this study, so that a trial without an owner is an
            orphan at once and not only after a minute.
    """
    for trial in study.trials():
        if trial.state is TrialState.RUNNING and not _alive(trial, alone):
            with suppress(UpdateFinishedTrialError, ValueError):
                study.optuna.tell(trial.number, state=TrialState.FAIL)
    places: dict[int, list[FrozenTrial]] = {}
    for trial, index in indexed(study.trials()):
        places.setdefault(index, []).append(trial)
    for index, trials in places.items():
        if index < total and all(_lost(trial) for trial in trials):
            # Parameters are taken over only if all of them were set before the worker died.
            whole = next((t for t in trials if "genome_json" in t.user_attrs), None)
            known = whole.user_attrs if whole else {}
            origin = {name: known[name] for name in KEPT if name in known}
            study.optuna.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=whole.params if whole else {},
                    distributions=whole.distributions if whole else {},
                    user_attrs={"index": index, "attempt": _attempt(trials)} | origin,
                )
            )


def surplus(study: Study, trial: optuna.Trial, index: int, total: int) -> bool:
    """Whether a trial that was just begun is not needed: out of range, or in work elsewhere."""
    return index >= total or any(
        other_index == index and other.number < trial.number and not _lost(other)
        for other, other_index in indexed(study.trials())
    )


def _lost(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL and trial.user_attrs.get("status") not in FAILED


def _attempt(trials: list[FrozenTrial]) -> int:
    """The number of the next attempt at a place: one more for every death that counts."""
    newest = max(trial.user_attrs.get("attempt", 1) for trial in trials)
    again = [t for t in trials if t.user_attrs.get("attempt", 1) == newest]
    return int(newest) + any(_died_alone(trial) for trial in again)


def _died_alone(trial: FrozenTrial) -> bool:
    """Whether a lost trial's worker died while the process that started it lives on.

    If both are gone the whole run was stopped, which is not held against the trial.
    """
    owner = trial.user_attrs.get("owner")
    if owner is None or trial.user_attrs.get("given_back"):
        return False
    if owner["host"] != socket.gethostname():
        return True
    return _born(owner["parent"]) == owner["parent_born"] != 0


def _alive(trial: FrozenTrial, alone: bool) -> bool:
    owner = trial.user_attrs.get("owner")
    if owner is None:
        began = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
        return not alone and time.time() - began < 60
    if owner["host"] == socket.gethostname():
        return not ended(owner)
    return bool(time.time() - owner["seen"] < EXPIRY)


def _born(pid: int) -> int:
    """When a process began, in its system's own unit; 0 if there is none."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)
            return 1
        fields = stat.read_text().rpartition(")")[2].split()
        return 0 if fields[0] == "Z" else int(fields[19])
    except PermissionError:
        return 1
    except (OSError, ValueError):
        return 0


_PARENT = os.getppid()
_PARENT_BORN = _born(_PARENT)

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

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from archsearch.search.study import indexed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna import Trial

    from archsearch.search.study import Study

BEAT = 30.0
"""Seconds between two signs of life."""
EXPIRY = 240.0
"""Seconds without one after which the owner counts as dead."""
ATTEMPTS = 3
"""How often a trial may lose its worker before it counts as failed."""


def me() -> dict[str, Any]:
    """This process, so that it cannot be taken for a later one with the same number."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}


@contextmanager
def hold(trial: Trial) -> Iterator[None]:
    """Own a trial, and show a sign of life while the body runs."""
    trial.set_user_attr("owner", me() | {"seen": time.time()})
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr("owner", me() | {"seen": time.time()})

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
            last = trials[-1]
            study.optuna.add_trial(
                create_trial(
                    state=TrialState.WAITING, params=last.params, distributions=last.distributions,
                    user_attrs={"index": index, "attempt": len(trials) + 1},
                )
            )  # fmt: skip


def surplus(study: Study, trial: Trial, index: int, total: int) -> bool:
    """Whether a trial that was just begun is not needed: out of range, or in work elsewhere."""
    return index >= total or any(
        other_index == index and other.number < trial.number and not _lost(other)
        for other, other_index in indexed(study.trials())
    )


def _lost(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL and "status" not in trial.user_attrs


def _alive(trial: FrozenTrial, alone: bool) -> bool:
    owner = trial.user_attrs.get("owner")
    if owner is None:
        began = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
        return not alone and time.time() - began < 60
    if owner["host"] == socket.gethostname():
        return _born(owner["pid"]) == owner["born"] != 0
    return bool(time.time() - owner["seen"] < EXPIRY)


def _born(pid: int) -> int:
    """When a process began, in its system's own unit; 0 if there is none."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists():
            return 1
        fields = stat.read_text().rpartition(")")[2].split()
        return 0 if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError):
        return 0

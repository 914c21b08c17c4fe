"""Behind `archsearch run`: a run directory, and workers as child processes."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.errors import RunError
from archsearch.rules import draw
from archsearch.search.lease import reap
from archsearch.search.proposals import Proposals
from archsearch.search.storage import open_storage
from archsearch.search.study import Study
from archsearch.seeds import seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from archsearch.space_yaml import Experiment

Event = dict[str, Any]


@dataclass
class Run:
    """A run directory: the study, artifacts, weights and the best model."""

    folder: Path
    storage: str = ""
    """Storage URL; empty for the journal in the directory."""

    @property
    def place(self) -> str:
        """What `open_storage` takes."""
        return self.storage or str(self.folder)

    def prepare(self, text: str) -> None:
        """Make the directory and keep the space file in it.

        Raises:
            RunError: if it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "artifacts").mkdir(exist_ok=True)
            scratch = self.folder / ".space.yaml"
            scratch.write_text(text)
            scratch.replace(self.folder / "space.yaml")
        except OSError as error:
            raise RunError(
                f"{self.folder} cannot be written: {error.strerror}. "
                "Choose another place with --dir"
            ) from None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other coordinators on this machine out.

        Raises:
            RunError: if one is already at work.
        """
        with (self.folder / ".running").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"another `archsearch run` works on {self.folder}; watch it with "
                    f"`archsearch show {self.folder}`"
                ) from None
            yield


@dataclass
class Coordinator:
    """Starts workers, passes on what they tell, and sees to it that every trial ends."""

    run: Run
    experiment: Experiment
    study: Study
    proposals: Proposals
    workers: int
    children: list[subprocess.Popen[str]] = field(default_factory=list)
    events: queue.Queue[Event | None] = field(default_factory=queue.Queue)
    errors: list[str] = field(default_factory=list)

    @property
    def finished(self) -> int:
        """Trials of this study that came to an end."""
        return sum(index < self.proposals.total for index in self.study.records())

    def go(self, on_event: Callable[[Event], None]) -> None:
        """Work until every trial has ended, or the time of `search.time` is over.

        Raises:
            RunError: if the workers cannot go on. KeyboardInterrupt passes through once all
                workers have stopped.
        """
        total, search = self.proposals.total, self.experiment.search
        until = time.time() + search.time if search.time else None
        reap(self.study, total, alone=not self.run.storage)
        try:
            while (before := self.finished) < total and (until is None or time.time() < until):
                self._start(min(self.workers, total - before), until)
                self._pass_on(on_event)
                reap(self.study, total)
                if self.errors and self.finished == before:
                    raise RunError(self.errors[-1])
        finally:
            for child in self.children:
                child.kill()
                child.wait()

    def _start(self, count: int, until: float | None) -> None:
        """Start workers, each on one core, each bound to live no longer than this process."""
        command = [
            sys.executable, "-m", "archsearch", "worker", self.run.place,
            "--study", self.study.name, "--dir", str(self.run.folder),
            "--trials", str(self.experiment.search.trials), "--events",
        ]  # fmt: skip
        if until is not None:
            command += ["--until", str(until)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.children = [
            subprocess.Popen(
                command, env=environment, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )
            for _ in range(count)
        ]  # fmt: skip
        for child in self.children:
            threading.Thread(target=self._listen, args=(child,), daemon=True).start()

    def _listen(self, child: subprocess.Popen[str]) -> None:
        """Queue what a worker tells, then None when it has left."""
        assert child.stdout and child.stderr  # noqa: PT018
        for line in child.stdout:
            self.events.put(json.loads(line))
        complaint = child.stderr.read().strip()
        if child.wait() > 0 and complaint:
            self.errors.append(complaint)
        self.events.put(None)

    def _pass_on(self, on_event: Callable[[Event], None]) -> None:
        """Pass events on until every worker of this round has left."""
        alive = len(self.children)
        while alive:
            event = self.events.get()
            if event is None:
                alive -= 1
            else:
                on_event(event)


def prepare(experiment: Experiment, run: Run, workers: int) -> tuple[Study, Proposals]:
    """Open the study of an experiment, and make sure that there is something to train.

    Raises:
        SpaceError: if no member of the space may be trained.
        RunError: if the run belongs to another space or cannot be written.
    """
    rng = random.Random(seed(experiment.search.seed, "check"))
    draw(experiment.space, rng, experiment.context, lambda genome: True)
    run.prepare(experiment.text)
    study = Study.create(open_storage(run.place), experiment, lag=max(8, 4 * workers))
    return study, Proposals(experiment, study.optuna.directions, study.about["lag"])

"""Behind `archsearch run`: a run directory, and workers as child processes."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from archsearch.device import PLACE, chosen
from archsearch.errors import RunError
from archsearch.kernels.backends import VARIABLE
from archsearch.rules import draw
from archsearch.search.lease import ATTEMPTS, reap
from archsearch.search.proposals import Proposals
from archsearch.search.revisions import newest, split
from archsearch.search.storage import in_words, open_storage
from archsearch.search.study import Study, data
from archsearch.search.widen import carried, widen
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
        """Make the directory. A space file that is already there stays until `keep`.

        Raises:
            RunError: if it cannot be written.
        """
        with self._writing():
            (self.folder / "artifacts").mkdir(parents=True, exist_ok=True)
            (self.folder / ".running").touch()
            if not (self.folder / "space.yaml").exists():
                self.keep(text)

    def keep(self, text: str) -> None:
        """Keep the space file in the directory.

        Raises:
            RunError: if it cannot be written.
        """
        with self._writing():
            scratch = self.folder / ".space.yaml"
            scratch.write_text(text)
            scratch.replace(self.folder / "space.yaml")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
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
    exhausted: str = ""
    """Why the search ended before its budget; empty while the space has members left."""
    children: list[subprocess.Popen[str]] = field(default_factory=list)
    events: queue.Queue[Event | subprocess.Popen[str]] = field(default_factory=queue.Queue)
    """What workers tell; a worker itself once it has left."""
    errors: list[str] = field(default_factory=list)

    @property
    def finished(self) -> int:
        """Trials of this study that came to an end."""
        return sum(index < self.proposals.total for index in self.study.records())

    @property
    def _total(self) -> int:
        """Trials that there will be, as far as the results so far tell."""
        self.proposals.schedule.extend(self.study.records(), self.study.places())
        return self.proposals.total

    def go(self, on_event: Callable[[Event], None]) -> None:
        """Work until every trial has ended, none is left, or the time of `search.time` is over.

        Raises:
            RunError: if the workers cannot go on. KeyboardInterrupt passes through once all
                workers have stopped.
        """
        search, study = self.experiment.search, self.study
        until = time.time() + search.time if search.time else None
        idle = 0
        try:
            with in_words(self.run.place):
                reap(study, self._total, alone=not self.run.storage)
                while (before := self.finished) < (total := self._total) and not self.exhausted:
                    if until is not None and time.time() >= until:
                        break
                    self.children, self.errors = [], []
                    self._start(min(self.workers, total - before), until)
                    self._pass_on(on_event, until)
                    reap(study, self._total)
                    idle = 0 if self.finished > before else idle + 1
                    if idle and not self.exhausted:
                        self._give_up(idle)
        finally:
            for child in self.children:
                child.kill()
                child.wait()

    def _give_up(self, rounds: int) -> None:
        """End a run whose workers get nowhere.

        Raises:
            RunError: with a worker's last words, if the run goes on elsewhere, or after some rounds
                that ended without any.
        """
        name = self.study.name
        if (later := newest(self.study.storage, split(name)[0])) != name:
            raise RunError(
                f"another command changed the space: the run goes on as '{later}'. The same "
                "command, with the changed file, works there"
            )
        if self.errors:
            raise RunError(self.errors[-1])
        if rounds > ATTEMPTS + 1:
            codes = sorted({child.returncode for child in self.children})
            raise RunError(
                f"every worker died in {rounds} rounds without finishing a trial (exit code "
                f"{', '.join(map(str, codes))}); is there enough memory for {self.workers}? "
                "Fewer with --workers"
            )

    def _start(self, count: int, until: float | None) -> None:
        """Start workers, each on a core and a GPU if any, bound to live no longer than this."""
        command = [
            sys.executable, "-m", "archsearch", "worker", self.run.place,
            "--study", self.study.name, "--dir", str(self.run.folder),
            "--trials", str(self.experiment.search.trials), "--events",
        ]  # fmt: skip
        if until is not None:
            command += ["--until", str(until)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        for place in range(len(self.children), len(self.children) + count):
            words = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - the thread does
            child = subprocess.Popen(
                command, env=environment | {PLACE: str(place)}, encoding="utf-8", errors="replace",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words,
                start_new_session=True,
            )  # fmt: skip
            self.children.append(child)
            threading.Thread(target=self._listen, args=(child, words), daemon=True).start()

    def _listen(self, child: subprocess.Popen[str], words: IO[str]) -> None:
        """Queue what a worker tells, then the worker itself when it has left."""
        assert child.stdin and child.stdout  # noqa: PT018
        with child.stdin, child.stdout:
            for line in child.stdout:
                with suppress(ValueError):  # a block may print, too
                    event = json.loads(line)
                    if isinstance(event, dict) and "event" in event:
                        self.events.put(event)
            left = child.wait()
        with words:
            words.seek(0)
            complaint = words.read().strip()
        if left > 0 and complaint:
            self.errors.append(complaint)
        self.events.put(child)

    def _pass_on(self, on_event: Callable[[Event], None], until: float | None) -> None:
        """Pass events on until every worker of this round has left.

        One that was killed is replaced, a few times a round, so that the rest is not left alone.
        """
        alive, spare = len(self.children), ATTEMPTS
        while alive:
            event = self.events.get()
            if isinstance(event, subprocess.Popen):
                alive -= 1
                if event.returncode < 0 and spare and alive:
                    alive, spare = alive + 1, spare - 1
                    self._start(1, until)
                continue
            if event["event"] == "exhausted":
                self.exhausted = event["why"]
            on_event(event)


def feasible(experiment: Experiment) -> None:
    """Make sure that there is something to train, and to train it on, before anything is written.

    Raises:
        SpaceError: if no member of the space may be trained.
        CorpusError: if a text cannot be used.
        ModelError: if a backend was asked for that this device does not have.
    """
    data(experiment)
    if os.environ.get(VARIABLE):
        from archsearch.kernels.dispatch import require

        require(chosen())
    rng = random.Random(seed(experiment.search.seed, "check"))
    draw(experiment.space, rng, experiment.context, lambda genome: True)


def prepare(
    experiment: Experiment, run: Run, workers: int, say: Callable[[str], None] = lambda line: None
) -> tuple[Study, Proposals]:
    """Make the run directory and open the study of an experiment.

    A run that was made with another space goes on in this one if all of its trials are members;
    `say` is told.

    Raises:
        RunError: if the run belongs to another space or cannot be written.
    """
    run.prepare(experiment.text)
    with in_words(run.place):
        storage = open_storage(run.place)
        widen(storage, experiment, alone=not run.storage, say=say)
        study = Study.create(storage, experiment, lag=max(8, 2 * workers))
        run.keep(experiment.text)
        return study, Proposals(experiment, study.about["lag"], carried(study))

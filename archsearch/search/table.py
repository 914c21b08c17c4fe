"""A table of a space: what every member scored, so that searching it costs nothing.

A file of JSON lines: one that says what was trained and how, then one a member with its costs and
the curve of every training. It is only appended to; a half line at the end, left by a process that
was killed, is dropped. A table that ends in `.gz` is complete and only read.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from archsearch.errors import RunError, SpaceError
from archsearch.genome import Genome
from archsearch.identity import differences
from archsearch.library import shipped_tables
from archsearch.rules import cached_cost, measure, members
from archsearch.search.study import versions
from archsearch.trial import WORST_LOSS, run_trial

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

    from archsearch.space_yaml import Experiment

FORMAT = 1
KIND = "archsearch table"
DIGITS = 4
"""Accuracies and losses are kept to so many decimals."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One training."""

    accuracy: tuple[float, ...]
    """On held-out rows, at each evaluation until the training ended."""
    loss: tuple[float, ...]
    """Training loss since the evaluation before, in nats per scored token."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a search learns from a trial."""

    scores: tuple[float, ...]
    """Mean accuracy after each stretch."""
    score: float
    loss: float
    values: tuple[float, ...]
    """One per objective; empty for a trial that failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One member, trained on every task with every replicate."""

    genome: Genome
    status: str
    """As of a trial: ok, diverged, oom or invalid; one for all replicates."""
    why: str
    curves: Mapping[str, tuple[Curve, ...]]
    """By task; a replicate each."""

    def observed(self, experiment: Experiment, replicate: int) -> Seen:
        """What a search with one training per task would have seen."""
        return self._seen(experiment, [curves[replicate] for curves in self.curves.values()])

    def true(self, experiment: Experiment) -> tuple[float, ...]:
        """The values of the objectives over all replicates; empty for a member that failed."""
        return self._seen(experiment, [c for curves in self.curves.values() for c in curves]).values

    def _seen(self, experiment: Experiment, curves: list[Curve]) -> Seen:
        if self.status not in ("ok", "diverged"):
            return Seen((), 0.0, WORST_LOSS, ())
        stretches = max((len(curve.accuracy) for curve in curves), default=0)
        scores = tuple(
            math.fsum(c.accuracy[min(i, len(c.accuracy) - 1)] for c in curves) / len(curves)
            for i in range(stretches)
            if all(c.accuracy for c in curves)
        )
        score, loss = 0.0, WORST_LOSS
        if self.status == "ok":
            score, loss = scores[-1], math.fsum(c.loss[-1] for c in curves) / len(curves)
        known = {"score": score, "loss": loss}
        goals, context = experiment.goals, experiment.context
        values = tuple(measure(goal.expr, self.genome, context, known) for goal in goals)
        return Seen(scores, score, loss, values if all(map(math.isfinite, values)) else ())


def train(experiment: Experiment, genome: Genome) -> Row:
    """Train a member on every task of an experiment, with as many replicates as its recipe says."""
    result = run_trial(genome, experiment.tasks, experiment.recipe, experiment.search.seed)
    curves: dict[str, tuple[Curve, ...]] = {}
    for run in result.runs:
        accuracy = tuple(round(point.accuracy, DIGITS) for point in run.curve)
        loss = tuple(round(point.loss, DIGITS) for point in run.curve)
        curves[run.task] = (*curves.get(run.task, ()), Curve(accuracy, loss))
    return Row(genome=genome, status=result.status, why=result.why, curves=curves)


class Table:
    """The rows of a space's members.

    Args:
        experiment: The space, its tasks and its recipe.
        path: A file, made when the first row is written; or a table that a package brings.

    Raises:
        RunError: if the file is no table, of another version, of another experiment, or damaged.
    """

    def __init__(self, experiment: Experiment, path: Path | Traversable) -> None:
        self.experiment, self.path = experiment, path
        self.rows: dict[str, Row] = {}
        """By the key of the genome."""
        if path.is_file():
            self._read()

    @classmethod
    def of(cls, experiment: Experiment, source: str, fallback: Path) -> Table:
        """The table beside a space, shipped or a file, if there is one; else that at `fallback`."""
        file = Path(source)
        beside = file.with_suffix(".jsonl.gz") if file.is_file() else shipped_tables().get(source)
        return cls(experiment, beside if beside and beside.is_file() else fallback)

    @property
    def complete(self) -> bool:
        """Whether it holds every member of a space that can be listed."""
        listed = members(self.experiment.space, self.experiment.context)
        return listed is not None and all(c.genome.key in self.rows for c in listed)

    def get(self, genome: Genome) -> Row:
        """The row of a member, which is trained if it was not.

        Raises:
            RunError: if a row is missing and the table cannot be written.
        """
        if genome.key not in self.rows:
            if str(self.path).endswith(".gz"):
                raise RunError(
                    f"{self.path} lacks {genome.text()}, and a compressed table is only read; "
                    "unpack it with gunzip, and name the file with --table to fill it"
                )
            self.add(train(self.experiment, genome))
        return self.rows[genome.key]

    def add(self, row: Row) -> None:
        """Append a row. Several processes may.

        Raises:
            RunError: if the file cannot be written.
        """
        assert isinstance(self.path, Path)  # what a package brings is compressed
        lines = [about(self.experiment), self._json(row)]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
                for line in lines[1:] if whole else lines:
                    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror}. What was trained before is "
                "safe; name another file with --table, or run again once it can be"
            ) from None
        self.rows[row.genome.key] = row

    def _json(self, row: Row) -> dict[str, Any]:
        cost = cached_cost(row.genome, self.experiment.context)
        curves = {
            task: {"accuracy": [c.accuracy for c in some], "loss": [c.loss for c in some]}
            for task, some in row.curves.items()
        }
        return {
            "genome": row.genome.to_json(), "params": cost.params,
            "state_bytes": cost.state_bytes, "flops": cost.flops, "status": row.status,
            **({"why": row.why} if row.why else {}), "curves": curves,
        }  # fmt: skip

    def _read(self) -> None:
        try:
            raw = self.path.read_bytes()
            text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise self._damaged("it cannot be unpacked") from None
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error.strerror}") from None
        if not text:
            return
        head, *lines = text.split(b"\n")[:-1] or [b""]
        self._check(head)
        for number, line in enumerate(lines, 2):
            try:
                row = _row(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, SpaceError) as error:
                why = str(error) if isinstance(error, SpaceError) else "it is no row"
                raise self._damaged(f"line {number}: {why}") from None
            self.rows[row.genome.key] = row

    def _damaged(self, what: str) -> RunError:
        return RunError(
            f"the table {self.path} is damaged; {what}. Nothing was changed. Restore the file, or "
            "delete that line (its member is then trained anew)"
        )

    def _check(self, head: bytes) -> None:
        """Raise a RunError unless the table was made by this version for this experiment."""
        try:
            found = json.loads(head)
            kind, made = found["kind"], found["format"]
        except (ValueError, KeyError, TypeError):
            kind = made = None
        if kind != KIND:
            raise RunError(
                f"{self.path} is no table of archsearch; nothing was changed. Name another file "
                "with --table"
            )
        if made != FORMAT:
            by = found.get("versions", {}).get("archsearch", "unknown")
            raise RunError(
                f"the table {self.path} has format {made}, made by archsearch {by}; this is "
                f"archsearch {versions()['archsearch']}, which reads format {FORMAT}. Nothing was "
                "changed. Use that version, or name another file with --table"
            )
        wanted = about(self.experiment)
        lines = differences(found["experiment"], wanted["experiment"])
        if found["seed"] != wanted["seed"]:
            lines.append(f"search.seed: {found['seed']} -> {wanted['seed']}")
        if lines:
            shown = [f"    {line}" for line in lines[:12]] + ["    ..."] * (len(lines) > 12)
            changed = "\n".join(shown)
            raise RunError(
                f"the table {self.path} was made for another experiment. What differs "
                f"(table -> space):\n{changed}\nNothing was changed. Restore the space, or name "
                "another file with --table"
            )


def about(experiment: Experiment) -> dict[str, Any]:
    """The first line of a table: all that its rows depend on. Objectives are computed from rows."""
    identity = yaml.safe_load(experiment.identity)
    basis = {k: v for k, v in identity.items() if k not in ("objectives", "search")}
    return {
        "kind": KIND, "format": FORMAT, "name": experiment.space.name,
        "experiment": yaml.safe_dump(basis), "seed": experiment.search.seed,
        "steps": experiment.recipe.stops, "versions": versions(),
    }  # fmt: skip


def _row(data: Any) -> Row:
    curves = {
        str(task): tuple(
            Curve(tuple(map(float, accuracy)), tuple(map(float, loss)))
            for accuracy, loss in zip(some["accuracy"], some["loss"], strict=True)
        )
        for task, some in data["curves"].items()
    }
    return Row(
        genome=Genome.from_json(data["genome"]), status=str(data["status"]),
        why=str(data.get("why", "")), curves=curves,
    )  # fmt: skip

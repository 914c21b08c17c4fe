"""Spaces that train in milliseconds, and studies of them without a command line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.search.run import Run, prepare
from archsearch.search.storage import open_storage
from archsearch.search.study import Study
from archsearch.search.worker import Worker
from archsearch.space_yaml import parse

if TYPE_CHECKING:
    from archsearch.search.proposals import Proposals

LISTED = """\
version: 1
name: listed
model:
  d_model: 16
  stack:
    - pattern:
        - ffn: {swiglu: {mult: [1, 2, 3, 4], act: [silu, gelu, relu2]}}
objectives: [{maximize: score}, {minimize: params}]
tasks: {use: [mad/in-context-recall: {vocab: 8, seq_len: 16}]}
recipe: {steps: 4, evals: 2, batch: 4, eval_rows: 16, lr: 0.03}
search: {trials: 12}
"""
"""Twelve members, so that a search can list them all."""

LARGE = """\
version: 1
name: large
model:
  d_model: 16
  stack:
    - repeat: 4
      choose: per_repeat
      pattern:
        - ffn: [swiglu: {mult: {from: 1, to: 4}, act: [silu, gelu, relu2]}, none]
objectives: [{maximize: score}, {minimize: params}]
tasks: {use: [mad/in-context-recall: {vocab: 8, seq_len: 16}]}
recipe: {steps: 4, evals: 2, batch: 4, eval_rows: 16, lr: 0.03}
search: {trials: 22}
"""
"""Too many members to list."""


def begin(folder: Path, text: str, *overrides: str, workers: int = 1) -> tuple[Study, Proposals]:
    """What `archsearch run` does before it starts workers."""
    return prepare(parse(text, "space.yaml", overrides), Run(folder), workers)


def worker(folder: Path, trials: int | None = None, place: str = "", **more: Any) -> Worker:
    """A worker of the only study in a run directory, in this process."""
    name = parse((folder / "space.yaml").read_text()).space.name
    return Worker(place or str(folder), name, folder, trials, **more)


def searched(folder: Path, text: str, *overrides: str) -> Study:
    """A study that one worker has finished in this process."""
    study, _ = begin(folder, text, *overrides)
    worker(folder).work()
    return study


def opened(folder: Path, place: str = "") -> Study:
    """The study of a run directory, read anew."""
    name = parse((folder / "space.yaml").read_text()).space.name
    return Study(open_storage(place or folder), name)


def outcome(study: Study) -> dict[int, tuple[Any, ...]]:
    """Everything about the finished trials that must not depend on how the run went."""
    records = sorted(study.records().items())
    return {
        index: (r.genome.key, r.status, r.why, r.values, r.scores, r.error, r.attrs["loss"])
        for index, r in records
    }


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    fields = process(pid)
    return bool(fields) and fields[0] != "Z"


def process(pid: int) -> list[str]:
    """What the kernel knows of a process: its state first; empty if there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def workers_on(run: Path, folder: Path) -> list[int]:
    """The process numbers of the workers on the run directory `run` that work in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            here = (path / "cwd").readlink() == folder.resolve()
            if here and "worker" in words and str(run) in words and alive(int(path.name)):
                found.append(int(path.name))
    return found

"""Verbs of a search."""

from __future__ import annotations

import json
import os
import sys
import threading
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from archsearch.cli.common import (
    DeviceOpt,
    RunArg,
    SetOpt,
    SpaceArg,
    WorkersOpt,
    console,
    cores,
    study_of,
    with_tasks,
    workers_on,
)

app = typer.Typer()


class Control(Enum):
    """What a search may be compared with."""

    random = "random"


@app.command()
def run(
    space: SpaceArg,
    trials: Annotated[
        int | None, typer.Option(help="Trials in all, finished ones included.", min=1)
    ] = None,
    workers: WorkersOpt = None,
    device: DeviceOpt = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run, instead of the space's.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Where runs are kept.")] = Path("runs"),
    storage: Annotated[
        str,
        typer.Option(
            envvar="ARCHSEARCH_STORAGE", help="Optuna storage URL instead of a journal file."
        ),
    ] = "",
    control: Annotated[
        Control | None,
        typer.Option(help="Search at random too, with the same budget, and compare the winners."),
    ] = None,
    override: SetOpt = None,
) -> None:
    """Search a space. The same command continues a run that was stopped.

    Results go to DIR/NAME: the study, a drawing of every trial, and the best model in best/.
    """
    overrides = [*(override or ())]
    overrides += [f"search.trials={trials}"] if trials else []
    overrides += [f"name={name}"] if name else []
    experiment = with_tasks(space, overrides)
    from archsearch.fits import check_fits

    for warning in (*experiment.warnings, *check_fits(experiment)):
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)

    from archsearch.report.session import search
    from archsearch.search.run import Run

    place = Run(folder / experiment.space.name, storage)
    search(experiment, place, workers_on(device, workers), console, control=control is not None)


@app.command(hidden=True)
def worker(
    place: str,
    study: Annotated[str, typer.Option(help="Name of the study.")],
    folder: Annotated[Path, typer.Option("--dir", help="Where artifacts and weights go.")],
    trials: Annotated[int | None, typer.Option(help="Trials in all.", min=1)] = None,
    until: Annotated[float | None, typer.Option(help="No trial starts after this time.")] = None,
    events: Annotated[
        bool, typer.Option(help="Tell what happens on stdout, as JSON lines.")
    ] = False,
) -> None:
    """Work on a study until its trials are done; any number may work on one."""
    if events:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
    import torch

    from archsearch.search.worker import Worker

    torch.set_num_threads(1)

    def emit(event: dict[str, Any]) -> None:
        if events:
            print(json.dumps(event), flush=True)  # noqa: T201

    Worker(place, study, folder, trials, emit).work(until)


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone and its pipe is closed."""
    sys.stdin.read()
    os._exit(1)


@app.command()
def show(
    run: RunArg = "",
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Show what a run has found so far."""
    from archsearch.report.session import summary

    console.print(summary(study_of(run, storage), Path(run)))


@app.command()
def report(
    run: RunArg = "",
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default RUN/report.html.")
    ] = None,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Write what a run found as one HTML file: front, winner, why, costs, how to reproduce it.

    It needs no network, so it can be kept or sent as it is.
    """
    from archsearch.report.html import FILE
    from archsearch.report.html import report as write

    write(study_of(run, storage), Path(run), run, out or Path(run) / FILE, console)


@app.command()
def explain(
    run: RunArg = "",
    trial: Annotated[str, typer.Option(help="Index of a trial, or best.")] = "best",
    seeds: Annotated[int, typer.Option(help="Fresh seeds of each training.", min=2, max=10)] = 3,
    workers: WorkersOpt = None,
    device: DeviceOpt = None,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Say why a trial won: what each edit of it costs, which choices and motifs paid.

    Trains every one-edit neighbour on fresh seeds; writes the page to RUN/explain.md.
    """
    from archsearch.report.explain import explain as write
    from archsearch.report.session import pick

    study = study_of(run, storage)
    write(study, pick(study, trial), Path(run), seeds, workers_on(device, workers), console)


@app.command()
def compare_samplers(
    space: SpaceArg,
    strategies: Annotated[
        list[str] | None,
        typer.Option(help="Strategies, e.g. evolution,graphgp; by default all. Repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Paired searches of each strategy.")] = 15,
    trials: Annotated[int, typer.Option(help="Trials of each search.", min=1)] = 100,
    table: Annotated[
        Path | None,
        typer.Option(help="Table of the members; by default the shipped one, or DIR/NAME."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for all curves, as JSON and as a picture.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Where runs are kept.")] = Path("runs"),
    override: SetOpt = None,
) -> None:
    """Compare search strategies on a space whose members are trained only once.

    A table keeps what each member scored. That of hybridbench is shipped, complete; for another
    space DIR/NAME/table.jsonl is filled as the searches go.
    """
    experiment = with_tasks(space, override or ())
    from archsearch.report.compare import compare_samplers as compare
    from archsearch.search.proposals import NAMES
    from archsearch.search.table import Table

    names = [name for given in strategies or NAMES for name in given.split(",") if name]
    kept = folder / experiment.space.name / "table.jsonl"
    known = Table(experiment, table) if table else Table.of(experiment, space, kept)
    compare(space, known, names, seeds, trials, out, console)


@app.command()
def check(space: SpaceArg, override: SetOpt = None) -> None:
    """Check a space: its size, what its rules reject, and how long a search would take."""
    from archsearch.space_yaml import load

    experiment = load(space, tuple(override or ()))
    from archsearch.report.survey import check_report

    check_report(experiment, space, cores(), console)


@app.command()
def dashboard(
    run: RunArg = "",
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8080,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Serve Optuna's dashboard for a run, with a drawing and a note for every trial."""
    from archsearch.report.dashboard import serve

    serve(study_of(run, storage), Path(run), port, console)

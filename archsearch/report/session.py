"""What a person sees of a run, from its first line to the next command to type."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from archsearch.errors import RunError
from archsearch.export import export
from archsearch.report.finals import compare_with_control, control_lines, finals_lines, hold_finals
from archsearch.report.live import Screen, View
from archsearch.report.tables import trial_table
from archsearch.search.finals import merged
from archsearch.search.fresh import recall
from archsearch.search.proposals import strangers
from archsearch.search.run import Coordinator, Run, feasible, prepare
from archsearch.search.storage import in_words
from archsearch.words import span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console, RenderableType

    from archsearch.search.proposals import Proposals
    from archsearch.search.study import Record, Study
    from archsearch.space_yaml import Experiment

MOST_ROWS = 30


def search(
    experiment: Experiment, run: Run, workers: int, console: Console, *, control: bool = False
) -> None:
    """Search a space and show it, to the table and the exported model at the end.

    Args:
        experiment: What is searched.
        run: Where.
        workers: Processes.
        console: Where it is shown.
        control: Whether to search at random too, with the same budget, and compare the winners.

    Raises:
        SpaceError: if no member of the space may be trained.
        RunError: if the run cannot go on, or no trial ended well.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    feasible(experiment)
    run.prepare(experiment.text)
    with run.claimed():
        study, proposals = prepare(experiment, run, workers, say)
        try:
            _trials(experiment, run, study, proposals, workers, console)
            with in_words(run.place):
                known = recall(run.folder, study)
                hold_finals(study, experiment, run.folder, workers, console, known)
            best = study.best()
            if best is not None:
                weights = run.folder / "weights" / best.genome.key
                export(best.genome, weights, run.folder / "best", force=True)
            if best is not None and control:
                _control(experiment, run, study, proposals, workers, console)
        except KeyboardInterrupt:
            done = len(study.records())
            console.print(
                f"\nstopped; {done} finished trials are safe. The same command continues."
            )
            raise SystemExit(130) from None
        console.print(summary(study, run.folder))
        if best is None:
            raise RunError(f"{study.name}: no trial ended well")


def _beside(experiment: Experiment) -> Iterator[str]:
    """What the search does besides proposing members."""
    if rungs := experiment.search.rungs:
        steps = ", ".join(map(str, rungs))
        yield (
            f"rungs: each trial waits after {steps} of {experiment.recipe.steps} steps; the best "
            f"{experiment.search.keep:.0%} go on"
        )
    if names := strangers(experiment):
        yield f"not in the space, trained for comparison: {', '.join(names)}"


def _trials(
    experiment: Experiment,
    run: Run,
    study: Study,
    proposals: Proposals,
    workers: int,
    console: Console,
) -> None:
    """Run the trials of a study and show them."""
    goals = tuple(goal.name for goal in experiment.goals)
    view = View(study.name, proposals.schedule, goals, experiment.space.varying, workers)
    tasks = ", ".join(task.name for task in experiment.tasks)
    console.print(f"searching {study.name}: {proposals.why}", markup=False, soft_wrap=True)
    for line in _beside(experiment):
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        f"tasks: {tasks}; {workers} worker{'s'[: workers > 1]}", markup=False, soft_wrap=True
    )
    for task in experiment.tasks:
        if hasattr(task, "about"):
            console.print(f"{task.name}: {task.about()}", markup=False, soft_wrap=True)
    with Screen(console, view, study) as screen:
        coordinator = Coordinator(run, experiment, study, proposals, workers)
        coordinator.go(screen.event)
    if coordinator.exhausted:
        console.print(f"ended early: {coordinator.exhausted}", markup=False, soft_wrap=True)
    elif coordinator.finished < proposals.total:
        console.print("the time of search.time is over; the same command continues")


def _control(
    experiment: Experiment,
    run: Run,
    study: Study,
    proposals: Proposals,
    workers: int,
    console: Console,
) -> None:
    """Search at random with as many trials in RUN/control, then compare the winners."""
    if proposals.by_chance:
        why = f"the search itself was random: {proposals.why}"
        console.print(f"no control: {why}", markup=False, soft_wrap=True)
        return
    trials = len(study.latest())
    search = {"strategy": "random", "trials": trials, "time": None}
    chance = dataclasses.replace(
        experiment,
        search=experiment.search.model_copy(update=search),
        overrides=(*experiment.overrides, "search.strategy=random", f"search.trials={trials}"),
    )
    console.print(f"control: random search with the same {trials} trials")
    apart = Run(run.folder / "control")
    other, made = prepare(chance, apart, workers)
    _trials(chance, apart, other, made, workers, console)
    with in_words(run.place):
        known = merged(recall(apart.folder, other), recall(run.folder, study))
        hold_finals(other, chance, apart.folder, workers, console, known)
        compare_with_control(study, other, experiment, run.folder, workers, console, known)


def summary(study: Study, folder: Path) -> RenderableType:
    """The trials of a run as a table, and the next command to type."""
    records, experiment = study.latest(), study.experiment()
    if not records:
        return Text(f"{study.name}: no trial has finished yet")
    goals = tuple(goal.name for goal in experiment.goals)
    front, best = study.front(), study.best()
    beside = [r for r in records if r.attrs.get("outside")]
    others = (r for r in records if r not in front and r not in beside)
    rest = sorted(others, key=lambda r: (-r.attrs.get("rung", 0), -r.score, r.index))
    rows = (front + rest)[:MOST_ROWS]
    varying = experiment.space.varying
    seconds = sum(float(r.attrs["seconds"]) for r in study.records().values())
    parts: list[RenderableType] = [
        _headline(study.name, experiment.recipe.seeds, records, seconds),
        Text(),
    ]
    if front:
        parts.append(trial_table(front, goals, varying, best, title=f"front of {len(front)}"))
    if len(rows) > len(front):
        parts += [Text(), trial_table(rows[len(front) :], goals, varying, best, "the others")]
    if more := len(records) - len(beside) - len(rows):
        parts.append(Text(f"and {more} more", style="dim"))
    parts.append(Text(_legend(study, best), style="dim"))
    if beside:
        parts += [Text(), trial_table(beside, goals, varying, title="for comparison")]
        parts.append(Text(f"not in the space: {', '.join(strangers(experiment))}", style="dim"))
    if best is None:
        waiting = sum(r.status == "paused" for r in records)
        why = next((r.why for r in records if r.why), "")
        said = f"{waiting} trials wait at a rung" if waiting else f"no trial ended well; e.g. {why}"
        return Group(*parts, Text(), Text(said))
    per_task = "  ".join(
        f"{name.removeprefix('accuracy/').removeprefix('mad/')} {value:.3f}"
        for name, value in best.attrs.items()
        if name.startswith("accuracy/")
    )
    if "*" in best.genome.text():
        parts.append(Text("*A marks branches that share one set of weights", style="dim"))
    parts += [
        *finals_lines(study, experiment),
        Text(),
        Text.assemble(
            f"best  #{best.index} ", (best.genome.text(varying), "bold"), f"  ({best.genome.key})"
        ),
        Text(f"      {per_task}"),
        *control_lines(study),
    ]
    if (folder / "best" / "model.yaml").is_file():
        parts.append(Text(f"model {folder / 'best' / 'model.yaml'}"))
    parts.append(Text(f"next: archsearch report {folder}"))
    parts.append(Text(f"next: archsearch dashboard {folder}"))
    return Group(*parts)


def _legend(study: Study, best: Record | None) -> str:
    """What stands below the tables of trials."""
    params = "params: without embeddings"
    if best is None:
        return params
    if study.finals() is None:
        return f"> winner; {params}"
    return f"> winner, named on fresh seeds, so it need not be on the front; {params}"


def pick(study: Study, which: str) -> Record:
    """One trial of a study: the best, or by its index.

    Raises:
        RunError: if there is no such trial, or it has no result.
    """
    records = study.records()
    if which == "best":
        best = study.best()
        if best is None:
            raise RunError(f"{study.name} has no trial that ended well yet")
        return best
    if not which.isdecimal() or not which.isascii() or int(which) not in records:
        known = ", ".join(str(i) for i in sorted(records)[:20])
        raise RunError(f"no finished trial '{which}' in {study.name}; best, or one of: {known}")
    return records[int(which)]


def _headline(name: str, seeds: int, records: list[Record], seconds: float) -> Text:
    states = {"ok": 0, "paused": 0, "pruned": 0, "diverged": 0, "oom": 0, "invalid": 0}
    for record in records:
        states[record.status] += 1
    ended = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    over = f"{seeds} seeds" if seeds > 1 else "held-out rows"
    return Text(
        f"{name}: {len(records)} trials ({ended}), {span(seconds)} of training; s.e. over {over}"
    )

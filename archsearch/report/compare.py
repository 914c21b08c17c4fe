"""Behind `archsearch compare-samplers`: searches in a table, and what they tell."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Columns

from archsearch.errors import RunError
from archsearch.report.lines import Line, draw_lines
from archsearch.report.survey import trial_seconds
from archsearch.rules import draw, members
from archsearch.search import compare, paired
from archsearch.search.compare import REFERENCE, Finding, Judge, budgets, found
from archsearch.search.proposals import NAMES
from archsearch.search.study import versions
from archsearch.seeds import seed
from archsearch.words import quantity, span

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from archsearch.search.compare import Walk
    from archsearch.search.paired import Array
    from archsearch.search.table import Table

JSON, SVG = "compare.json", "compare.svg"
LEGEND = (
    "after n: true {name} of the best observed so far, mean and 95 % interval;",
    "to X: median of the trials; never: seeds that did not get there;",
    "ms: CPU of a proposal",
)


def compare_samplers(
    source: str,
    table: Table,
    strategies: Sequence[str],
    seeds: int,
    trials: int,
    out: Path | None,
    console: Console,
) -> None:
    """Search a table with every strategy and seed, and print what can be said.

    Args:
        source: The space as the user named it.
        table: Of its members; filled as far as the searches need it.
        strategies: Names of strategies.
        seeds: Paired searches of each.
        trials: Of each search.
        out: Where curves go as JSON and SVG, if anywhere.
        console: Where the page goes.

    Raises:
        SpaceError, RunError: if that cannot be compared, or a file cannot be written.
    """
    experiment = table.experiment
    names = compare.check(experiment, strategies, seeds, trials)
    _announce(table, len(names) * seeds * trials, console)
    walks = _walks(table, names, seeds, trials, console)
    judge = Judge(table, experiment)
    findings = found(judge, walks, trials)
    _print(judge, findings, trials, console)
    if out is not None:
        _write(out, judge, findings, trials)
        console.print(f"written to {out}: {JSON}, {SVG}", markup=False, soft_wrap=True)
    console.print(_next(source, findings, seeds), markup=False, soft_wrap=True)


def _announce(table: Table, most: int, console: Console) -> None:
    """Say how long it may take where members have to be trained."""
    experiment = table.experiment
    if table.complete:
        return
    torch.set_num_threads(1)  # as a worker trains
    listed = members(experiment.space, experiment.context)
    missing = most if listed is None else min(most, len(listed) - len(table.rows))
    rng = random.Random(seed(experiment.search.seed, "check"))
    drawn = [draw(experiment.space, rng, experiment.context, lambda g: True) for _ in range(3)]
    each = sum(trial_seconds(experiment, c.genome) for c in drawn) / len(drawn)
    console.print(
        f"{table.path} holds {len(table.rows)} members; at most {missing} more are trained, each "
        f"about {span(each)}, {span(each * missing)} in all. What is trained is kept: the same "
        "command goes on.",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _walks(
    table: Table, names: Sequence[str], seeds: int, trials: int, console: Console
) -> dict[str, list[Walk]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())  # fmt: skip
    walks: dict[str, list[Walk]] = {name: [] for name in names}
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=len(names) * seeds * trials)

        def on_trial() -> None:
            progress.advance(task)

        for number in range(seeds):
            for name in names:
                progress.update(task, description=f"{name}, seed {number}")
                walk = compare.search(table.experiment, table, name, number, trials, on_trial)
                walks[name].append(walk)
    return walks


def _print(judge: Judge, findings: Sequence[Finding], trials: int, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False)

    seeds, steps, name = len(findings[0].reached), budgets(trials), _name(judge)
    level, what = judge.target
    goal, replicates = judge.experiment.goals[0].name, judge.experiment.recipe.seeds
    known = f"{len(judge.points)} members" + ("" if judge.complete else " known")
    say(f"{judge.experiment.space.name}: {known}; {seeds} paired seeds of {trials} trials each")
    if replicates > 1:
        noise = quantity(goal, judge.noise)
        say(f"standard deviation of {goal} over the {replicates} seeds of a member: {noise}")
    else:
        say("one training a member, so what is observed counts as true: set recipe.seeds to 2")
    say(f"X is {_value(name, level)}: {what}")
    say("")
    columns = _columns("strategy", *(f"after {n}" for n in steps), "to X", "never", "ms")
    for finding in findings:
        columns.add_row(*_row(finding, name, steps, trials))
    console.print(columns)
    for line in ("", *LEGEND, ""):
        say(line.format(name=name))
    console.print(_verdicts(findings, steps))
    say(_times(findings, trials))
    measures = len(steps) + 1
    if seeds < (fewest := paired.enough(measures)):
        say(f"{seeds} seeds are too few for any verdict in {measures} measures; take {fewest}")


def _columns(first: str, *others: str) -> Columns:
    columns = Columns(box=None, pad_edge=False, header_style="dim")
    columns.add_column(first)
    for title in others:
        columns.add_column(title, justify="right", no_wrap=True)
    return columns


def _name(judge: Judge) -> str:
    return judge.experiment.goals[0].name if judge.single else "hypervolume"


def _value(name: str, value: float) -> str:
    return f"{value:.1%}" if name == "hypervolume" else quantity(name, value)


def _row(finding: Finding, name: str, steps: Sequence[int], trials: int) -> list[str]:
    at_SB = finding.curves[:, [n - 1 for n in steps]]
    low_B, high_B = paired.band(at_SB)
    cells = [
        f"{_value(name, mean)}\n{_value(name, low)}..{_value(name, high)}"
        for mean, low, high in zip(at_SB.mean(0), low_B, high_B, strict=True)
    ]
    never = sum(n is None for n in finding.reached) / len(finding.reached)
    return [finding.name, *cells, _count(finding.median, trials), f"{never:.0%}",
            f"{finding.milliseconds:.1f}"]  # fmt: skip


def _count(median: float, trials: int) -> str:
    return f"over {trials}" if math.isinf(median) else f"{median:.0f}"


def _verdicts(findings: Sequence[Finding], steps: Sequence[int]) -> Columns:
    """What the tests say, a row a strategy and verdict."""
    columns = Columns(box=None, pad_edge=False, header_style="dim")
    for title in (f"against {REFERENCE}", "verdict", "after n trials, and in trials to X (p)"):
        columns.add_column(title)
    for finding in findings:
        groups: dict[str, list[str]] = {}
        for where, test in zip([*steps, "X"], finding.tests, strict=False):
            groups.setdefault(test.verdict, []).append(f"{where} ({test.p:.2g})")
        for i, (verdict, measures) in enumerate(groups.items()):
            columns.add_row("" if i else finding.name, verdict, ", ".join(measures))
    return columns


def _times(findings: Sequence[Finding], trials: int) -> str:
    """How many times as many trials the reference needs to get to X."""
    (slow,) = (f.median for f in findings if f.name == REFERENCE)
    if all(math.isinf(f.median) for f in findings):
        return f"no strategy gets to X within {trials} trials at most seeds"
    over, slow = ("over ", float(trials)) if math.isinf(slow) else ("", slow)
    parts = [
        f"{over}{slow / f.median:.1f} times as many as {f.name}"
        for f in findings
        if f.tests and f.tests[-1].verdict == "better"
    ]
    if not parts:
        return f"no strategy is known to get to X sooner than {REFERENCE}"
    return f"to get to X, {REFERENCE} needs {', '.join(parts)}"


def _next(source: str, findings: Sequence[Finding], seeds: int) -> str:
    better = [f for f in findings if f.tests and f.tests[-1].verdict == "better"]
    if better:
        fastest = min(better, key=lambda f: f.median)
        return f"next: archsearch run {source} --set search.strategy={fastest.name}"
    return f"next: the same command with --seeds {2 * seeds}"


def report(judge: Judge, findings: Sequence[Finding], trials: int) -> dict[str, Any]:
    """The comparison as plain data."""
    level, what = judge.target
    measures = [*(f"value after {n}" for n in budgets(trials)), "trials to target"]
    strategies: dict[str, Any] = {}
    for finding in findings:
        low_T, high_T = paired.band(finding.curves)
        strategies[finding.name] = {
            "what": NAMES[finding.name],
            "mean": _rounded(finding.curves.mean(0)),
            "low": _rounded(low_T),
            "high": _rounded(high_T),
            "curves": [_rounded(curve_T) for curve_T in finding.curves],
            "trials_to_target": list(finding.reached),
            "median_trials_to_target": None if math.isinf(finding.median) else finding.median,
            "cpu_ms_per_proposal": round(finding.milliseconds, 2),
            "against_random": [
                {"in": where, "p": float(f"{t.p:.3g}"), "verdict": t.verdict}
                for where, t in zip(measures, finding.tests, strict=False)
            ],
        }
    return {
        "space": judge.experiment.space.name,
        "objectives": [goal.name for goal in judge.experiment.goals],
        "value": _name(judge),
        "seeds": len(findings[0].reached),
        "trials": trials,
        "members": len(judge.points),
        "complete": judge.complete,
        "sd_between_seeds": round(judge.noise, 4),
        "target": round(level, 5),
        "target_is": what,
        "versions": versions(),
        "strategies": strategies,
    }


def _rounded(values_T: Array) -> list[float]:
    return [float(f"{value:.5g}") for value in values_T]


def _write(out: Path, judge: Judge, findings: Sequence[Finding], trials: int) -> None:
    lines = []
    for finding in findings:
        low_T, high_T = paired.band(finding.curves)
        middle_T = finding.curves.mean(0)
        lines.append(Line(finding.name, middle_T.tolist(), low_T.tolist(), high_T.tolist()))
    title = f"{judge.experiment.space.name}: true {_name(judge)} of the best observed so far"
    picture = draw_lines(lines, title, "trials", judge.target[0])
    text = json.dumps(report(judge, findings, trials)) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / JSON).write_text(text)
        (out / SVG).write_text(picture)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror}") from None

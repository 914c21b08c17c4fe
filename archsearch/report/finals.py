"""The finals of a search and its control by random search: how they go, and what came of them."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from archsearch.genome import Genome
from archsearch.rules import measure
from archsearch.search.finals import Fresh, interval
from archsearch.search.fresh import missing, remember, train
from archsearch.words import count, quantity, size, span

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console, RenderableType

    from archsearch.search.finals import Finalist, Finals, Known
    from archsearch.search.study import Record, Study
    from archsearch.space_yaml import Experiment


def hold_finals(
    study: Study, experiment: Experiment, folder: Path, workers: int, console: Console, known: Known
) -> None:
    """Train the finalists of a study on the fresh seeds that are missing in `known`.

    Every outcome goes into the study at once, so finals that were stopped go on.

    Raises:
        RunError: if a process dies, or the folder cannot be written.
    """
    search = experiment.search
    finalists = study.finalists(search.finalists)
    if not finalists:
        return
    study.keep_finals(search.finalists, search.final_seeds, known)
    names = _names(experiment, finalists)

    def keep() -> None:
        study.keep_finals(search.finalists, search.final_seeds, known)

    weights = folder / "weights"
    _train("finals", experiment, names, workers, console, known, keep, weights)


def compare_with_control(
    study: Study,
    control: Study,
    experiment: Experiment,
    folder: Path,
    workers: int,
    console: Console,
    known: Known,
) -> None:
    """Train the winners of a search and of its control on the same seeds; the study keeps both.

    Raises:
        RunError: if a process dies, or the folder cannot be written.
    """
    mine, theirs = study.best(), control.best()
    if mine is None:
        return
    about: dict[str, Any] = {"trials": len(control.latest()), "winner": mine.genome.key}
    if theirs is not None:
        names = _names(experiment, [mine, theirs])

        def keep() -> None:
            remember(folder, experiment, known)

        _train("winners", experiment, names, workers, console, known, keep)
        seeds = range(experiment.search.final_seeds)
        about |= {
            "index": theirs.index,
            "genome": theirs.genome.to_json(),
            "fresh": [list(known[theirs.genome.key][k]) for k in seeds],
            "against": [list(known[mine.genome.key][k]) for k in seeds],
        }
    study.optuna.set_user_attr("control", about)


def _names(experiment: Experiment, records: Collection[Record]) -> dict[Genome, str]:
    varying = experiment.space.varying
    return {r.genome: f"#{r.index} {r.genome.text(varying)}" for r in records}


def _train(
    title: str,
    experiment: Experiment,
    names: Mapping[Genome, str],
    workers: int,
    console: Console,
    known: Known,
    keep: Callable[[], None],
    weights: Path | None = None,
) -> None:
    """Train on the fresh seeds that are missing: a bar on a terminal, elsewhere line by line."""
    seeds = experiment.search.final_seeds
    total, done = len(missing(names, seeds, known)), 0
    if not total:
        return
    console.print(
        f"{title}: {len(names)} candidate{'s'[: len(names) > 1]} on {seeds} fresh seeds",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(None), MofNCompleteColumn(),
        TextColumn("trainings"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        bar = progress.add_task(title, total=total)

        def on_trained(genome: Genome, k: int, fresh: Fresh, seconds: float) -> None:
            nonlocal done
            done += 1
            keep()
            progress.advance(bar)
            if fresh.why or not console.is_terminal:
                outcome = fresh.why or f"score {fresh.score:.3f}"
                console.print(
                    f"[{title} {done}/{total}] {names[genome]}, fresh seed {k + 1}: {outcome} "
                    f"({span(seconds)})", highlight=False, markup=False, soft_wrap=True,
                )  # fmt: skip

        train(experiment, names, seeds, workers, known, on_trained, weights)


def finals_table(finals: Finals, varying: Collection[tuple[str, str]]) -> Table:
    """The finalists, one a row, best first: the winner marked with >, those tied with it with =."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    table.add_column("  #", justify="right", no_wrap=True)
    table.add_column(f"finals on {finals.seeds} fresh seeds", overflow="fold")
    for name in ("params", "state", "search", "fresh", "+- 95%", "harder"):
        table.add_column(name, justify="right", no_wrap=True)
    digits = max(len(str(finalist.record.index)) for finalist in finals.ranked)
    for finalist in finals.ranked:
        record, (score, half) = finalist.record, finalist.score
        won = finalist is finals.winner
        mark = ">" if won else "=" if finalist in finals.group else " "
        harder = finalist.harder
        table.add_row(
            f"{mark} {record.index:{digits}}",
            Text(record.genome.text(varying)),
            count(record.attrs["params"]),
            size(record.attrs["state_bytes"]),
            f"{record.score:.3f}",
            f"{score:.3f}",
            f"{half:.3f}",
            "-" if harder is None else f"{harder:.3f}",
            style="bold" if won else "",
        )
    return table


def finals_lines(study: Study, experiment: Experiment) -> list[RenderableType]:
    """What came of the finals of a study; nothing where there were none."""
    finals = study.finals()
    if finals is None:
        words = "the finals are not over; the same `archsearch run` goes on with them"
        return [Text(), Text(words)] if study.fresh else []
    legend = "> winner, = not told apart from it; harder: the same weights on longer rows"
    return [
        Text(),
        finals_table(finals, experiment.space.varying),
        *[line for finalist in finals.ranked for line in _failures(finalist)],
        Text(legend, style="dim"),
        Text(verdict(finals, [goal.name for goal in experiment.goals])),
    ]


def verdict(finals: Finals, goals: Sequence[str]) -> str:
    """What the finals say, in one sentence."""
    number, winner = len(finals.ranked), f"#{finals.winner.record.index}"
    if number == 1:
        return f"{winner} was the only finalist"
    if len(finals.group) == 1:
        return f"{winner} is clearly the best of {number} finalists"
    names = [f"#{i}" for i in sorted(finalist.record.index for finalist in finals.group)]
    if finals.winner is min(finals.group, key=lambda finalist: finalist.values[1:]):
        wins = f"is the cheapest by {goals[1]}" if len(goals) > 1 else "has the best mean"
    elif finals.winner is finals.ranked[0]:
        wins = "has the best mean"
    else:
        wins = f"is the cheapest within two standard errors of #{finals.ranked[0].record.index}"
    return (
        f"{', '.join(names[:-1])} and {names[-1]} cannot be told apart on {finals.seeds} fresh "
        f"seeds; {winner} {wins}"
    )


def _failures(finalist: Finalist) -> list[Text]:
    reasons = [fresh.why for fresh in finalist.fresh if fresh.why]
    if not reasons:
        return []
    seeds = f"{len(reasons)} of {len(finalist.fresh)} fresh seeds"
    return [Text(f"#{finalist.record.index} failed on {seeds}: {reasons[0]}", style="yellow")]


def control_lines(study: Study) -> list[Text]:
    """What random search found with the same budget; nothing where that is not known."""
    about = study.optuna.user_attrs.get("control")
    best = study.best()
    if not about or not best or about["winner"] != best.genome.key:
        return []
    if about["trials"] != len(study.latest()):
        return []
    head = f"random search with the same {about['trials']} trials"
    if "genome" not in about:
        return [_control(f"{head}: no trial ended well")]
    experiment, genome = study.experiment(), Genome.from_json(about["genome"])
    if genome.key == best.genome.key:
        return [_control(f"{head} finds the same winner")]
    theirs, mine = ([Fresh(*row) for row in about[name]] for name in ("fresh", "against"))
    score, half = interval([fresh.score for fresh in theirs])
    ahead, margin = interval([m.score - t.score for m, t in zip(mine, theirs, strict=True)])
    if abs(ahead) <= margin:
        said = f"not distinguishable from the search ({ahead:+.3f} +- {margin:.3f})"
    else:
        who = "the search" if ahead > 0 else "random search"
        said = f"{who} is ahead by {abs(ahead):.3f} +- {margin:.3f}"
    costs = []
    for goal in experiment.goals[1:]:
        values = [
            measure(goal.expr, g, experiment.context, {
                "score": statistics.mean(f.score for f in fresh),
                "loss": statistics.mean(f.loss for f in fresh),
            })
            for g, fresh in ((genome, theirs), (best.genome, mine))
        ]  # fmt: skip
        costs.append(f"{goal.name} " + " against ".join(quantity(goal.name, v) for v in values))
    text = genome.text(experiment.space.varying)
    return [
        _control(f"{head}: best #{about['index']} {text}"),
        Text(f"         score {score:.3f} +- {half:.3f} on {len(theirs)} fresh seeds; {said}"),
        *[Text(f"         {cost}") for cost in costs],
    ]


def _control(said: str) -> Text:
    return Text.assemble(("control", "bold"), f"  {said}")

"""`archsearch check`: what a space holds, before a minute is spent on it."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from rich.table import Table
from rich.text import Text

from archsearch.fits import check_fits
from archsearch.memory import estimate, machine_bytes, process_bytes
from archsearch.rules import cached_cost, draw, members, survey
from archsearch.search.proposals import seed_candidates, strangers
from archsearch.seeds import seed
from archsearch.train import Training, generator
from archsearch.words import count, size, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from archsearch.genome import Genome
    from archsearch.rules import Survey
    from archsearch.space_yaml import Experiment

STEPS = 2
"""Steps that are timed, after one that is not."""
TOKENS = 2048
"""Most tokens in a step that is timed; a larger batch is taken to cost in proportion."""


def check_report(experiment: Experiment, source: str, workers: int, console: Console) -> None:
    """Print size, feasible share, what rejects the rest, the extremes, the memory and the time.

    Args:
        experiment: The space.
        source: What to name in the command to type next.
        workers: How many would train at once.
        console: Where to print.

    Raises:
        SpaceError: if a value fits nothing else, if no member may be trained, or if one of the
            genomes of `start_from` may not.
    """
    space, context = experiment.space, experiment.context
    for warning in (*experiment.warnings, *check_fits(experiment)):
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    rng = random.Random(seed(experiment.search.seed, "check"))
    draw(space, rng, context, lambda genome: True)
    seed_candidates(experiment)
    if names := strangers(experiment):
        console.print(f"not in the space, for comparison: {', '.join(names)}", markup=False)
    listed = members(space, context)
    distinct = f", {len(listed)} distinct and feasible" if listed is not None else ""
    console.print(f"{space.name}: {space.size:.6g} combinations{distinct}")
    seen = survey(space, rng, context)
    _rejections(seen, console)
    by_size = sorted(seen.costs, key=lambda pair: pair[1].params)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "params", "state", "d_model", "genome"):
        table.add_column(column, overflow="fold")
    for name, (genome, cost) in (("smallest", by_size[0]), ("largest", by_size[-1])):
        row = (name, count(cost.params), size(cost.state_bytes), str(genome.d_model))
        table.add_row(*row, Text(genome.text(space.varying)))
    console.print(table)
    for task in experiment.tasks:
        if hasattr(task, "about"):
            console.print(f"{task.name}: {task.about()}", markup=False, soft_wrap=True)
    if experiment.tasks:
        genomes = [by_size[i][0] for i in (0, len(by_size) // 2, -1)]
        trials = min(experiment.search.trials, len(listed) if listed is not None else 10**9)
        _needs(experiment, genomes, trials, workers, console)
        console.print(f"next: archsearch run {source}", markup=False, soft_wrap=True)
    else:
        hint = "no tasks are named, so it cannot be run; e.g. `tasks: {use: [mad/*]}`"
        console.print(hint, markup=False)


def _rejections(seen: Survey, console: Console) -> None:
    share, low, high = seen.feasible
    console.print(
        f"feasible: {share:.1%} of {seen.draws} draws (95 % interval {low:.1%} to {high:.1%})"
    )
    for rule, number in sorted(seen.rejected.items(), key=lambda item: -item[1]):
        if rule:
            why = f"  {number / seen.draws:6.1%} rejected by: {rule}\n          e.g. "
            console.print(why + seen.reasons[rule], markup=False, soft_wrap=True)


def _needs(
    experiment: Experiment, genomes: Sequence[Genome], trials: int, workers: int, console: Console
) -> None:
    """Print what some genomes, the largest among them, need of memory and time."""
    torch.set_num_threads(1)  # as a worker trains
    there = machine_bytes()
    needs = [estimate(genome, experiment.tasks, experiment.recipe) for genome in genomes]
    each = process_bytes() + max(needs)  # by now all code that training needs is loaded
    console.print(f"memory: about {size(each)} a worker, {size(max(needs))} of it for the training")
    fitting = [genome for genome, need in zip(genomes, needs, strict=True) if need <= there]
    warning = ""
    if len(fitting) < len(genomes):
        warning = f"this machine has {size(there)}; the trials of members that need more will fail"
    elif workers * each > there:
        fewer = f"try `archsearch run --workers {max(1, there // each)}`"
        warning = f"{workers} workers, one per core, may need {size(workers * each)}, this machine "
        warning += f"has {size(there)}; {fewer}"
    if warning:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if timed := [trial_seconds(experiment, genome) for genome in fitting]:
        search, recipe = experiment.search, experiment.recipe
        finalists = min(search.finalists, trials)
        whole = trials * _share_trained(experiment)
        whole += finalists * search.final_seeds / recipe.seeds
        console.print(
            f"time: {span(min(timed))} to {span(max(timed))} a trial at most, {trials} trials and "
            f"{finalists} finalists; about {span(sum(timed) / len(timed) * whole)} on one core as "
            "busy as now"
        )


def _share_trained(experiment: Experiment) -> float:
    """The share of all steps that trials do on the mean, where some of them wait at rungs."""
    keep, stops = experiment.search.keep, [0, *experiment.search.rungs, experiment.recipe.steps]
    return sum(keep**i * (b - a) for i, (a, b) in enumerate(pairwise(stops))) / stops[-1]


def trial_seconds(experiment: Experiment, genome: Genome) -> float:
    """Seconds that a whole trial of `genome` would take, judged by a few steps of each task."""
    from archsearch.model import build

    total, recipe = 0.0, experiment.recipe
    cached_cost(genome, experiment.context)
    for task in experiment.tasks:
        model = build(genome, task.vocab, task.readout, generator=generator("check"))
        rows = min(recipe.batch, max(1, TOKENS // task.length))
        few = recipe.model_copy(update={"steps": STEPS + 1, "evals": STEPS + 1, "batch": rows})
        held_out = task.sample(1, generator("check"))
        points = Training(model, task, few, generator("check"), held_out)
        next(points)
        began = time.perf_counter()
        for _ in points:
            pass
        step = (time.perf_counter() - began) / STEPS * recipe.batch / rows
        total += step * recipe.steps * recipe.seeds
    return total

"""`archsearch check`: what a space holds, before a minute is spent on it."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import torch
from rich.table import Table
from rich.text import Text

from archsearch.fits import check_fits
from archsearch.rules import cached_cost, draw, members, survey
from archsearch.search.proposals import seed_candidates
from archsearch.seeds import seed
from archsearch.train import Training, generator
from archsearch.words import count, size, span

if TYPE_CHECKING:
    from rich.console import Console

    from archsearch.genome import Genome
    from archsearch.space_yaml import Experiment

STEPS = 2
"""Steps that are timed, after one that is not."""
TOKENS = 2048
"""Most tokens in a step that is timed; a larger batch is taken to cost in proportion."""


def check_report(experiment: Experiment, source: str, console: Console) -> None:
    """Print size, feasible share, what rejects the rest, the extremes and the expected time.

    Raises:
        SpaceError: if a value fits nothing else, no member may be trained, or a genome of
            `start_from` is not in the space.
    """
    space, context = experiment.space, experiment.context
    for warning in (*experiment.warnings, *check_fits(experiment)):
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    rng = random.Random(seed(experiment.search.seed, "check"))
    draw(space, rng, context, lambda genome: True)
    seed_candidates(experiment)
    listed = members(space, context)
    distinct = f", {len(listed)} distinct and feasible" if listed is not None else ""
    console.print(f"{space.name}: {space.size:.6g} combinations{distinct}")
    seen = survey(space, rng, context)
    share, low, high = seen.feasible
    console.print(
        f"feasible: {share:.1%} of {seen.draws} draws (95 % interval {low:.1%} to {high:.1%})"
    )
    for rule, number in sorted(seen.rejected.items(), key=lambda item: -item[1]):
        if rule:
            console.print(f"  {number / seen.draws:6.1%} rejected by: {rule}", markup=False)
    by_size = sorted(seen.costs, key=lambda pair: pair[1].params)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "params", "state", "d_model", "genome"):
        table.add_column(column, overflow="fold")
    for name, (genome, cost) in (("smallest", by_size[0]), ("largest", by_size[-1])):
        row = (name, count(cost.params), size(cost.state_bytes), str(genome.d_model))
        table.add_row(*row, Text(genome.text(space.varying)))
    console.print(table)
    if experiment.tasks:
        torch.set_num_threads(1)  # as a worker trains
        middle = by_size[len(by_size) // 2][0]
        timed = [trial_seconds(experiment, g) for g in (by_size[0][0], middle, by_size[-1][0])]
        trials = min(experiment.search.trials, len(listed) if listed is not None else 10**9)
        mean = sum(timed) / 3
        console.print(
            f"time: {span(min(timed))} to {span(max(timed))} a trial at most, {trials} trials; "
            f"about {span(mean * trials)} on one core as busy as now"
        )
        console.print(f"next: archsearch run {source}", markup=False, soft_wrap=True)
    else:
        console.print("no tasks are named, so it cannot be run; e.g. `tasks: {use: [mad/*]}`")


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

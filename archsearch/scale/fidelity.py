"""Does the proxy of a run rank its own candidates? What is trained for the answer, and the answer.

Every genome of a panel is trained as the run trains, on seeds that it has not used, and on text: at
its own size and at a larger one, with the hyper-parameters of the run carried over by muP. Loss on
held-out text at the larger size is what the proxy should have told.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archsearch.canonical import nested
from archsearch.mup import Base, widened
from archsearch.rules import cached_cost, measure
from archsearch.scale.agreement import RESAMPLES, Panel, Score, agree
from archsearch.scale.laws import Growth, crossings, trends
from archsearch.scale.plan import ScalePlan
from archsearch.scale.pretrain import Settings
from archsearch.scale.trainings import Training
from archsearch.trial import task_label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from archsearch.genome import Genome
    from archsearch.scale.agreement import Agreement
    from archsearch.scale.laws import Crossing, Trend
    from archsearch.scale.trainings import Ended
    from archsearch.search.finals import Fresh, Known
    from archsearch.sections import Recipe
    from archsearch.space_yaml import Experiment

GROWTH = 4
"""Width of a target over that of its genome, unless a width is asked for."""
EVALS = 4
"""Evaluations of a training on text, so that the first is at a quarter of it."""
REACH = 10.0
"""How many times the FLOPs of the targets lines are followed to see whether they cross."""


def text_recipe(recipe: Recipe, steps: int | None, batch: int) -> Recipe:
    """How genomes are trained on text: as in the run, to the end of the decay.

    A constant learning rate becomes a cosine, as orders may change while the rate falls (2509.02046
    on optimizers).
    """
    schedule = "cosine" if recipe.schedule == "constant" else recipe.schedule
    given = {"steps": steps or recipe.steps, "batch": batch, "evals": EVALS, "schedule": schedule}
    return recipe.model_copy(update=given)


def enlarged(genomes: Sequence[Genome], width: int | None) -> tuple[Genome, ...]:
    """The genomes at the width of the target: `width`, or each at four times its own.

    Raises:
        SpaceError: if one cannot be that wide, with widths that it can have.
    """
    return tuple(widened(g, width or GROWTH * g.d_model) for g in genomes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """What is trained on text, for every genome of a panel."""

    genomes: tuple[Genome, ...]
    """At the size of the run."""
    large: tuple[Genome, ...]
    """The same at that of the target."""
    recipe: Recipe
    context: int
    seeds: int
    vocab: int
    """Of the text."""

    @property
    def targets(self) -> tuple[tuple[Training, ...], ...]:
        """The trainings at the target's size, by genome, then by seed."""
        return self._trainings(self.large)

    @property
    def small(self) -> tuple[tuple[Training, ...], ...]:
        """The same at the size of the run; none unless all targets are wider."""
        pairs = zip(self.genomes, self.large, strict=True)
        wider = all(large.d_model > genome.d_model for genome, large in pairs)
        return self._trainings(self.genomes) if wider else ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """All of them, the small ones first."""
        return tuple(one for of in (*self.small, *self.targets) for one in of)

    def _trainings(self, genomes: Sequence[Genome]) -> tuple[tuple[Training, ...], ...]:
        return tuple(
            tuple(
                Training(
                    genome=genome, base=Base(tuned.d_model, len(tuned.genes)), recipe=self.recipe,
                    settings=Settings(context=self.context, seed=k),
                )
                for k in range(self.seeds)
            )
            for genome, tuned in zip(genomes, self.genomes, strict=True)
        )  # fmt: skip

    def plan(self, training: Training) -> ScalePlan:
        """What a training takes."""
        return ScalePlan(
            genome=training.genome, base=training.base, recipe=self.recipe, context=self.context,
            vocab=self.vocab,
        )  # fmt: skip


def proxies(
    experiment: Experiment, genomes: Sequence[Genome], known: Known, seeds: int
) -> list[Score]:
    """What the run measures of genomes: its first objective, then each task alone if several.

    Args:
        experiment: Of the run.
        genomes: Of the panel.
        known: Their trainings on fresh seeds.
        seeds: How many of each.
    """
    goal, tasks = experiment.goals[0], experiment.tasks

    def worth(genome: Genome, fresh: Fresh) -> float:
        trained = {"score": fresh.score, "loss": fresh.loss}
        return measure(goal.expr, genome, experiment.context, trained)

    fresh = [[known[genome.key][k] for k in range(seeds)] for genome in genomes]
    values = [[worth(g, f) for f in of] for g, of in zip(genomes, fresh, strict=True)]
    scores = [Score(name=goal.name, values=_finite(values, goal.maximize), maximize=goal.maximize)]
    for i, task in enumerate(tasks if len(tasks) > 1 else ()):
        alone = tuple(tuple(f.accuracies[i] for f in of) for of in fresh)
        label = task_label(task, tasks).rpartition("/")[2]
        scores.append(Score(name=label, values=alone, maximize=True))
    return scores


def _finite(values: Sequence[Sequence[float]], maximize: bool) -> tuple[tuple[float, ...], ...]:
    """Values of which those that are not finite become the worst that is."""
    finite = [v for of in values for v in of if math.isfinite(v)] or [0.0]
    worst = min(finite) if maximize else max(finite)
    return tuple(tuple(v if math.isfinite(v) else worst for v in of) for of in values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """What a panel says of the proxy of its run. Genomes go by their keys."""

    panel: Panel
    agreement: Agreement
    unstable: Mapping[str, str]
    """Genomes with a target that was unstable or broke off, and why."""
    trends: Mapping[str, Trend]
    """Nats gained per doubling of the FLOPs, from the width of the run to that of the target; none
    for genomes that were unstable at one of them."""
    crossings: tuple[Crossing, ...]
    """Pairs that would change places beyond the target."""


def weigh(
    design: Design,
    ended: Mapping[Training, Ended],
    proxy: Score,
    others: Sequence[Score],
    run_context: int,
    resamples: int = RESAMPLES,
) -> Fidelity:
    """Compare a proxy, and what could stand in for it, with the targets.

    Args:
        design: What was trained.
        ended: How it ended.
        proxy: The scores that are asked about, by genome of the design.
        others: More scores to hold against it, beside what is cheap to know.
        run_context: Context length at which costs are given.
        resamples: Of the bootstrap.
    """
    guessing = math.log(design.vocab)
    targets = [[ended[one] for one in of] for of in design.targets]
    small = [[ended[one] for one in of] for of in design.small]
    names = tuple(genome.key for genome in design.genomes)
    losses, unstable = ranked_losses(targets, guessing)
    panel = Panel(
        names=names,
        families=tuple(family(genome) for genome in design.genomes),
        params=tuple(float(cached_cost(g, run_context).params) for g in design.genomes),
        target=losses,
        proxy=proxy,
        baselines=(*others, *_costs(design, run_context), *_looks(targets, small, guessing)),
    )
    growths = _growths(design, targets, small)
    lines = trends(growths) if growths else []
    return Fidelity(
        panel=panel,
        agreement=agree(panel, resamples),
        unstable={names[i]: why for i, why in unstable.items()},
        trends={line.name: line for line in lines},
        crossings=tuple(crossings(lines, REACH)),
    )


def family(genome: Genome) -> str:
    """Equal for genomes that are made of the same blocks, in any order."""
    counts = Counter(gene.block for gene in nested(genome.genes))
    return " ".join(f"{count}x{block}" for block, count in sorted(counts.items()))


def ranked_losses(
    targets: Sequence[Sequence[Ended]], guessing: float
) -> tuple[tuple[tuple[float, ...], ...], dict[int, str]]:
    """Losses by genome and seed, so that no unstable genome is ahead of a stable one.

    A genome that is unstable on one seed counts as guessing on all.

    Args:
        targets: How trainings ended, by genome and seed.
        guessing: The loss of guessing, ln V.

    Returns:
        The losses, and why the unstable ones are, by index.
    """
    unstable: dict[int, str] = {}
    for i, of in enumerate(targets):
        if reasons := [e.why or e.stability.why for e in of if e.why or not e.stability.stable]:
            unstable[i] = reasons[0]
    stable = [e.loss for i, of in enumerate(targets) if i not in unstable for e in of]
    worst = max([guessing, *stable])
    losses = tuple(
        tuple(worst if i in unstable else e.loss for e in of) for i, of in enumerate(targets)
    )
    return losses, unstable


def _costs(design: Design, context: int) -> list[Score]:
    """Baselines that need no training; more counts as better, as for parameters."""
    costs = [cached_cost(genome, context) for genome in design.genomes]
    named = {
        "FLOPs per token": [float(cost.flops) for cost in costs],
        "state bytes": [float(cost.state_bytes) for cost in costs],
    }
    return [
        Score(name=name, values=tuple((v,) for v in values), maximize=True)
        for name, values in named.items()
    ]


def _looks(
    targets: Sequence[Sequence[Ended]], small: Sequence[Sequence[Ended]], guessing: float
) -> list[Score]:
    """Baselines that need less training than a target, on its text.

    The norm of the first gradient counts as better if it is larger (2101.08134, grad_norm).
    """
    scores = []
    norms = [[e.gradient for e in of] for of in targets]
    known = [[n for n in of if n is not None] for of in norms]
    if known == norms:
        values = tuple(map(tuple, known))
        scores.append(Score(name="first gradient", values=values, maximize=True))
    early = tuple(tuple(_first(e, guessing) for e in of) for of in targets)
    scores.append(Score(name="loss at 1/4 of it", values=early, maximize=False))
    if small:
        values = tuple(tuple(min(e.loss, guessing) for e in of) for of in small)
        scores.append(Score(name="loss at own width", values=values, maximize=False))
    return scores


def _first(ended: Ended, guessing: float) -> float:
    """Loss at the first evaluation; that of guessing if it never came."""
    return ended.marks[0].held_out if ended.marks else guessing


def _growths(
    design: Design, targets: Sequence[Sequence[Ended]], small: Sequence[Sequence[Ended]]
) -> list[Growth]:
    """Losses at two sizes of the genomes that are stable at both."""
    growths = []
    pairs = zip(design.genomes, design.small, design.targets, small, targets, strict=False)
    for genome, *trained, at_small, at_large in pairs:
        if all(not e.why and e.stability.stable for e in (*at_small, *at_large)):
            sizes = (design.plan(of[0]).flops for of in trained)
            losses = (tuple(e.loss for e in of) for of in (at_small, at_large))
            growths.append(Growth(name=genome.key, sizes=tuple(sizes), losses=tuple(losses)))
    return growths

"""Genomes at several widths, learning rates and batches, and the laws that their losses follow.

Every model meets as many tokens. Sizes are parameters, embeddings included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from archsearch.errors import RunError
from archsearch.scale.laws import Growth, Tuned, crossings, hyper_laws, power_law, trends
from archsearch.scale.sweep import Sweep, drift, optimum
from archsearch.scale.trainings import Training

if TYPE_CHECKING:
    from archsearch.scale.laws import Crossing, HyperLaws, PowerLaw, Trend
    from archsearch.scale.plan import ScalePlan
    from archsearch.scale.pretrain import Settings
    from archsearch.scale.sweep import Drift, Optimum
    from archsearch.scale.trainings import Ended

REACH = 10.0
"""How many times the largest size losses are extrapolated to."""
FEWEST_BUDGETS = 3
"""Sizes that a law of hyper-parameters needs."""


class Cell(NamedTuple):
    """Hyper-parameters that vary."""

    lr: float
    """Of the base."""
    batch: int
    """Sequences of a step."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is trained."""

    plans: Mapping[str, tuple[ScalePlan, ...]]
    """By name, then by width, rising."""
    log2_lrs: tuple[float, ...] = ()
    """Learning rates of the base, as powers of two; none for that of the recipe alone."""
    batches: tuple[int, ...] = ()
    """Sequences of a step; none for that of the recipe alone."""
    seeds: int
    settings: Settings

    @property
    def cells(self) -> list[Cell]:
        """Every learning rate with every batch."""
        recipe = next(iter(self.plans.values()))[0].recipe
        lrs = [2.0**log2_lr for log2_lr in self.log2_lrs] or [recipe.lr]
        return [Cell(lr, batch) for batch, lr in product(self.batches or (recipe.batch,), lrs)]

    def of(self, plan: ScalePlan, cell: Cell) -> list[Training]:
        """One size with some hyper-parameters, a training a seed."""
        recipe = plan.recipe
        steps = max(1, round(recipe.steps * recipe.batch / cell.batch))
        told = recipe.model_copy(update=cell._asdict() | {"steps": steps})
        return [
            Training(
                genome=plan.genome, base=plan.base, recipe=told,
                settings=replace(self.settings, seed=self.settings.seed + k),
            )
            for k in range(self.seeds)
        ]  # fmt: skip

    def trainings(self) -> dict[Training, tuple[str, ScalePlan]]:
        """Every training with the name of its genome and its plan."""
        return {
            training: (name, plan)
            for name, plans in self.plans.items()
            for plan in plans
            for cell in self.cells
            for training in self.of(plan, cell)
        }


@dataclass(frozen=True, kw_only=True)
class Size:
    """One genome at one width, trained."""

    plan: ScalePlan
    ended: Mapping[Cell, tuple[Ended, ...]]
    """By hyper-parameters, then by seed."""
    guessing: float
    """The loss of guessing, ln V."""

    @cached_property
    def best(self) -> Cell:
        """The hyper-parameters of the least mean loss; whatever was unstable comes after."""
        return min(self.ended, key=lambda cell: (not self.stable(cell), self.mean(cell)))

    def stable(self, cell: Cell) -> bool:
        """Whether every seed was."""
        return all(ended.stability.stable and not ended.why for ended in self.ended[cell])

    def losses(self, cell: Cell) -> tuple[float, ...]:
        """By seed."""
        return tuple(ended.loss for ended in self.ended[cell])

    def mean(self, cell: Cell) -> float:
        """Mean loss over seeds; infinite if one broke off."""
        return sum(self.losses(cell)) / len(self.ended[cell])

    def optimum(self, batch: int) -> Optimum:
        """The best learning rate at a batch."""
        cells = sorted(cell for cell in self.ended if cell.batch == batch)
        sweep = Sweep(
            log2_lrs=tuple(math.log2(cell.lr) for cell in cells),
            losses=tuple(self.losses(cell) for cell in cells),
            cap=self.guessing,
        )
        return optimum(sweep)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the losses of one genome say."""

    name: str
    sizes: tuple[Size, ...]
    """By width."""
    law: PowerLaw | None
    """None where fewer than two sizes ended well."""
    trend: Trend | None
    drift: Drift | None
    """None where learning rates were not swept, or fewer than two have an optimum."""
    hyper: HyperLaws | None
    """None where nothing was swept, or at fewer than three sizes."""


@dataclass(frozen=True, kw_only=True)
class Fits:
    """What a family says."""

    of: tuple[Fit, ...]
    crossings: tuple[Crossing, ...]
    """Pairs that change places between their smallest size and ten times their largest."""


def fit(family: Family, ended: Mapping[Training, Ended], guessing: float) -> Fits:
    """Fit the laws that the trainings of a family allow.

    Each size counts with the hyper-parameters that were best for it.

    Args:
        family: What was trained.
        ended: How each of its trainings ended.
        guessing: The loss of guessing, ln V, in nats.
    """
    sizes = {
        name: tuple(
            Size(
                plan=plan,
                ended={
                    cell: tuple(ended[training] for training in family.of(plan, cell))
                    for cell in family.cells
                },
                guessing=guessing,
            )
            for plan in plans
        )
        for name, plans in family.plans.items()
    }
    growths = {name: growth for name, of in sizes.items() if (growth := _growth(name, of))}
    lines = {trend.name: trend for trend in trends(list(growths.values()))} if growths else {}
    fits = tuple(
        Fit(
            name=name,
            sizes=of,
            law=power_law(growths[name]) if name in growths else None,
            trend=lines.get(name),
            drift=_drift(of) if len(family.log2_lrs) >= 3 else None,
            hyper=_hyper(of, family) if len(family.cells) > 1 else None,
        )
        for name, of in sizes.items()
    )
    return Fits(of=fits, crossings=tuple(crossings(lines.values(), REACH)))


def _growth(name: str, sizes: tuple[Size, ...]) -> Growth | None:
    """Loss over parameters, without sizes that broke off."""
    kept = [size for size in sizes if math.isfinite(size.mean(size.best))]
    if len(kept) < 2:
        return None
    return Growth(
        name=name,
        sizes=tuple(float(size.plan.params) for size in kept),
        losses=tuple(size.losses(size.best) for size in kept),
    )


def _drift(sizes: tuple[Size, ...]) -> Drift | None:
    """How the best learning rate moves with width, at the batch of the recipe or the first."""
    batch = _batch(sizes[0])
    widths = [math.log2(size.plan.genome.d_model) for size in sizes]
    try:
        return drift(widths, [size.optimum(batch) for size in sizes])
    except RunError:
        return None


def _batch(size: Size) -> int:
    batches = {cell.batch for cell in size.ended}
    usual = size.plan.recipe.batch
    return usual if usual in batches else min(batches)


def _hyper(sizes: tuple[Size, ...], family: Family) -> HyperLaws | None:
    """The laws of learning rate and batch over compute."""
    runs = [
        Tuned(
            compute=size.plan.flops * size.plan.tokens,
            lr=cell.lr,
            batch=cell.batch * size.plan.context,
            loss=size.mean(cell),
        )
        for size in sizes
        for cell in family.cells
    ]
    if len({run.compute for run in runs if math.isfinite(run.loss)}) < FEWEST_BUDGETS:
        return None
    return hyper_laws(runs)

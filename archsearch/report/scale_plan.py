"""The plan of `archsearch scale`: what will be trained, before anything is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from archsearch.mup import branch_multiplier
from archsearch.scale.speed import step_seconds
from archsearch.words import count, size, span

if TYPE_CHECKING:
    from rich.console import Console

    from archsearch.genome import Genome
    from archsearch.scale.corpus import Corpus
    from archsearch.scale.parallel import World
    from archsearch.scale.plan import ScalePlan
    from archsearch.scale.pretrain import Settings


def show_plans(
    plans: dict[str, ScalePlan],
    corpus: Corpus,
    settings: Settings,
    world: World,
    console: Console,
) -> None:
    """Print what will be trained, before anything is."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", *plans):
        table.add_column(name, overflow="fold")
    for label, cells in _rows(plans, settings, world).items():
        table.add_row(label, *cells)
    console.print(table)
    first = next(iter(plans.values()))
    console.print(
        f"\nbase: width {first.base.width}, depth {first.base.depth:g}, learning rate "
        f"{first.recipe.lr:g}; scheme {first.base.scheme}. Factors on the base, for the winner:"
    )
    console.print(_factors(first))
    branch = branch_multiplier(len(first.genome.genes) / first.base.depth, first.base.scheme)
    console.print(
        f"each branch is multiplied by {branch:.3g}, the logits by "
        f"{first.model.logit_multiplier:.3g}"
    )
    console.print(
        f"\ntext: {corpus.name}, {count(corpus.text_bytes)} bytes, tokenizer {corpus.tokenizer}; "
        f"{corpus.epochs(first.recipe.steps, first.recipe.batch, first.context):.2f} epochs",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _rows(plans: dict[str, ScalePlan], settings: Settings, world: World) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for plan in plans.values():
        rows = math.ceil(plan.recipe.batch / world.size / settings.accumulate)
        took = step_seconds(plan, world.device) / world.size
        told.setdefault("genome", []).append(plan.genome.text())
        told.setdefault("width", []).append(str(plan.genome.d_model))
        told.setdefault("depth", []).append(f"{len(plan.genome.genes)} branches")
        told.setdefault("parameters", []).append(count(plan.params))
        told.setdefault("steps", []).append(
            f"{plan.recipe.steps} of {plan.recipe.batch} x {plan.context} tokens"
        )
        told.setdefault("tokens", []).append(count(plan.tokens))
        told.setdefault("FLOPs", []).append(f"{plan.flops * plan.tokens:.1e}")
        told.setdefault("memory", []).append(f"about {size(plan.memory(rows))}")
        told.setdefault("time", []).append(f"about {span(took * plan.recipe.steps)}")
    return told


def _factors(plan: ScalePlan) -> Table:
    """Kinds of parameters; those that differ in eps alone are one row."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("parameters")
    for name in ("number", "init", "learning rate", "decay", "eps"):
        table.add_column(name, justify="right")
    met: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    for kind, number, scales in plan.factors():
        shares = (scales.init, scales.lr, scales.weight_decay)
        row = (kind, *(f"{share:.3g}" for share in shares))
        met.setdefault(row, []).append((number, scales.eps))
    for (kind, *told), of in met.items():
        numbers, eps = zip(*of, strict=True)
        ends = dict.fromkeys(f"{end:.3g}" for end in (min(eps), max(eps)))
        table.add_row(kind, count(sum(numbers)), *told, " to ".join(ends))
    return table


def rounded(genome: Genome, large: Genome, depth: int) -> str:
    """What a depth that was asked for became; empty if it is what was asked for."""
    made, length = len(large.genes), len(genome.genes)
    if made == depth:
        return ""
    return f"depth {depth} is not a multiple of {length} branches: {made}"

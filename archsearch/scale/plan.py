"""What a genome becomes at another size, and what training it there takes; nothing is trained.

Shapes: T time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from archsearch.genome import Gene, Genome
from archsearch.memory import pass_bytes
from archsearch.model import Model, cost
from archsearch.mup import Base, Scales, legal_widths, widened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archsearch.cost import Cost
    from archsearch.sections import Recipe


@dataclass(frozen=True, kw_only=True)
class ScalePlan:
    """A model at its larger size, and how it is trained."""

    genome: Genome
    """At the larger size."""
    base: Base
    """Of the model that the recipe was found on."""
    recipe: Recipe
    context: int
    """Tokens of a sequence."""
    vocab: int

    def at(self, genome: Genome) -> ScalePlan:
        """The plan with another genome."""
        return replace(self, genome=genome)

    @property
    def tokens(self) -> int:
        """Tokens that training meets."""
        return self.recipe.steps * self.recipe.batch * self.context

    @cached_property
    def model(self) -> Model:
        """The model on the meta device: shapes without memory."""
        with torch.device("meta"):
            return Model(self.genome, self.vocab, base=self.base)

    @property
    def params(self) -> int:
        """Parameters, embeddings and readout included."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def cost(self) -> Cost:
        """Of the stack, at the context."""
        return cost(self.genome, self.context)

    @property
    def flops(self) -> float:
        """Floating-point operations per trained token: three times those of a forward pass."""
        readout = 2 * self.genome.d_model * self.vocab
        return 3 * (self.cost.flops + readout)

    def memory(self, rows: int) -> float:
        """About how many bytes training takes.

        Activations are measured on one and two repeats of the branches at the width of the base
        model, and taken to grow with width and depth.

        Args:
            rows: Sequences that a process has in memory at once.
        """
        short = motif(widened(self.genome, self.base.width))
        repeats = len(self.genome.genes) // len(short.genes)
        told = self.recipe.model_copy(update={"batch": rows, "eval_rows": rows})
        tokens_1T = torch.zeros(1, self.context, dtype=torch.int64)
        measured = []
        for periods in range(1, min(repeats, 2) + 1):
            with torch.device("meta"):
                small = Model(deepened(short, periods), self.vocab)
            measured.append(pass_bytes(small, (tokens_1T, tokens_1T), told))
        more = measured[-1] - measured[0]
        activations = measured[0] + more * (repeats - 1)
        return 16 * self.params + activations * self.genome.d_model / self.base.width

    def factors(self) -> Iterator[tuple[str, int, Scales]]:
        """Kinds of parameters with how many there are, and how they are scaled."""
        met: dict[tuple[str, Scales], int] = {}
        for name, parameter in self.model.named_parameters():
            place = "block" if name.startswith("stack.") else "outer"
            key = f"{place} {self.model.role_of(name).kind}", self.model.scales[name]
            met[key] = met.get(key, 0) + parameter.numel()
        for (kind, scales), count in sorted(met.items(), key=lambda item: item[0][0]):
            yield kind, count, scales


def enlarged(genome: Genome, width: int, depth: int) -> Genome:
    """The genome at another width, repeated to about `depth` branches.

    Repeats use the same shared weights. A branch that reads earlier streams reads those of its own
    repeat.

    Raises:
        SpaceError: if heads do not fit the width.
    """
    return deepened(widened(genome, width), max(1, round(depth / len(genome.genes))))


def deepened(genome: Genome, periods: int) -> Genome:
    """The branches of a genome, so many times."""
    length = len(genome.genes)

    def moved(gene: Gene, by: int) -> Gene:
        return replace(gene, inputs=tuple(n + by for n in gene.inputs))

    genes = (moved(g, period * length) for period in range(periods) for g in genome.genes)
    return replace(genome, genes=tuple(genes))


def rival(plan: ScalePlan, genome: Genome) -> ScalePlan:
    """Another genome with as many parameters, the same recipe, and about the same depth.

    Args:
        plan: What it is compared with.
        genome: The other one, at any size.
    """
    period = motif(genome)
    near = max(1, round(len(plan.genome.genes) / len(period.genes)))
    base = replace(plan.base, width=period.d_model)
    made = []
    for periods in {max(1, near - 1), near, near + 1}:
        deep = deepened(period, periods)
        ratio = len(deep.genes) / len(plan.genome.genes)
        based = replace(plan, base=replace(base, depth=plan.base.depth * ratio))
        made += [based.at(wide) for wide in _widths(deep, plan)]
    return min(made, key=lambda other: abs(math.log(other.params / plan.params)))


def _widths(genome: Genome, plan: ScalePlan) -> list[Genome]:
    """The genome at widths that come near to the parameters of a plan."""
    width, made = plan.genome.d_model, dict[int, Genome]()
    for _ in range(4):  # parameters grow about as the square of the width
        near = [widened(genome, legal) for legal in legal_widths(genome, width)]
        made |= {wide.d_model: wide for wide in near}
        has = replace(plan.at(near[0]), base=Base(near[0].d_model, 1)).params
        width = max(1, round(near[0].d_model * (plan.params / has) ** 0.5))
    return list(made.values())


def motif(genome: Genome) -> Genome:
    """The shortest run of branches that a genome repeats."""
    count = len(genome.genes)
    for length in range(1, count + 1):
        short = replace(genome, genes=genome.genes[:length])
        if count % length == 0 and deepened(short, count // length) == genome:
            return short
    return genome

"""Parametrisations that transfer: one set of hyper-parameters for every width and depth.

What was tuned on a base model holds for a larger one if init, learning rate, decay and epsilon of
each parameter follow from its role. Width: muP (Yang et al. 2022, arXiv 2203.03466, table 8, Adam).
Depth: a residual branch is multiplied by l^-a, and learning rates inside branches by l^(a-1), where
l is the ratio of the depths in branches, counted as often as they are used; a = 1 is CompleteP
(Dey et al. 2025, arXiv 2505.01618), a = 1/2 depth-muP (Yang et al. 2023, arXiv 2310.02244).

Heads, states, experts, ranks and vocabularies stay as wide as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from archsearch.block import block_class
from archsearch.canonical import nested
from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from archsearch.block import Role

Scheme = Literal["sp", "mup", "depth_mup", "completep"]
"""sp: the standard parametrisation, which transfers nothing; the control. mup: width alone."""
EXPONENTS: Mapping[Scheme, float] = {"sp": 0.0, "mup": 0.0, "depth_mup": 0.5, "completep": 1.0}
"""a of each scheme."""
EPS = 1e-8
"""Epsilon of Adam in the base model."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model that the hyper-parameters were found on."""

    width: int
    depth: int
    """Branches of the stack, each as often as it is used."""
    scheme: Scheme = "completep"


@dataclass(frozen=True, slots=True)
class Scales:
    """What becomes of a parameter: factors on what holds in the base model."""

    init: float = 1.0
    """Of what its role draws at this width: hidden and readout from N(0, 1/fan_in)."""
    multiplier: float = 1.0
    """Of its product with the input."""
    lr: float = 1.0
    weight_decay: float = 1.0
    """Of AdamW, which multiplies it by the learning rate once more."""
    eps: float = 1.0

    def folded(self) -> Scales:
        """The same training with the multiplier in the weight (2203.03466, section B: abc)."""
        c = self.multiplier
        return Scales(self.init * c, 1.0, self.lr * c, self.weight_decay / c, self.eps / c)


def scale(
    role: Role, base: Sequence[int], target: Sequence[int], depth: float, scheme: Scheme
) -> Scales:
    """How a parameter is scaled from the base model to the target.

    Args:
        role: Its role.
        base: Its shape in the base model.
        target: Its shape in the target.
        depth: Branches of the target over those of the base model; 1 outside the stack.
        scheme: The parametrisation.
    """
    if scheme == "sp":
        return Scales()
    fan_in = target[-1] / base[-1]
    width = max(wide / narrow for narrow, wide in zip(base, target, strict=True))
    branch = branch_multiplier(depth, scheme)
    lr = 1.0 if scheme == "mup" else 1 / (depth * branch)
    eps = branch / width
    if role.kind == "hidden":
        return Scales(lr=lr / fan_in, weight_decay=fan_in, eps=eps)
    if role.kind == "readout":
        return Scales(init=fan_in**0.5, multiplier=1 / fan_in, lr=lr, eps=eps)
    return Scales(multiplier=branch if role.joins else 1.0, lr=lr, eps=eps)


def branch_multiplier(depth: float, scheme: Scheme) -> float:
    """What the output of a residual branch is multiplied by: depth^-a."""
    return depth ** -EXPONENTS[scheme]


def widened(genome: Genome, width: int) -> Genome:
    """The genome at another width: heads stay as wide as they are, so their number changes.

    Raises:
        SpaceError: if a number of heads is not whole then.
    """
    counts = [
        int(value)
        for gene in nested(genome.genes)
        for name, value in gene.params
        if name in block_class(gene.block).grows and isinstance(value, int)
    ]
    step = math.lcm(*(genome.d_model // math.gcd(genome.d_model, count) for count in counts))
    if width % step:
        near = sorted({width // step * step or step, (width // step + 1) * step})
        raise SpaceError(
            f"width {width}: heads of {genome.text()} would not be as wide as at width "
            f"{genome.d_model}; legal: multiples of {step}, e.g. {', '.join(map(str, near))}"
        )

    def grown(gene: Gene) -> Gene:
        grows = block_class(gene.block).grows
        params = tuple(
            (name, int(value) * width // genome.d_model if name in grows and value else value)
            for name, value in gene.params
        )
        return replace(gene, params=params, inner=tuple(map(grown, gene.inner)))

    return replace(genome, d_model=width, genes=tuple(map(grown, genome.genes)))

"""Parametrisations that transfer: one set of hyper-parameters for every width and depth.

What was tuned on a base model holds for a larger one if init, learning rate, decay and epsilon of
each parameter follow from its role. Width: muP (Yang et al. 2022, arXiv 2203.03466, table 8, Adam).
Depth: a residual branch is multiplied by l^-a, and learning rates inside branches by l^(a-1), where
l is the ratio of the depths in branches, counted as often as they are used; a = 1 is CompleteP
(Dey et al. 2025, arXiv 2505.01618), a = 1/2 depth-muP (Yang et al. 2023, arXiv 2310.02244).

Heads, states, experts, ranks and vocabularies stay as wide as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from archsearch.block import block_class
from archsearch.errors import BlockError, SpaceError
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
    depth: float
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


FARTHEST = 256
"""How far from a width that does not fit one that does is looked for."""


def widened(genome: Genome, width: int) -> Genome:
    """The genome at another width: heads stay as wide as they are, so their number changes.

    Raises:
        SpaceError: if a block cannot be built at that width, or a number of heads is not whole.
    """
    wide, why = _wide(genome, width)
    if wide is None:
        near = ", ".join(map(str, legal_widths(genome, width))) or "none near it"
        raise SpaceError(f"{genome.text()} cannot be {width} wide: {why}; legal widths: {near}")
    return wide


def legal_widths(genome: Genome, width: int) -> list[int]:
    """The nearest widths that a genome can have, one from below and one from above, or that one."""
    below = (w for w in range(width, max(0, width - FARTHEST), -1) if _wide(genome, w)[0])
    above = (w for w in range(width, width + FARTHEST) if _wide(genome, w)[0])
    return sorted({w for side in (below, above) if (w := next(side, None))})


def _wide(genome: Genome, width: int) -> tuple[Genome | None, str]:
    """The genome at a width, or why it cannot have it."""

    def grown(gene: Gene) -> Gene:
        kind = block_class(gene.block)
        params = dict(gene.params)
        for name in kind.grows:
            if isinstance(count := params[name], int):
                if count * width % genome.d_model:
                    channels = f"{genome.d_model}/{count} channels each"
                    raise BlockError(f"{gene.block} has {name} of {channels}")
                params[name] = count * width // genome.d_model
        kind.check(width, kind.Config(**params))
        inner = tuple(map(grown, gene.inner))
        return replace(gene, params=tuple(params.items()), inner=inner)

    try:
        return replace(genome, d_model=width, genes=tuple(map(grown, genome.genes))), ""
    except BlockError as error:
        return None, str(error)

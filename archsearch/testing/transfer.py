"""Laws of transfer: what a block learns at one width and depth, it learns at every other.

They hold the roles of a block to account. In models of copies of the block between embedding and
readout, how far the stream moves may depend neither on the width nor on the depth. A wrong role
moves it ever more or ever less: by a slope of 1/2 or 1 in log2(movement) against log2(width) (Yang
et al. 2022, arXiv 2203.03466, appendices D and J). `archsearch.testing.slopes` measures them.

The laws are quick: two starts, two sizes, and bounds that leave room for the noise of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator

from archsearch.block import Role, role_of
from archsearch.model import build
from archsearch.mup import EXPONENTS, Base
from archsearch.testing.cases import Case, stream, wider
from archsearch.testing.slopes import (
    VOCAB,
    Net,
    Slope,
    Text,
    depths,
    learned,
    learned_silently,
    measured,
    warm_movements,
    widths,
)

NOISE = 0.2
"""What a slope over two starts and a fourfold width may be off by: at most 0.13 was seen."""


def draws_as_scaled(case: Case) -> None:
    """Inits have the spread that scaling presumes.

    Hidden and readout parameters of 1/sqrt(fan_in), or 0; all others the same at every width.
    """
    module, large = case.empty(), dict(wider(case).empty().named_parameters())
    roles, generator = case.roles(module), stream("spread")
    for name, parameter in module.named_parameters():
        role, other = role_of(roles, name), large[name]
        narrow, wide = (_spread(role, p.shape, generator) for p in (parameter, other))
        fan_in = other.shape[-1] / parameter.shape[-1]
        want = narrow * (fan_in**-0.5 if role.kind in ("hidden", "readout") else 1.0)
        assert abs(wide - want) <= 0.06 * want, (
            f"{name} starts with a spread of {narrow:.3g}, of {wide:.3g} {fan_in:g} times as wide; "
            f"as {role.kind} it should be {want:.3g} there"
        )


def _spread(role: Role, shape: torch.Size, generator: Generator) -> float:
    """Root mean square of at least 2^14 draws."""
    count = math.ceil(2**14 / shape.numel())
    with torch.no_grad():
        draws = [torch.empty(shape) for _ in range(count)]
        for draw in draws:
            role.init(draw, generator)
    return float(torch.stack(draws).double().square().mean().sqrt())


def is_its_own_base(case: Case) -> None:
    """As wide and deep as its base, a model is the one without a base, in every scheme, bit by bit.

    So are its optimizers and its losses.
    """
    net, text = Net(case, wide=1), Text()
    width, genome = case.width, net.genome(net.deep)

    def told(base: Base | None) -> tuple[Any, ...]:
        model = build(genome, VOCAB, generator=stream("net"), base=base)
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        training = text.training(model, 3, 3)
        groups = [optimizer["param_groups"] for optimizer in training.state_dict()["optimizers"]]
        return weights, groups, [point.loss for point in training]

    weights, *rest = told(None)
    for scheme in EXPONENTS:
        own, *same = told(Base(width, len(genome.genes), scheme))
        assert all(map(torch.equal, own, weights)), f"{scheme}: other weights than without a base"
        assert same == rest, f"{scheme}: other groups or losses than without a base"


def moves_alike_at_every_width(case: Case) -> None:
    """A step in one group of parameters alone moves the stream as far in a wider model.

    Wrong roles have slopes from 1/2 on.
    """
    found = measured(widths(Net(case), (1, 4)), range(2), warm_movements)
    _judge(found, f"a step in one group, {case}", -0.25 - NOISE, 0.25 + NOISE)


def learns_alike_at_every_width(case: Case) -> None:
    """Steps of training move logits, stream and branches as far in a wider model."""
    found = measured(widths(Net(case), (1, 4)), range(2), learned_silently)
    seen = {name: found[name] for name in ("logits 1", "stream 5", "branches 5")}
    _judge(seen, f"training, {case}", -0.15 - NOISE, 0.15 + NOISE)


def learns_alike_at_every_depth(case: Case) -> None:
    """Steps of training move the stream as far in a deeper model.

    A little less far: what the branches add at the start falls with depth.
    """
    found = measured(depths(Net(case, wide=1), (2, 16)), range(1), learned)
    seen = {name: found[name] for name in ("stream 1", "stream 5")}
    _judge(seen, f"training, {case}", -0.25 - NOISE, 0.15 + NOISE)


TRANSFER_LAWS: tuple[Callable[[Case], None], ...] = (
    draws_as_scaled,
    is_its_own_base,
    moves_alike_at_every_width,
    learns_alike_at_every_width,
    learns_alike_at_every_depth,
)
"""For each of `archsearch.testing.slopes.settings`."""


def _judge(found: Mapping[str, Slope | None], what: str, least: float, most: float) -> None:
    slopes = {name: slope.slope for name, slope in found.items() if slope is not None}
    wrong = [f"{name} as size^{s:+.2f}" for name, s in slopes.items() if not least <= s <= most]
    assert not wrong, (
        f"{what}: the movement goes for {', '.join(wrong)}, and should between size^{least:+.2f} "
        f"and size^{most:+.2f}: is the role right?"
    )

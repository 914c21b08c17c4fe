"""Blocks at one width with one config each: what the laws of `archsearch.testing.blocks` judge."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator

from archsearch.block import Block, Role, init_weights
from archsearch.cost import Cost, Held
from archsearch.dims import Dim, Value, word
from archsearch.errors import BlockError
from archsearch.genome import Gene, Genome
from archsearch.seeds import seed
from archsearch.stack import Stack, configured, stack_cost
from archsearch.wrapper import Wrapper

WIDTHS = (32, 48, 64, 16)
"""Widths of the cases; the first one that a config fits is taken."""
LARGEST = 100_000
"""Most parameters of a case, and most numbers in its decode state; keeps oracles quick."""


@dataclass(frozen=True)
class Case:
    """A block at one width with one config."""

    block: type[Block]
    width: int
    config: Any
    inner: tuple[Gene, ...] = ()
    """What a wrapper holds."""

    def __str__(self) -> str:
        fields, usual = dataclasses.asdict(self.config), dict(self.block.info.fill({}))
        named = (f"{k}={word(v)}" for k, v in fields.items() if v != usual[k])
        held = ["+".join(gene.block for gene in self.inner)] if self.inner else []
        return "-".join((self.block.info.name, str(self.width), *held, *named))

    @property
    def uses(self) -> int:
        """Uses that `build` makes room for."""
        return 3 if self.block.per_use else 1

    def build(
        self, dtype: torch.dtype = torch.float32, *, drawn: bool = False, start: int = 0
    ) -> Block:
        """The block with the weights that training starts from.

        With `drawn`, every parameter is random instead: what starts at 0 or 1 hides mistakes.
        """
        module = self.empty(self.uses).to_empty(device="cpu")
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(math.nan)
        init_weights(module, self.roles(module), stream("init", start))
        module = module.to(dtype).train(self.block.info.causal)
        if drawn:
            draw(module, 1.0)
        return module

    def empty(self, uses: int = 1) -> Block:
        """The block on the meta device: shapes without memory."""
        build: Callable[..., Block] = self.block
        extra: dict[str, Any] = {"uses": uses} if self.block.per_use else {}
        with torch.device("meta"):
            if self.inner:
                extra["inner"] = Stack(Genome(self.width, self.inner), self.inner)
            return build(self.width, self.config, **extra)

    def roles(self, module: Block) -> dict[str, Role]:
        """The role of every parameter of what `build` or `empty` made; by pattern, or by name."""
        roles = dict(self.block.roles)
        if isinstance(module, Wrapper) and isinstance(module.inner, Stack):
            inner = module.inner
            roles |= {f"inner.{n}": inner.role_of(n) for n, _ in inner.named_parameters()}
        return roles

    def cost(self, seq_len: int) -> Cost:
        """The cost that the block declares."""
        if not self.inner:
            return self.block.cost(self.width, self.config, seq_len)
        genome = Genome(self.width, self.inner)
        held = Held(len(self.inner), lambda time: stack_cost(genome, self.inner, time))
        wrapper: Any = self.block
        cost: Cost = wrapper.cost(self.width, self.config, seq_len, held)
        return cost


def cases(block: type[Block], drawn: int = 3) -> list[Case]:
    """The default, each option and end of a range alone, and `drawn` random small configs.

    Left out is what `check` refuses at every one of `WIDTHS`, and what is larger than `LARGEST`.
    """
    info, rng = block.info, random.Random(seed("cases", block.info.name))
    usual = _case(block, {})
    assert usual, f"the default of {info.name} fits none of the widths {WIDTHS}"
    found = {usual: None}
    for name, dim in info.dims.items():
        given = {dim.when[0]: dim.when[1]} if dim.when else {}
        fits = [case for v in edges(dim) if (case := _case(block, given | {name: v}))]
        found |= dict.fromkeys(fits if dim.options else [*fits[:3], *fits[-1:]])
    wanted, tries = len(found) + drawn, 0
    while len(found) < wanted and tries < 1000:
        values = {name: rng.choice(edges(dim, most=16)) for name, dim in info.dims.items()}
        if case := _case(block, values, rng.sample(WIDTHS, 1)):
            found[case] = None
        tries += 1
    return list(found)


def holding(block: type[Block]) -> tuple[Gene, ...]:
    """What a wrapper holds in a test: a mixer with positions and one without, and an ffn."""
    if block.info.wraps is None:
        return ()
    mamba = Gene.of("mamba2", head_dim=8, d_state=4)
    return (Gene.of("attention", heads=2), Gene.of("swiglu", mult=1), mamba)


def edges(dim: Dim, most: float = math.inf) -> tuple[Value, ...]:
    """Every option; of a range both ends, 3, the powers of two up to `most`, and None.

    Of a range of real numbers both ends and the default. Where fractions are legal, one of them.
    """
    if dim.options:
        return dim.options
    low, high = dim.low or 0, dim.high or 0
    if dim.real:
        return tuple(sorted({low, float(dim.default or low), high}))
    powers = {1 << i for i in range(int(high).bit_length())}
    known = {low, high, 3, low + 0.75, *powers}
    whole = sorted(v for v in known if v in dim and v <= max(low, most))
    return (None, *whole) if dim.optional else tuple(whole)


def _case(
    block: type[Block], given: dict[str, Value], widths: tuple[int, ...] | list[int] = WIDTHS
) -> Case | None:
    config = block.Config(**dict(block.info.fill(given)))
    for width in widths:
        case = Case(block, width, config, holding(block))
        if refusal(case) is None and affordable(case):
            return case
    return None


def refusal(case: Case) -> str | None:
    """What `check` says against the width, if anything."""
    held = [configured(gene) for gene in case.inner]
    try:
        for kind, config in [(case.block, case.config), *held]:
            kind.check(case.width, config)
    except BlockError as error:
        return str(error)
    return None


def affordable(case: Case) -> bool:
    """Whether its oracle takes no longer than a test may."""
    return size(case) <= LARGEST


def size(case: Case) -> int:
    """Numbers in its parameters or in its decode state, whichever are more."""
    cost = case.cost(64)
    return max(cost.params, cost.state_bytes // 4)


def wider(case: Case) -> Case:
    """The case at a larger width that the config fits."""
    for width in (factor * case.width for factor in (2, 3, 4, 6, 8)):
        other = dataclasses.replace(case, width=width)
        if refusal(other) is None:
            return other
    raise AssertionError(f"no multiple of width {case.width} fits {case}")


def stream(*names: object) -> Generator:
    """A random stream by name."""
    return Generator().manual_seed(seed(*names))


def draw(module: Block, scale: float) -> None:
    """Draw every parameter: matrices and filters so that they keep variance, others N(0, 1)."""
    generator = stream("draw")
    with torch.no_grad():
        for parameter in module.parameters():
            std = math.prod(parameter.shape[1:]) ** -0.5
            parameter.normal_(0.0, scale * std, generator=generator)

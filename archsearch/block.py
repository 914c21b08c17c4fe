"""The block: what every interchangeable part of a model is, and how one is registered.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from archsearch.catalogue import SIZES, BlockInfo, declare, found
from archsearch.cost import Cost
from archsearch.dims import Value, dims_of, word
from archsearch.errors import BlockError, nearest

State = dict[str, Tensor]
"""What decoding carries from token to token: one tensor per name, batch first."""
Init = Callable[[Tensor, Generator], object]
"""Fills a parameter in place from an explicit random stream."""
RESERVED = frozenset({"block", "share", "of"})
"""What a gene says beside its parameters, which therefore cannot have these names."""
RoleKind = Literal["hidden", "embedding", "readout", "vector", "small"]


def normal(std: float) -> Init:
    """Draw from N(0, std^2)."""
    return lambda w, g: w.normal_(0.0, std, generator=g)


def fan_in(w: Tensor, g: Generator) -> Tensor:
    """Draw from N(0, 1 / fan_in), fan_in being the product of all axes but the first."""
    return w.normal_(0.0, math.prod(w.shape[1:]) ** -0.5, generator=g)


def fan_in_times(gain: float) -> Init:
    """Draw from N(0, gain^2 / fan_in), fan_in being the product of all axes but the first."""
    return lambda w, g: w.normal_(0.0, gain * math.prod(w.shape[1:]) ** -0.5, generator=g)


def zeros(w: Tensor, g: Generator) -> Tensor:
    """Fill with 0."""
    return w.zero_()


def ones(w: Tensor, g: Generator) -> Tensor:
    """Fill with 1."""
    return w.fill_(1.0)


@dataclass(frozen=True, slots=True)
class Role:
    """How one parameter takes part in width, and how it starts.

    `axes` names, for each axis of the tensor, the width dimension that it grows with; None is an
    axis that does not grow with the model width (Yang et al. 2022, arXiv 2203.03466, table 8).
    """

    kind: RoleKind
    axes: tuple[str | None, ...]
    init: Init
    joins: bool = False
    """Whether a wrapper adds it to the stream itself, so that it counts as a branch in depth."""

    @classmethod
    def hidden(cls, *axes: str | None, init: Init = fan_in) -> Role:
        """A matrix from one growing dimension to another."""
        return cls("hidden", axes, init)

    @classmethod
    def embedding(cls, *axes: str | None, init: Init, joins: bool = False) -> Role:
        """From a fixed dimension to a growing one; a row is read by few inputs."""
        return cls("embedding", axes, init, joins)

    @classmethod
    def readout(cls, *axes: str | None, init: Init = fan_in) -> Role:
        """From a growing dimension to a fixed one."""
        return cls("readout", axes, init)

    @classmethod
    def vector(cls, *axes: str | None, init: Init) -> Role:
        """A gain, bias or filter: one growing axis and no sum over it."""
        return cls("vector", axes, init)

    @classmethod
    def small(cls, *axes: None, init: Init) -> Role:
        """No axis grows."""
        return cls("small", axes, init)


@dataclass(frozen=True, slots=True)
class Ctx:
    """What a block may need beyond its input."""

    embedding: Tensor
    """The token embeddings, same shape as the input."""
    position: int | Tensor = 0
    """Index of the first token of the input in its sequence; or of each token, position_BT, where
    the input leaves some of the sequence out."""
    seen: int = 0
    """Tokens that the decode state has met (`step` and `prefill` alone)."""
    use: int = 0
    """How often the weights were used before in this forward pass (shared blocks)."""
    losses: list[Tensor] = field(default_factory=list)
    """Collects what training adds to the loss of the task, weighted already: `forward` appends."""
    noise: Generator | None = None
    """The random stream of training; None where nothing may be random."""


class Block(nn.Module):
    """One interchangeable part of a model. A subclass is registered when it is created.

    Class arguments:
        name: as a space file spells it.
        kind: "mixer", "ffn" or "wrapper".
        paper: arXiv number.
        joins: "stream" or "next", see `BlockInfo.joins`.
        causal: False for a block whose training pass looks ahead; it must not in eval mode.
        bidirectional: True for a block that always looks ahead: without `init_state` and `step`,
            and only for spaces that say `causal: false`.
        wraps: For a subclass of `Wrapper`, how it uses what it holds, see `BlockInfo.wraps`.
        register: False for a class that no space can name: a common base, or a test double.

    A subclass brings `Config`, `roles`, `__init__(width, config)`, `forward`, `init_state`, `step`,
    `cost` and `oracle`; `check` where not every width or parameter goes with every other, `prefill`
    where that is faster than steps. The contract suite in `archsearch.testing` then holds it to all
    of them.
    """

    info: ClassVar[BlockInfo]
    Config: ClassVar[type[Any]]
    roles: ClassVar[Mapping[str, Role]]
    """For each parameter name, or pattern of names with `*`, its role."""
    prenorm: ClassVar[bool] = True
    """Whether the model normalises the input; False where the block does so itself."""
    spans: ClassVar[tuple[str, ...]] = ()
    """Parameters that count tokens which are taken together: at most those of the longest task."""
    grows: ClassVar[tuple[str, ...]] = ()
    """Parameters that count heads: a wider model has more of them, and none is wider."""
    per_use: ClassVar[bool] = False
    """Whether each use of shared weights has some of its own: `__init__` then takes `uses`."""

    def __init_subclass__(
        cls,
        *,
        name: str,
        kind: Literal["mixer", "ffn", "wrapper"],
        paper: str,
        joins: Literal["stream", "next"] = "stream",
        causal: bool = True,
        bidirectional: bool = False,
        wraps: Literal["chain", "set"] | None = None,
        register: bool = True,
    ) -> None:
        super().__init_subclass__()
        taken = RESERVED & {field.name for field in fields(cls.Config)}
        if taken:
            raise BlockError(f"block '{name}': a parameter cannot be called '{min(taken)}'")
        cls.info = BlockInfo(
            name=name,
            kind=kind,
            paper=paper,
            summary=(cls.__doc__ or "").strip().split("\n")[0].rstrip("."),
            dims=dims_of(cls.Config),
            joins=joins,
            causal=causal,
            bidirectional=bidirectional,
            wraps=wraps,
            prenorm=cls.prenorm,
            docs=_field_docs(cls.Config),
        )
        if register:
            _classes[name] = cls
            declare(cls.info, lambda: tuple(cls._usual_cost(*size) for size in SIZES))

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """The branch for a whole sequence; the model adds the residual."""
        raise NotImplementedError

    def init_state(self, batch: int, context: int) -> State:
        """The decode state before the first token of sequences of at most `context` tokens."""
        raise NotImplementedError

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """The branch for one token, after `ctx.seen` others; `state` may be changed in place."""
        raise NotImplementedError

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """`step` for several tokens at once; a block that can do better than one by one says how.

        `ctx` has the embeddings of all of them and the position of the first, or of each.
        """
        if not state:
            return self.forward(x_BTD, ctx), state
        outputs = []
        for i, x_BD in enumerate(x_BTD.unbind(1)):
            at = ctx.position
            at = at + i if isinstance(at, int) else at[:, i : i + 1]
            embedding_BD, seen = ctx.embedding[:, i], ctx.seen + i
            own = dataclasses.replace(ctx, embedding=embedding_BD, position=at, seen=seen)
            y_BD, state = self.step(x_BD, state, own)
            outputs.append(y_BD)
        return torch.stack(outputs, 1), state

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """What `forward` must equal, its losses too: the paper's equations, naive, any dtype."""
        raise NotImplementedError

    @staticmethod
    def cost(width: int, config: Any, seq_len: int) -> Cost:
        """Cost of one use at a context of `seq_len` tokens."""
        raise NotImplementedError

    @classmethod
    def own_cost(cls, width: int, config: Any, seq_len: int) -> Cost:
        """`cost`; of a wrapper, without what it holds."""
        return cls.cost(width, config, seq_len)

    @classmethod
    def _usual_cost(cls, width: int, seq_len: int) -> Cost | None:
        """Its own cost with defaults, or with the nearest to them that fit; None if none does."""
        config = usual_config(cls, width)
        return None if config is None else cls.own_cost(width, config, seq_len)

    @staticmethod
    def params_per_use(width: int, config: Any) -> int:
        """The part of `cost().params` that every further use adds again."""
        return 0

    @staticmethod
    def channels_per_head(width: int, config: Any) -> int | None:
        """Channels of a head; None for a block without heads."""
        return getattr(config, "head_dim", None)

    @staticmethod
    def check(width: int, config: Any) -> None:
        """Refuse a combination that cannot be built.

        Raises:
            BlockError: saying what was given and what is legal.
        """


_classes: dict[str, type[Block]] = {}


def require(info: BlockInfo, field: str, value: int, legal: Iterable[int], because: str) -> None:
    """Refuse a value that the width or another parameter rules out; for `Block.check`.

    Raises:
        BlockError: `{block}.{field} {value} {because}; legal: ...`.
    """
    fitting = [v for v in legal if v in info.dims[field]]
    if value not in fitting:
        words = ", ".join(map(str, fitting)) or "none"
        raise BlockError(f"{info.name}.{field} {value} {because}; legal: {words}")


def require_whole(info: BlockInfo, field: str, mult: float, width: int) -> None:
    """Refuse a multiple of the width that is no whole number; for `Block.check`.

    Raises:
        BlockError: `{block}.{field} {mult} x {width} is not whole; legal: ...`.
    """
    if abs(mult * width - round(mult * width)) > 1e-5:  # real numbers keep twelve digits
        here, legal = f"{info.name}.{field} {word(mult)} x {width}", f"multiples of 1/{width}"
        raise BlockError(f"{here} is not whole; legal: {legal}")


def divisors(number: int) -> list[int]:
    """Every whole number that divides `number`, in order."""
    small = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


def usual_config(block: type[Block], width: int) -> Any | None:
    """The defaults; where the width rules them out, those with one value moved as little as can be.

    None if none of these fits.
    """

    def distance(default: Value, value: Value) -> float:
        numbers = [v for v in (default, value) if isinstance(v, int | float) and v > 0]
        return abs(math.log(numbers[0] / numbers[1])) if len(numbers) == 2 else 0.0

    moved: list[tuple[float, dict[str, Value]]] = []
    for name, dim in block.info.dims.items():
        values = dim.options or [v for v in divisors(width) if v in dim]
        moved += [(distance(dim.default, value), {name: value}) for value in values]
    for _, given in [(0.0, {}), *sorted(moved, key=lambda option: option[0])]:
        config = block.Config(**dict(block.info.fill(given)))
        try:
            block.check(width, config)
        except BlockError:
            continue
        return config
    return None


def block_class(name: str) -> type[Block]:
    """The class of a block, imported from the package that brings it.

    Raises:
        BlockError: if no package brings a block of that name.
    """
    if name not in _classes:
        if name not in found("blocks"):
            known = {*found("blocks"), *_classes}
            raise BlockError(f"unknown block '{name}'; {nearest(name, known)}")
        found("blocks")[name].load()
    return _classes[name]


def role_of(roles: Mapping[str, Role], name: str) -> Role:
    """The role of one parameter, by its exact name or the first pattern that matches it.

    Raises:
        BlockError: if nothing is declared for it.
    """
    if name in roles:
        return roles[name]
    for pattern, role in roles.items():
        if fnmatchcase(name, pattern):
            return role
    raise BlockError(f"parameter '{name}' has no role; declared: {', '.join(roles)}")


@torch.no_grad()
def init_weights(module: nn.Module, roles: Mapping[str, Role], generator: Generator) -> None:
    """Start every parameter as its role says, in order of name.

    Raises:
        BlockError: if a parameter has no role.
    """
    for name, parameter in sorted(module.named_parameters()):
        role_of(roles, name).init(parameter, generator)


def _field_docs(config: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    try:
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(config))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    docs, field = {}, None
    for line in getattr(body, "body", []):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            field = line.target.id
        elif field and isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
            docs[field] = " ".join(str(line.value.value).split())
            field = None
    return docs

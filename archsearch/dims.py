"""Search dimensions: what a parameter may be, and what it is when nobody says.

A block declares its parameters as the fields of a frozen dataclass `Config`:

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        heads: int = whole(1, 256, default=4)
        pos: str = choice("rope", "none", default="rope")
        theta: float = real(1.0, 1e7, default=10_000.0, when=("pos", "rope"))

The declaration is the widest legal set. A space file narrows it and never widens it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

Value = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Dim:
    """One search dimension: either a tuple of `options`, or a range from `low` to `high`.

    Raises:
        ValueError: if the set is empty or the default lies outside it.
    """

    options: tuple[Value, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    """Distance between neighbours; None for a continuous range."""
    log: bool = False
    optional: bool = False
    """Whether None ("none" in a space file) is legal beside the range."""
    default: Value = None
    default_from: str | None = None
    """The field whose value stands in while this one is None."""
    when: tuple[str, Value] | None = None
    """The field and value without which this one has no effect."""

    def __post_init__(self) -> None:
        if self.low is None and not self.options:
            raise ValueError("a choice needs at least one option")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the range from {self.low} to {self.high} is empty")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError(f"a log range starts above 0, not at {self.low}")

    @property
    def real(self) -> bool:
        """Whether values are floating-point numbers."""
        return isinstance(self.low, float) or any(isinstance(v, float) for v in self.options)

    @property
    def values(self) -> tuple[Value, ...] | None:
        """Every legal value in order, or None for a continuous range."""
        if self.options:
            return self.options
        if self.step is None or self.low is None or self.high is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        values: list[Value] = [self.low + i * self.step for i in range(count)]
        return tuple([None, *values] if self.optional else values)

    @property
    def legal(self) -> str:
        """The legal set in words."""
        if self.options:
            return ", ".join(word(v) for v in self.options)
        also = " or none" if self.optional else ""
        steps = "" if self.step in (None, 1) else f" in steps of {self.step}"
        return f"{word(self.low)} to {word(self.high)}{steps}{also}"

    def __contains__(self, value: Value) -> bool:
        if self.options:
            return any(type(v) is type(value) and v == value for v in self.options)
        if value is None:
            return self.optional
        if self.low is None or self.high is None or isinstance(value, bool | str):
            return False
        if not self.real and not isinstance(value, int):
            return False
        if not self.low <= value <= self.high:
            return False
        return self.step is None or abs((value - self.low) / self.step % 1) < 1e-9

    def cast(self, value: Value) -> Value:
        """`value` as this dimension spells it: 1 as 1.0 where numbers are real, "none" as None."""
        if value == "none" and "none" not in self.options and None in self:
            return None
        if self.real and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return value

    def narrow(self, values: Iterable[Value]) -> Dim:
        """The dimension with only these values left.

        Raises:
            ValueError: naming the first value that is not legal here.
        """
        chosen = tuple(self.cast(v) for v in values)
        for value in chosen:
            if value not in self:
                raise ValueError(f"{word(value)} is not legal here; legal: {self.legal}")
        return Dim(options=chosen, default=chosen[0] if chosen else None)

    def narrow_range(self, low: float, high: float, step: float | None, log: bool) -> Dim:
        """The part of the dimension from `low` to `high`.

        Raises:
            ValueError: if an end is not legal, or the range is empty.
        """
        ends = self.cast(low), self.cast(high)
        if any(isinstance(end, str | bool) or end is None for end in ends):
            raise ValueError(f"a range needs numbers; legal: {self.legal}")
        if self.options:
            inside = [v for v in self.options if isinstance(v, int | float) and low <= v <= high]
            return self.narrow(inside)
        if step is None and not self.real:
            step = self.step
        narrowed = Dim(low=ends[0], high=ends[1], step=step, log=log, default=ends[0])  # type: ignore[arg-type]
        for value in narrowed.values or ends:
            if value not in self:
                raise ValueError(f"{word(value)} is not legal here; legal: {self.legal}")
        return narrowed

    def sample(self, rng: random.Random, weights: Sequence[float] | None = None) -> Value:
        """Draw one value, uniformly (on a log scale where `log`), or by `weights`."""
        if self.values is not None:
            return rng.choices(self.values, weights)[0]
        low, high = float(self.low or 0), float(self.high or 0)
        if self.log:
            return math.exp(rng.uniform(math.log(low), math.log(high)))
        return rng.uniform(low, high)

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from an empty dimension."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dim:
        """The inverse of `to_json`."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def word(value: Value) -> str:
    """A value as a space file spells it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _field(dim: Dim) -> Any:
    if dim.default not in dim and dim.default_from is None:
        raise ValueError(f"default {word(dim.default)} is not legal; legal: {dim.legal}")
    return dataclasses.field(default=dim.default, metadata={"dim": dim})


def choice(*options: Value, default: Value, when: tuple[str, Value] | None = None) -> Any:
    """A field that takes one of `options`."""
    return _field(Dim(options=options, default=default, when=when))


def pow2(low: int, high: int, *, default: int, when: tuple[str, Value] | None = None) -> Any:
    """A field that takes a power of two from `low` to `high`."""
    powers = tuple(1 << i for i in range(low.bit_length() - 1, high.bit_length()))
    return choice(*powers, default=default, when=when)


def whole(
    low: int,
    high: int,
    *,
    default: int | None,
    step: int = 1,
    optional: bool = False,
    default_from: str | None = None,
    when: tuple[str, Value] | None = None,
) -> Any:
    """A field that takes a whole number; also None where `optional`.

    With `default_from`, None means "the same as that field".
    """
    return _field(
        Dim(
            low=low, high=high, step=step, default=default, when=when,
            optional=optional or default_from is not None, default_from=default_from,
        )
    )  # fmt: skip


def real(
    low: float,
    high: float,
    *,
    default: float,
    log: bool = False,
    when: tuple[str, Value] | None = None,
) -> Any:
    """A field that takes a real number."""
    return _field(Dim(low=float(low), high=float(high), log=log, default=float(default), when=when))


def dims_of(config: type) -> dict[str, Dim]:
    """The search dimensions that the fields of a `Config` declare."""
    return {f.name: f.metadata["dim"] for f in dataclasses.fields(config)}

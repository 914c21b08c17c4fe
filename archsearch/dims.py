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
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archsearch.errors import nearest

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

Value = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Dim:
    """One search dimension: either a tuple of `options`, or a range from `low` to `high`.

    Where one option is a real number, whole ones become real as well, unless `fractions`.

    Raises:
        ValueError: if the set is empty or the default lies outside it.
    """

    options: tuple[Value, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    """Distance between neighbours; None for a continuous range."""
    fractions: bool = False
    """Whether numbers between the steps of the range are legal where they are named. Options that
    were named so keep their whole numbers whole."""
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
            raise ValueError(f"a log range starts above 0, not at {word(self.low)}")
        if self.real:
            object.__setattr__(self, "options", tuple(map(self.cast, self.options)))
            for name in ("low", "high", "default"):
                object.__setattr__(self, name, self.cast(getattr(self, name)))

    @property
    def real(self) -> bool:
        """Whether values are floating-point numbers."""
        if self.options:
            return not self.fractions and any(isinstance(v, float) for v in self.options)
        return isinstance(self.low, float)

    @property
    def count(self) -> float:
        """Number of legal values; infinite for a continuous range."""
        if self.options:
            return len(self.options)
        if self.step is None or self.low is None or self.high is None:
            return math.inf
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1 + self.optional

    @property
    def values(self) -> tuple[Value, ...] | None:
        """Every legal value in order, or None for a continuous range."""
        return self.options or _listed(self)

    @property
    def first(self) -> Value:
        """The first legal value."""
        return self.options[0] if self.options else None if self.optional else self.low

    def _nth(self, index: int) -> Value:
        """The value at `index` of a range with steps; None comes first where it is legal."""
        index -= self.optional
        return None if index < 0 else self.cast((self.low or 0) + index * (self.step or 0))

    @property
    def legal(self) -> str:
        """The legal set in words."""
        if self.options:
            return ", ".join(word(v) for v in self.options)
        also = " or none" if self.optional else ""
        steps = "" if self.step in (None, 1) else f" in steps of {self.step}"
        between = ", or a fraction such as 8/3" if self.fractions else ""
        return f"{word(self.low)} to {word(self.high)}{steps}{also}{between}"

    def _legal_near(self, value: Value) -> str:
        """The legal set in words, the nearest one first where they are words."""
        names = [option for option in self.options if isinstance(option, str)]
        if names and isinstance(value, str):
            return nearest(value, names)
        return f"legal: {self.legal}"

    def __contains__(self, value: Value) -> bool:
        if self.options:
            return any(type(v) is type(value) and v == value for v in self.options)
        if value is None:
            return self.optional
        if self.low is None or self.high is None or isinstance(value, bool | str):
            return False
        if not self.real and not self.fractions and not isinstance(value, int):
            return False
        if not self.low <= value <= self.high:
            return False
        if self.fractions:
            return True
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-6

    def cast(self, value: Value) -> Value:
        """`value` as this dimension spells it, so that equal values are written alike.

        1 becomes 1.0 where numbers are real, 1.0 becomes 1 where they are whole, "none" becomes
        None, and real numbers keep twelve digits (0.1 + 0.2 is 0.3).
        """
        if value == "none" and "none" not in self.options and None in self:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        if isinstance(value, float) and value.is_integer() and not self.real:
            return int(value)
        exact = isinstance(value, int) and not self.real
        return value if exact else float(f"{value:.12g}") + 0.0

    def narrow(self, values: Iterable[Value]) -> Dim:
        """The dimension with only these values left.

        Raises:
            ValueError: naming the first value that is not legal here, or stands twice.
        """
        chosen = tuple(self.cast(v) for v in values)
        for i, value in enumerate(chosen):
            if value not in self:
                raise ValueError(f"{word(value)} is not legal here; {self._legal_near(value)}")
            if value in chosen[:i]:
                raise ValueError(f"{word(value)} stands twice in the choice")
        mixed = not self.real and any(isinstance(v, float) for v in chosen)
        return Dim(options=chosen, default=chosen[0] if chosen else None, fractions=mixed)

    def narrow_range(
        self, low: float, high: float, step: float | None = None, log: bool | None = None
    ) -> Dim:
        """The part of the dimension from `low` to `high`, on a log scale if the whole is.

        Raises:
            ValueError: if an end is not legal, the range is empty, or the step does not fit.
        """
        if self.options:
            return self.narrow(self._inside(low, high, step))
        ends = self.cast(low), self.cast(high)
        on_steps = dataclasses.replace(self, fractions=False)
        for end in ends:
            if end not in on_steps or isinstance(end, bool | str) or end is None:
                raise ValueError(f"{word(end)} is not legal here; legal: {on_steps.legal}")
        if log is None:
            log = self.log and step is None
        if step is None:
            step = self.step
        elif self.step is not None:
            if step / self.step % 1:
                raise ValueError(f"the step must be a multiple of {word(self.step)}")
            step = self.cast(step)  # type: ignore[assignment]
        if log and step is not None and (self.real or step != 1):
            raise ValueError("a log range has no step")
        first, last = ends
        narrowed = Dim(low=first, high=last, step=step, log=log, default=first)  # type: ignore[arg-type]
        if math.isinf(narrowed.count):
            return narrowed
        last = narrowed._nth(int(narrowed.count) - 1)
        return dataclasses.replace(narrowed, high=last)  # type: ignore[arg-type]

    def _inside(self, low: float, high: float, step: float | None) -> list[Value]:
        """The options from `low` to `high`."""
        numbers = [v for v in self.options if type(v) in (int, float)]
        if not numbers:
            raise ValueError(f"a range needs numbers; legal: {self.legal}")
        if step is not None:
            raise ValueError(f"steps have no meaning here; legal: {self.legal}")
        inside: list[Value] = [v for v in numbers if low <= v <= high]  # type: ignore[operator]
        if not inside:
            raise ValueError(f"nothing legal lies in the range; legal: {self.legal}")
        return inside

    def sample(self, rng: random.Random, weights: Sequence[float] | None = None) -> Value:
        """Draw one value, uniformly (on a log scale where `log`), or by `weights`."""
        if self.options:
            return rng.choices(self.options, weights)[0]
        if self.optional and rng.random() * self.count < 1:
            return None
        low, high = self.low or 0, self.high or 0
        if self.step is not None and not self.log:
            return self._nth(rng.randrange(self.optional, int(self.count)))
        past = high if self.real else high + 1
        if self.log:
            drawn = math.exp(rng.uniform(math.log(low), math.log(past)))
        else:
            drawn = rng.uniform(low, past)
        return self.cast(min(high, max(low, drawn if self.real else math.floor(drawn))))

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
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**fields)


@functools.cache
def _listed(dim: Dim) -> tuple[Value, ...] | None:
    """The values of a range, once: strategies ask for them thousands of times."""
    if math.isinf(dim.count):
        return None
    return tuple(dim._nth(i) for i in range(int(dim.count)))


def one(value: Value) -> Dim:
    """The dimension of a single value."""
    return Dim(options=(value,), default=value)


def word(value: Value) -> str:
    """A value as a space file spells it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_whole(value: Value) -> int:
    """A value that must be a whole number by now.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


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
    fractions: bool = False,
    optional: bool = False,
    default_from: str | None = None,
    when: tuple[str, Value] | None = None,
) -> Any:
    """A field that takes a whole number; also None where `optional`.

    With `fractions`, a number between may be named as well. With `default_from`, None means "the
    same as that field".
    """
    return _field(
        Dim(
            low=low, high=high, step=step, fractions=fractions, default=default, when=when,
            optional=optional or default_from is not None, default_from=default_from,
        )
    )  # fmt: skip


def real(
    low: float,
    high: float,
    *,
    default: float,
    step: float | None = None,
    fractions: bool = False,
    log: bool = False,
    when: tuple[str, Value] | None = None,
) -> Any:
    """A field that takes a real number; with `fractions`, one between the steps may be named."""
    return _field(
        Dim(
            low=float(low), high=float(high), step=step, fractions=fractions, log=log,
            default=float(default), when=when,
        )
    )  # fmt: skip


def dims_of(config: type) -> dict[str, Dim]:
    """The search dimensions that the fields of a `Config` declare."""
    return {f.name: f.metadata["dim"] for f in dataclasses.fields(config)}

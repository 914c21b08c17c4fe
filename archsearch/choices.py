"""How a space file writes one value, several, a range or a quantity with a unit.

4                           one value
[2, 4, 8]                   the search picks one
{from: 1, to: 4}            every whole number between; `step`, `log: true`, `powers_of: 2`
600K  3%  1/3  24h          units, typed by what the place expects
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from archsearch.dims import Dim, Value, word
from archsearch.errors import nearest

RANGE_KEYS = ("from", "to", "step", "log", "powers_of")


class Misfit(ValueError):
    """A value does not fit; `at` leads from the place to the offending part."""

    def __init__(self, message: str, *at: str | int) -> None:
        super().__init__(message)
        self.at = at


def read_choices(data: Any, legal: Dim) -> Dim:
    """What a value, a list or a range leaves of the legal set.

    Raises:
        Misfit: saying what was given and what is legal.
    """
    if isinstance(data, dict):
        return _read_range(data, legal)
    if not isinstance(data, list):
        return _narrow([data], legal)
    if not data:
        raise Misfit(f"an empty choice; legal: {legal.legal}")
    for i, value in enumerate(data):
        if isinstance(value, list | dict):
            raise Misfit(f"expected a single value; legal: {legal.legal}", i)
        _narrow([value], legal, i)
        if value in data[:i] and type(value) is type(data[data.index(value)]):
            raise Misfit(f"{word(value)} stands twice in the choice", i)
    return _narrow(data, legal)


def _narrow(values: list[Value], legal: Dim, *at: int) -> Dim:
    try:
        return legal.narrow([quantity(v) if _numeric(legal) else v for v in values])
    except ValueError as error:
        raise Misfit(str(error), *at) from None


def _numeric(legal: Dim) -> bool:
    known = legal.options or (legal.low,)
    return any(isinstance(v, int | float) and not isinstance(v, bool) for v in known)


def _read_range(data: dict[str, Any], legal: Dim) -> Dim:
    for key in data:
        if key not in RANGE_KEYS:
            raise Misfit(f"unknown key '{key}' in a range; {nearest(key, RANGE_KEYS)}", key)
    for key in ("from", "to"):
        if key not in data:
            raise Misfit(f"a range needs '{key}'")
    numbers = {key: quantity(data[key]) for key in RANGE_KEYS if key in data and key != "log"}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Misfit(f"expected a number, not {word(value)}", key)
    if not isinstance(data.get("log", False), bool):
        raise Misfit("expected true or false", "log")
    low, high, base = numbers["from"], numbers["to"], numbers.get("powers_of")
    if low > high:
        raise Misfit(f"the range from {word(low)} to {word(high)} is empty", "to")
    if "step" in numbers and numbers["step"] <= 0:
        raise Misfit("the step must be above 0", "step")
    try:
        if base is None:
            return legal.narrow_range(low, high, numbers.get("step"), data.get("log", False))
        if base < 2:
            raise Misfit("powers_of must be at least 2", "powers_of")
        powers = [base**i for i in range(64) if low <= base**i <= high]
        if not powers:
            raise Misfit(f"no power of {word(base)} lies in the range", "powers_of")
        return legal.narrow(powers)
    except ValueError as error:
        raise error if isinstance(error, Misfit) else Misfit(str(error)) from None


_UNITS = {"": 1, "%": 0.01, "K": 1000, "M": 10**6, "G": 10**9, "KiB": 2**10, "MiB": 2**20}
_NUMBER = re.compile(r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(%|[KMG]|[KM]iB)?")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def quantity(data: Any) -> Any:
    """`"600K"` as 600000, `"3%"` as 0.03, `"1/3"` as a third; anything else as it is."""
    if not isinstance(data, str):
        return data
    if match := re.fullmatch(r"(\d+)/(\d+)", data):
        return int(match[1]) / int(match[2]) if int(match[2]) else data
    if not (match := _NUMBER.fullmatch(data)):
        return data
    value = float(match[1]) * _UNITS[match[2] or ""]
    return int(value) if value.is_integer() and match[2] != "%" else value


def duration(data: Any) -> float | None:
    """`"90s"`, `"30min"`, `"24h"` or `"2d"` in seconds; None for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", data) if isinstance(data, str) else None
    return float(match[1]) * _SECONDS[match[2]] if match else None


class _Field:
    """A pydantic field type: a reader of plain data and the JSON Schema that goes with it."""

    def __init__(self, read: Callable[[Any], Any], schema: dict[str, Any]) -> None:
        self.read, self.schema = read, schema

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return self.schema

    def _validate(self, data: Any) -> Any:
        try:
            return self.read(data)
        except Misfit as error:
            context = {"at": error.at, "text": str(error)}
            raise PydanticCustomError("misfit", "{text}", context) from None


def choices(legal: Dim) -> _Field:
    """A field that takes a value, a list or a range within `legal`, and becomes a `Dim`."""
    return _Field(
        lambda data: data if isinstance(data, Dim) else read_choices(data, legal),
        choices_schema(legal),
    )


def number(low: float, high: float, *, whole: bool = False) -> _Field:
    """A field that takes one number with an optional unit, from `low` to `high`."""
    kind = "a whole number" if whole else "a number"
    bounds = f"from {word(low)} to {word(high)}" if math.isfinite(high) else f"from {word(low)}"

    def read(data: Any) -> Any:
        value = quantity(data)
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not low <= value <= high:
            given = "a list" if isinstance(data, list | dict) else word(data)
            raise Misfit(f"expected {kind} {bounds}, not {given}")
        return value

    pattern = {"type": "string", "pattern": r"^[0-9.eE+-]+(%|[KMG]|[KM]iB)?$|^\d+/\d+$"}
    plain = {"type": "integer" if whole else "number", "minimum": low}
    return _Field(read, {"anyOf": [plain, pattern]})


def seconds() -> _Field:
    """A field that takes a duration such as `24h` and becomes seconds."""

    def read(data: Any) -> float | None:
        if data is None or isinstance(data, float):
            return data
        value = duration(data)
        if value is None:
            raise Misfit(f"expected a time such as 90s, 30min, 24h or 2d, not {word(data)}")
        return value

    return _Field(read, {"type": ["string", "null"], "pattern": r"^[0-9.]+(s|min|h|d)$"})


def choices_schema(legal: Dim) -> dict[str, Any]:
    """JSON Schema of a value, a list of values or a range within `legal`."""
    one: dict[str, Any]
    if legal.options:
        one = {"enum": ["none" if v is None else v for v in legal.options]}
    else:
        kind = "number" if legal.real else "integer"
        one = {"type": kind, "minimum": legal.low, "maximum": legal.high}
        if legal.optional:
            one = {"anyOf": [one, {"const": "none"}]}
    forms = [one, {"type": "array", "items": one, "minItems": 1}]
    if _numeric(legal):
        ends = {"type": ["number", "string"]}
        forms.append({
            "type": "object",
            "properties": {
                "from": ends, "to": ends, "step": ends,
                "log": {"type": "boolean"}, "powers_of": {"type": "integer", "minimum": 2},
            },
            "required": ["from", "to"],
            "additionalProperties": False,
        })  # fmt: skip
    return {"anyOf": forms}

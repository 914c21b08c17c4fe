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
from archsearch.expr import UNITS, scaled

RANGE_KEYS = ("from", "to", "step", "log", "powers_of")


class Misfit(ValueError):
    """What does not fit: for each part, what is wrong with it, and where.

    Attributes:
        parts: (message, way from the place to the offending part, whether its key is meant).
    """

    def __init__(self, message: str, *at: str | int, key: bool = False) -> None:
        super().__init__(message)
        self.parts = [(message, at, key)]

    @classmethod
    def of(cls, misfits: list[Misfit]) -> Misfit:
        """Several as one."""
        whole = cls(str(misfits[0]))
        whole.parts = [part for misfit in misfits for part in misfit.parts]
        return whole


def given(data: Any) -> str:
    """What somebody wrote, in words that fit into a sentence."""
    if isinstance(data, list):
        return "a list"
    if isinstance(data, dict):
        return "a mapping"
    text = word(data)
    return (text if len(text) <= 40 else text[:37] + "...") or "an empty text"


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
    misfits: list[Misfit] = []
    seen: list[Value] = []
    for i, value in enumerate(data):
        try:
            if isinstance(value, list | dict):
                raise Misfit(f"expected a single value, not {given(value)}; legal: {legal.legal}")
            (only,) = _narrow([value], legal).options
            if only in seen:
                raise Misfit(f"{word(only)} stands twice in the choice")
            seen.append(only)
        except Misfit as error:
            misfits.append(Misfit(str(error), i))
    if misfits:
        raise Misfit.of(misfits)
    return _narrow(seen, legal)


def _narrow(values: list[Value], legal: Dim) -> Dim:
    if _numeric(legal):
        for value in values:
            _check_unit(value)
    try:
        return legal.narrow([quantity(v) if _numeric(legal) else v for v in values])
    except ValueError as error:
        raise Misfit(str(error)) from None


def _numeric(legal: Dim) -> bool:
    known = legal.options or (legal.low,)
    return any(isinstance(v, int | float) and not isinstance(v, bool) for v in known)


def _read_range(data: dict[str, Any], legal: Dim) -> Dim:
    numbers = {key: quantity(data[key]) for key in RANGE_KEYS if key in data and key != "log"}
    if misfits := _range_misfits(data, numbers):
        raise Misfit.of(misfits)
    low, high, base = numbers["from"], numbers["to"], numbers.get("powers_of")
    try:
        if base is None:
            return legal.narrow_range(low, high, numbers.get("step"), data.get("log"))
        powers = [p for i in range(64) if low <= (p := int(base) ** i) <= high]
        if not powers:
            raise Misfit(f"no power of {word(base)} lies in the range", "powers_of")
        return legal.narrow(powers)
    except ValueError as error:
        raise error if isinstance(error, Misfit) else Misfit(str(error)) from None


def _range_misfits(data: dict[str, Any], numbers: dict[str, Any]) -> list[Misfit]:
    misfits = [
        Misfit(f"unknown key '{key}' in a range; {nearest(key, RANGE_KEYS)}", key, key=True)
        for key in data
        if key not in RANGE_KEYS
    ]
    misfits += [Misfit(f"a range needs '{key}'") for key in ("from", "to") if key not in data]
    wrong = {k for k, v in numbers.items() if type(v) not in (int, float) or math.isinf(v)}
    misfits += [Misfit(f"expected a number, not {given(data[key])}", key) for key in sorted(wrong)]
    if not isinstance(data.get("log", False), bool):
        misfits.append(Misfit("expected true or false", "log"))
    if not wrong & {"from", "to"} and {"from", "to"} <= set(numbers):
        low, high = numbers["from"], numbers["to"]
        if low > high:
            misfits.append(Misfit(f"the range from {word(low)} to {word(high)} is empty", "to"))
    if "step" not in wrong and numbers.get("step", 1) <= 0:
        misfits.append(Misfit("the step must be above 0", "step"))
    if "powers_of" in numbers and "powers_of" not in wrong:
        base = numbers["powers_of"]
        if base < 2 or base != base // 1 or base > 2**31:
            misfits.append(Misfit("powers_of takes a whole number from 2", "powers_of"))
        misfits += [
            Misfit(f"a range has either 'powers_of' or '{key}'", key, key=True)
            for key in ("step", "log")
            if key in data
        ]
    return misfits


_NUMBER = re.compile(r"([-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?)(%|[KMG](?:iB)?)?")
_UNIT = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?\s*([A-Za-z]+)")
_FRACTION = re.compile(r"([0-9]{1,15})/([0-9]{1,15})")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|min|h|d)")


def quantity(data: Any) -> Any:
    """`"600K"` as 600000, `"3%"` as 0.03, `"1/3"` as a third; anything else as it is."""
    if not isinstance(data, str):
        return data
    if match := _FRACTION.fullmatch(data):
        return int(match[1]) / int(match[2]) if int(match[2]) else data
    if match := _NUMBER.fullmatch(data):
        return scaled(match[1], match[2] or "")
    return data


def _check_unit(data: Any) -> None:
    """Refuse a number with a unit that there is none of."""
    match = _UNIT.fullmatch(data) if isinstance(data, str) else None
    if match and match[1] not in UNITS:
        legal = ", ".join(unit for unit in UNITS if unit)
        raise Misfit(f"unknown unit '{match[1]}' in '{data}'; known: {legal}")


def duration(data: Any) -> float | None:
    """`"90s"`, `"30min"`, `"24h"` or `"2d"` in seconds; None for anything else."""
    match = _TIME.fullmatch(data) if isinstance(data, str) else None
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
            context = {"parts": error.parts, "text": str(error)}
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
        _check_unit(data)
        value = quantity(data)
        if whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not low <= value <= high or math.isinf(value):
            raise Misfit(f"expected {kind} {bounds}, not {given(data)}")
        return value

    plain = {"type": "integer" if whole else "number", "minimum": low}
    if math.isfinite(high):
        plain["maximum"] = high
    return _Field(read, {"anyOf": [plain, UNIT_SCHEMA]})


def seconds() -> _Field:
    """A field that takes a duration such as `24h` and becomes seconds."""

    def read(data: Any) -> float | None:
        value = duration(data)
        if value is None and data is not None:
            raise Misfit(f"expected a time such as 90s, 30min, 24h or 2d, not {given(data)}")
        return value

    return _Field(read, {"type": ["string", "null"], "pattern": f"^{_TIME.pattern}$"})


UNIT_SCHEMA = {"type": "string", "pattern": f"^({_NUMBER.pattern}|{_FRACTION.pattern})$"}


def choices_schema(legal: Dim) -> dict[str, Any]:
    """JSON Schema of a value, a list of values or a range within `legal`."""
    forms: list[dict[str, Any]]
    if legal.options:
        forms = [{"enum": ["none" if v is None else v for v in legal.options]}]
    else:
        kind = "number" if legal.real or legal.fractions else "integer"
        forms = [{"type": kind, "minimum": legal.low, "maximum": legal.high}]
    if _numeric(legal):
        forms.append(UNIT_SCHEMA)
    if None in legal:
        forms.append({"enum": ["none", None]})
    one = {"anyOf": forms} if len(forms) > 1 else forms[0]
    several = [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]
    if _numeric(legal):
        end = {"anyOf": [{"type": "number"}, UNIT_SCHEMA]}
        several.append({
            "type": "object",
            "properties": {
                "from": end, "to": end, "step": end, "log": {"type": "boolean"}, "powers_of": end,
            },
            "required": ["from", "to"],
            "additionalProperties": False,
        })  # fmt: skip
    return {"anyOf": several}

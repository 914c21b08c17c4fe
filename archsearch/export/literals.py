"""Plain data as Python that a person reads."""

from __future__ import annotations

import json
from typing import Any

LINE = 100


def literal(value: Any, indent: int = 0, used: int = 0) -> str:
    """The source of plain data, on one line where it fits.

    Args:
        value: Dictionaries, lists, strings, numbers, booleans and None.
        indent: Of the line on which it begins.
        used: Characters of that line which are taken.
    """
    flat = _flat(value)
    if len(flat) + max(indent, used) + 1 <= LINE or not isinstance(value, dict | list) or not value:
        return flat
    inner, ends = indent + 4, "{}" if isinstance(value, dict) else "[]"
    lines = []
    if isinstance(value, dict):
        for key, item in value.items():
            name = f"{_flat(key)}: "
            lines.append(name + literal(item, inner, inner + len(name)))
    else:
        lines = [literal(item, inner) for item in value]
    body = "".join(f"{' ' * inner}{line},\n" for line in lines)
    return f"{ends[0]}\n{body}{' ' * indent}{ends[1]}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flat(k)}: {_flat(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flat, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)

"""Numbers and times as people read them, and names that they may have meant."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


def count(number: float) -> str:
    """12,345 as `12.3 k`, 1,234,567 as `1.23 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g} {unit}"
    return f"{number:.4g}"


def size(number: float) -> str:
    """Bytes as `512 B`, `16 KiB`, `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(number) < 1024:
            return f"{number:.3g} {unit}" if number < 1000 else f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.3g} GiB"


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def short(number: float) -> str:
    """12,345 as `12K`, 1,234,567 as `1.2M`: two or three digits, for a column of a table."""
    if abs(number) < 999.5:
        return f"{number:.0f}"
    for unit in "KMGT":
        number /= 1000
        if abs(number) < 9.95:
            return f"{number:.1f}{unit}"
        if abs(number) < 999.5:
            return f"{number:.0f}{unit}"
    return f"{number:.0f}T"


def span(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 05 s`, `2 h 10 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def quantity(name: str, value: float) -> str:
    """A value in the unit that its name calls for."""
    if name.startswith("state_bytes"):
        return size(value)
    if name in ("score", "loss"):
        return f"{value:.3f}"
    return count(value)


def likely(name: str, known: Iterable[str], most: int = 1) -> str:
    """`did you mean 'x'? ` where known names are near, `most` of them; else nothing."""
    close = get_close_matches(name, sorted(known), n=most, cutoff=0.6)
    between = "' or '".join(close)
    return f"did you mean '{between}'? " if close else ""

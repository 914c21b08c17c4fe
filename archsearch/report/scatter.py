"""Points with error bars as a picture, in plain SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from archsearch.report.lines import (
    BOTTOM,
    COLOURS,
    GRID,
    HEIGHT,
    LEFT,
    RIGHT,
    TICKS,
    TOP,
    WIDTH,
    picture,
    rule,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MARGIN = 0.05
"""Of the range of an axis, left free on both sides."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One point and its standard errors."""

    x: float
    y: float
    x_error: float
    y_error: float
    group: str
    name: str
    """What is shown where a pointer rests on it."""
    label: str = ""
    """What is written beside it."""
    hollow: bool = False


def draw_scatter(dots: Sequence[Dot], title: str, across: str, up: str) -> str:
    """The points as an SVG picture, a colour for each group."""
    xs, ys = ([(getattr(d, v), getattr(d, f"{v}_error")) for d in dots] for v in ("x", "y"))
    (x, ticks_x), (y, ticks_y) = (
        _axis(xs, LEFT, WIDTH - RIGHT), _axis(ys, HEIGHT - BOTTOM, TOP)
    )  # fmt: skip
    parts = [text(LEFT, 18, title), text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across, "middle")]
    turned = f'<g transform="rotate(-90 14 {(TOP + HEIGHT - BOTTOM) / 2:.1f})">'
    parts.append(f"{turned}{text(14, (TOP + HEIGHT - BOTTOM) / 2, up, 'middle')}</g>")
    for tick in ticks_y:
        parts += [rule(y(tick), GRID), text(LEFT - 6, y(tick) + 4, f"{tick:.3g}", "end")]
    parts += [text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:.3g}", "middle") for tick in ticks_x]
    groups = list(dict.fromkeys(dot.group for dot in dots))
    for dot in dots:
        parts += _drawn(dot, COLOURS[groups.index(dot.group) % len(COLOURS)], x, y)
    for i, group in enumerate(groups):
        parts.append(text(WIDTH - RIGHT + 10, TOP + 18 * (i + 1), group, colour=COLOURS[i]))
    return picture(parts)


def _axis(
    values: Sequence[tuple[float, float]], start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """Where a value stands between two places, and the values that are written there."""
    low, high = min(v - e for v, e in values), max(v + e for v, e in values)
    free = MARGIN * (high - low) or 1.0
    low, high = low - free, high + free
    step = _round((high - low) / (TICKS + 2))
    ticks = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return lambda value: start + (end - start) * (value - low) / (high - low), ticks


def _round(step: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= step)


def _drawn(
    dot: Dot, colour: str, x: Callable[[float], float], y: Callable[[float], float]
) -> list[str]:
    bars = (
        (dot.x - dot.x_error, dot.y, dot.x + dot.x_error, dot.y),
        (dot.x, dot.y - dot.y_error, dot.x, dot.y + dot.y_error),
    )
    fill = "#ffffff" if dot.hollow else colour
    parts = [
        f'<line x1="{x(a):.1f}" y1="{y(b):.1f}" x2="{x(c):.1f}" y2="{y(d):.1f}" '
        f'stroke="{colour}" opacity="0.5"/>'
        for a, b, c, d in bars
    ]
    parts.append(
        f'<circle cx="{x(dot.x):.1f}" cy="{y(dot.y):.1f}" r="4" fill="{fill}" stroke="{colour}">'
        f"<title>{escape(dot.name)}</title></circle>"
    )
    if dot.label:
        left = x(dot.x) > (LEFT + WIDTH - RIGHT) / 2
        at, anchor = (x(dot.x) - 7, "end") if left else (x(dot.x) + 7, "start")
        parts.append(text(at, y(dot.y) - 6, dot.label, anchor))
    return parts

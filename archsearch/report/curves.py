"""Curves over numbers, in panels that share their axes, in plain SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from archsearch.report.lines import BOTTOM, COLOURS, GRID, HEIGHT, INK, LEFT, TOP, picture, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIDE, GAP, LEGEND = 300, 16, 130
"""Width of a panel, between two, and of the names at the right."""
HEAD = 22
"""Room for the titles of panels."""
TICKS = 5


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve; curves of one name have one colour in all panels."""

    name: str
    points: Sequence[tuple[float, float]]
    marked: tuple[float, float] | None = None
    """A place that is drawn as a dot, e.g. a minimum."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several pictures side by side."""

    title: str
    curves: Sequence[Curve]


def draw_curves(
    panels: Sequence[Panel],
    title: str,
    across: str,
    up: str,
    *,
    ticks: Sequence[tuple[float, str]],
    top: float | None = None,
) -> str:
    """The panels as one SVG picture.

    Args:
        panels: What is drawn, left to right.
        title: Above all of them.
        across: What is measured to the right.
        up: What is measured upward.
        ticks: Places on the axis across and what is written there.
        top: Above what level curves are cut off; by default they are drawn whole.
    """
    curves = [curve for panel in panels for curve in panel.curves]
    points = [point for curve in curves for point in curve.points]
    names = list(dict.fromkeys(curve.name for curve in curves))
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y = min(y for _, y in points)
    high_y = max(min(y, math.inf if top is None else top) for _, y in points)
    free = 0.04 * (high_y - low_y) or 1.0
    low_y, high_y = low_y - free, high_y + free
    width = LEFT + len(panels) * (SIDE + GAP) + LEGEND
    floor, ceiling = HEIGHT - BOTTOM, TOP + HEAD

    def y(level: float) -> float:
        return floor - (floor - ceiling) * (level - low_y) / (high_y - low_y)

    middle = (floor + ceiling) / 2
    turned = f'<g transform="rotate(-90 14 {middle:.1f})">{text(14, middle, up, "middle")}</g>'
    parts = [text(LEFT, 18, title), turned]
    for i, panel in enumerate(panels):
        left = LEFT + i * (SIDE + GAP)

        def x(place: float, left: float = left) -> float:
            inside = (place - low_x) / (high_x - low_x or 1.0)
            return left + 12 + (SIDE - 24) * inside

        parts.append(text(left + SIDE / 2, ceiling - 8, panel.title, "middle"))
        parts += _frame(left, ceiling, floor, first=i == 0, low=low_y, high=high_y, y=y)
        parts += [text(x(at), floor + 18, said, "middle") for at, said in ticks]
        parts.append(
            f'<clipPath id="panel{i}"><rect x="{left}" y="{ceiling}" width="{SIDE}" '
            f'height="{floor - ceiling}"/></clipPath><g clip-path="url(#panel{i})">'
        )
        for curve in panel.curves:
            parts += _drawn(curve, COLOURS[names.index(curve.name) % len(COLOURS)], x, y)
        parts.append("</g>")
    centre = LEFT + (len(panels) * (SIDE + GAP) - GAP) / 2
    parts.append(text(centre, HEIGHT - 8, across, "middle"))
    for i, name in enumerate(names):
        at = width - LEGEND + 4, ceiling + 18 * (i + 1)
        parts.append(text(*at, name, colour=COLOURS[i % len(COLOURS)]))
    return picture(parts, width)


def _frame(
    left: float,
    ceiling: float,
    floor: float,
    *,
    first: bool,
    low: float,
    high: float,
    y: Callable[[float], float],
) -> list[str]:
    """The level lines of a panel, with their numbers beside the first one."""
    step = _round((high - low) / TICKS)
    levels = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    parts = [
        f'<rect x="{left}" y="{ceiling}" width="{SIDE}" height="{floor - ceiling}" fill="none" '
        f'stroke="{GRID}"/>'
    ]
    for level in levels:
        parts.append(
            f'<line x1="{left}" y1="{y(level):.1f}" x2="{left + SIDE}" y2="{y(level):.1f}" '
            f'stroke="{GRID}"/>'
        )
        if first:
            parts.append(text(left - 6, y(level) + 4, f"{level:.4g}", "end"))
    return parts


def _round(step: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= step)


def _drawn(
    curve: Curve, colour: str, x: Callable[[float], float], y: Callable[[float], float]
) -> list[str]:
    places = " ".join(f"{x(at):.1f},{y(level):.1f}" for at, level in curve.points)
    parts = [f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>']
    parts += [
        f'<circle cx="{x(at):.1f}" cy="{y(level):.1f}" r="2.5" fill="{colour}">'
        f"<title>{escape(curve.name)}: {level:.3f}</title></circle>"
        for at, level in curve.points
    ]
    if curve.marked:
        at, level = curve.marked
        parts.append(
            f'<circle cx="{x(at):.1f}" cy="{y(level):.1f}" r="5" fill="{colour}" '
            f'stroke="{INK}" stroke-width="1.5"/>'
        )
    return parts

"""Curves side by side as a picture, in plain SVG; the horizontal axis counts in powers of two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archsearch.report.lines import BOLD, COLOURS, GRID, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 330, 300
"""Of one panel."""
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 40, 44
LEGEND = 30
COLUMNS = 3
GAP = 10
"""Least distance between two labels of the horizontal axis, in pixels."""
MOST_TICKS = 6
"""Steps from tick to tick of the vertical axis."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points that belong together; an error of 0 draws no bar."""

    name: str
    points: Sequence[tuple[float, float, float]]
    """Across, above 0; up; half of the error bar."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over one pair of axes."""

    title: str
    across: str
    curves: Sequence[Curve]
    log: int = 0
    """The base of a logarithmic vertical axis, 2 or 10, whose values are above 0; 0 for a linear
    one."""
    label: Callable[[float], str] = "{:.3g}".format
    """How a value of the vertical axis is written."""
    label_across: Callable[[float], str] = "{:g}".format


def draw_panels(panels: Sequence[Panel]) -> str:
    """The panels as an SVG picture, with one legend for all."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    width, height = columns * WIDTH, rows * HEIGHT + LEGEND
    parts, at = [], float(LEFT)
    for name in names if len(names) > 1 else ():
        parts.append(f'<circle cx="{at:.0f}" cy="15" r="4" fill="{colours[name]}"/>')
        parts.append(text(at + 9, 19, name))
        at += 30 + 7 * len(name)
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        drawn = _panel(panel, colours)
        parts.append(
            f'<g transform="translate({column * WIDTH},{LEGEND + row * HEIGHT})">{drawn}</g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _panel(panel: Panel, colours: dict[str, str]) -> str:
    points = [point for curve in panel.curves for point in curve.points]
    ticks = _ticks(panel, points)
    bottom, top = (math.log(v) if panel.log else v for v in (ticks[0], ticks[-1]))
    across = sorted({x for x, _, _ in points})
    first, last = math.log(across[0]), math.log(across[-1])

    def x(value: float) -> float:
        share = (math.log(value) - first) / (last - first) if last > first else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * (0.03 + 0.94 * share)

    def y(value: float) -> float:
        level = math.log(value) if panel.log else value
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (level - bottom) / (top - bottom)

    parts = [text(LEFT, TOP - 14, panel.title, more=BOLD)]
    parts.append(text(WIDTH - RIGHT, HEIGHT - 8, panel.across, "end"))
    for tick in ticks:
        parts.append(_rule(y(tick)))
        parts.append(text(LEFT - 6, y(tick) + 4, panel.label(tick), "end"))
    free = -math.inf
    for value in across:
        label = panel.label_across(value)
        half = 3.5 * len(label)
        if x(value) - half > free:
            parts.append(text(x(value), HEIGHT - BOTTOM + 18, label, "middle"))
            free = x(value) + half + GAP
    for curve in panel.curves:
        colour = colours[curve.name]
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, _ in curve.points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for a, b, error in curve.points:
            parts.append(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>')
            if error:
                ends = f'y1="{y(b - error):.1f}" y2="{y(b + error):.1f}"'
                parts.append(f'<line x1="{x(a):.1f}" x2="{x(a):.1f}" {ends} stroke="{colour}"/>')
    return "".join(parts)


def _ticks(panel: Panel, points: Sequence[tuple[float, float, float]]) -> list[float]:
    """Levels to be named, the first below and the last above everything that is drawn."""
    low, high = min(y - e for _, y, e in points), max(y + e for _, y, e in points)
    if panel.log:
        return _log_ticks(panel.log, low, high)
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if span / s <= MOST_TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def _log_ticks(base: int, low: float, high: float) -> list[float]:
    """Powers of the base, evenly thinned; where these are few, 2 and 5 times powers of 10 too."""
    first = math.floor(math.log(low, base) + 1e-9)
    last = max(math.ceil(math.log(high, base) - 1e-9), first + 1)
    if base == 10 and last - first <= 2:
        fine = [f * 10.0**power for power in range(first, last + 1) for f in (1, 2, 5)]
        below = max(i for i, tick in enumerate(fine) if tick <= low * (1 + 1e-9))
        above = min(i for i, tick in enumerate(fine) if tick >= high * (1 - 1e-9))
        return fine[below : max(above, below + 1) + 1]
    step = math.ceil((last - first) / MOST_TICKS)
    return [float(base) ** power for power in range(first, last + step, step)]


def _rule(y: float) -> str:
    return f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>'

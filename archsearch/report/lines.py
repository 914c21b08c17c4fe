"""Curves with bands as a picture, in plain SVG."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 120, 30, 45
COLOURS = ("#2f6db5", "#b0542b", "#3f8a4f", "#8352a8", "#a8324f", "#4b8b93", "#7b6a2f")
INK, GRID = "#1f2933", "#dfe3e8"
TICKS = 5
BOLD = ' font-weight="bold"'


@dataclass(frozen=True, slots=True)
class Line:
    """One curve over 1, 2, ... with the band around it."""

    name: str
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def draw_lines(lines: Sequence[Line], title: str, across: str, mark: float | None = None) -> str:
    """The curves as an SVG picture; `mark` is a level drawn as a dashed line."""
    levels = [v for line in lines for v in (*line.low, *line.high)]
    levels += [] if mark is None else [mark]
    bottom, top = min(levels), max(levels)
    top = top if top > bottom else bottom + 1.0
    count = max(len(line.middle) for line in lines)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / count

    def y(level: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (level - bottom) / (top - bottom)

    def path(values: Sequence[float]) -> list[str]:
        return [f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values, 1)]

    parts = [text(LEFT, 18, title), text(WIDTH - RIGHT, HEIGHT - 8, across, "end")]
    for k in range(TICKS):
        level, step = bottom + (top - bottom) * k / (TICKS - 1), count * k / (TICKS - 1)
        parts.append(rule(y(level), GRID))
        parts.append(text(LEFT - 6, y(level) + 4, f"{level:.3g}", "end"))
        parts.append(text(x(step), HEIGHT - BOTTOM + 18, f"{step:.0f}", "middle"))
    if mark is not None:
        parts.append(rule(y(mark), INK, ' stroke-dasharray="4 3"'))
    for i, line in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        around = " ".join([*path(line.low), *reversed(path(line.high))])
        parts.append(f'<polygon points="{around}" fill="{colour}" opacity="0.15"/>')
        middle = " ".join(path(line.middle))
        parts.append(
            f'<polyline points="{middle}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(text(WIDTH - RIGHT + 10, TOP + 18 * (i + 1), line.name, colour=colour))
    return picture(parts)


def picture(parts: Iterable[str], width: int = WIDTH) -> str:
    """The parts as one SVG file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" '
        f'viewBox="0 0 {width} {HEIGHT}" font-family="Helvetica, Arial, sans-serif" '
        f'font-size="12"><rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def rule(y: float, colour: str, dashes: str = "") -> str:
    """A level line across the picture."""
    return (
        f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
        f'stroke="{colour}"{dashes}/>'
    )


def text(
    x: float, y: float, said: str, anchor: str = "start", colour: str = INK, more: str = ""
) -> str:
    """One line of text; `more` are attributes, each after a blank."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{more}>'
        f"{escape(said)}</text>"
    )

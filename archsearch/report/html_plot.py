"""Scatter plots of the report: SVG whose colours are the page's, in a wide and a narrow drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archsearch.report.html_parts import Html, join, tag
from archsearch.words import quantity, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIZES = {"wide": (860, 400), "narrow": (358, 320)}
"""Width and height in pixels; the style sheet shows one of them."""
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 48
LETTER, LINE = 7.4, 15
"""About the width of a letter, and the height of a line."""
LOG_FROM = 6.0
"""Quotient of largest and smallest value from which a scale is logarithmic."""
ORDER = ("early", "other", "outside", "front", "winner")
"""Kinds of dots, the last one on top."""
RADIUS = {"early": 3.5, "other": 4.0, "outside": 5.0, "front": 5.5, "winner": 8.0}
Rect = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One trial."""

    x: float
    y: float
    kind: str
    """One of `ORDER`."""
    told: str
    """What is said of it when it is pointed at."""
    label: str = ""
    """What stands beside it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from one value to another."""

    name: str
    note: str
    low: float
    high: float
    log: bool = False
    whole: bool = False
    """Whether values are numbers of something: counted from 0, ticks at whole ones."""

    @classmethod
    def of(cls, name: str, values: Sequence[float], note: str = "", *, whole: bool = False) -> Axis:
        """The scale that shows some values, with a little room around them."""
        low, high = min(values), max(values)
        if not whole and low > 0 and high / low >= LOG_FROM:
            room = (high / low) ** 0.06
            return cls(name, note, low / room, high * room, True)
        room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
        return cls(name, note, low - room, high + room, whole=whole)

    def share(self, value: float) -> float:
        """Where a value stands, from 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """Round values in the range, at most so many."""
        rounds = self._powers() if self.log else self._steps(most)
        return rounds[:: max(1, math.ceil(len(rounds) / most))]

    def _powers(self) -> list[float]:
        low, high = math.log10(self.low), math.log10(self.high)
        decades = [10.0**n for n in range(math.floor(low), math.ceil(high) + 1)]
        rounds = [base * decade for decade in decades for base in (1, 2, 5)]
        if self._bytes:
            rounds = [2.0**n for n in range(math.ceil(math.log2(self.high)) + 1)]
        return [value for value in rounds if self.low <= value <= self.high]

    def _steps(self, most: int) -> list[float]:
        least = (self.high - self.low) / most
        if self._bytes:
            step = 2.0 ** math.ceil(math.log2(least))
        else:
            power = 10.0 ** math.floor(math.log10(least))
            step = next(f * power for f in (1, 2, 5, 10) if f * power >= least)
            step = max(1.0, step) if self.whole else step
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]

    @property
    def _bytes(self) -> bool:
        return self.name.startswith("state_bytes")

    def show(self, value: float) -> str:
        """A value at a tick."""
        if self._bytes:
            return size(value)
        if max(abs(self.low), abs(self.high)) < 1000:
            return f"{round(value, 6):g}"
        return quantity(self.name, value)


def scatter(
    dots: Sequence[Dot], x: Axis, y: Axis, about: str, path: Sequence[tuple[float, float]] = ()
) -> Html:
    """A plot with a caption that names the dot that is pointed at.

    Args:
        dots: At least one.
        x: Horizontal scale.
        y: Vertical scale.
        about: What the plot shows, for those who cannot see it.
        path: A line through these values.
    """
    drawings = [_drawing(name, dots, x, y, about, path) for name in SIZES]
    hint = tag("p", "Point at a dot, or tap it, to read what it is.", class_="told")
    return tag("figure", join([*drawings, hint]), class_="plot")


def stairs(dots: Sequence[Dot], *, up: bool) -> list[tuple[float, float]]:
    """A line along the dots that surpass all before them: the best value so far.

    Args:
        dots: In order.
        up: Whether the best is the largest.
    """
    path: list[tuple[float, float]] = []
    for dot in dots:
        if not path:
            path.append((dot.x, dot.y))
        elif (dot.y > path[-1][1]) if up else (dot.y < path[-1][1]):
            path += [(dot.x, path[-1][1]), (dot.x, dot.y)]
    return path


def _drawing(
    name: str,
    dots: Sequence[Dot],
    x: Axis,
    y: Axis,
    about: str,
    path: Sequence[tuple[float, float]],
) -> Html:
    width, height = SIZES[name]
    across, up = width - LEFT - RIGHT, height - TOP - BOTTOM

    def place(at: tuple[float, float]) -> tuple[float, float]:
        return LEFT + across * x.share(at[0]), height - BOTTOM - up * y.share(at[1])

    ordered = sorted(dots, key=lambda dot: ORDER.index(dot.kind))
    placed = [(dot, *place((dot.x, dot.y))) for dot in ordered]
    parts = [*_grid(x, y, width, height, across // 90, up // 55)]
    if path:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in map(place, path))
        parts.append(tag("polyline", points=points, class_="path"))
    parts += [_dot(dot, a, b) for dot, a, b in placed]
    parts += _labels(placed, (LEFT, TOP, width - RIGHT, height - BOTTOM))
    return tag(
        "svg", join(parts), class_=f"scatter {name}", viewBox=f"0 0 {width} {height}",
        role="group", aria_label=about,
    )  # fmt: skip


def _grid(x: Axis, y: Axis, width: int, height: int, columns: int, rows: int) -> Iterator[Html]:
    bottom, right = height - BOTTOM, width - RIGHT
    for value in y.ticks(rows):
        at = bottom - (bottom - TOP) * y.share(value)
        yield _line(LEFT, at, right, at)
        yield _text(LEFT - 8, at + 4, y.show(value), "end")
    for value in x.ticks(columns):
        at = LEFT + (right - LEFT) * x.share(value)
        yield _line(at, TOP, at, bottom)
        yield _text(at, bottom + 18, x.show(value), "middle")
    yield _text(LEFT - 50, 16, f"{y.name}{y.note}", "start", "axis")
    yield _text(right, height - 8, f"{x.name}{x.note}{', log scale' * x.log}", "end", "axis")


def _line(x1: float, y1: float, x2: float, y2: float) -> Html:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return tag("line", class_="grid", **{name: f"{at:.1f}" for name, at in ends.items()})


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Html:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=kind)


def _dot(dot: Dot, x: float, y: float) -> Html:
    r = RADIUS[dot.kind]
    shown = tag("circle", tag("title", dot.told), cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{r:g}")
    if dot.kind == "outside":
        points = f"M{x:.1f},{y - r:.1f} l{r},{r} l{-r},{r} l{-r},{-r} z"
        shown = tag("path", tag("title", dot.told), d=points)
    return tag("g", shown, class_=f"dot {dot.kind}", tabindex="0" if dot.label else "")


def _labels(placed: Sequence[tuple[Dot, float, float]], frame: Rect) -> Iterator[Html]:
    """Labels where they cover no dot and no other label; one without room is left out.

    The winner's comes first.
    """
    taken = [(x - r, y - r, x + r, y + r) for d, x, y in placed for r in (RADIUS[d.kind],)]
    for dot, x, y in reversed(placed):
        if not dot.label:
            continue
        wide, away = LETTER * len(dot.label), RADIUS[dot.kind] + 4
        spots = [(x - wide - 2, y - away), (x - wide / 2, y - away - 3), (x + away, y - away)]
        spots += [(x + away, y + 4), (x + away, y + 18), (x - wide / 2, y + away + 12)]
        spots += [(x - away - wide, y + 4), (x - away - wide, y + 18)]
        for left, base in spots:
            box = (left, base - LINE + 4, left + wide, base + 3)
            if _inside(box, frame) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield _text(left, base, dot.label, "start", f"label {dot.kind}")
                break


def _inside(box: Rect, frame: Rect) -> bool:
    return (
        box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
    )  # fmt: skip


def _overlap(one: Rect, other: Rect) -> bool:
    return not (
        one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    )

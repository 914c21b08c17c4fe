"""Pieces of the report in HTML. Plain text is escaped wherever it enters; `Html` stays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MINUS = "\N{MINUS SIGN}"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(text: str) -> Html:
    """Text as HTML; what is HTML already stays."""
    return text if isinstance(text, Html) else Html(escape(text))


def join(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other."""
    return Html(html(between).join(map(html, parts)))


def tag(name: str, inside: str = "", **attributes: str) -> Html:
    """An element; `class_` is the attribute `class`, an underscore is a hyphen, "" is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value
    )
    return Html(f"<{name}{given}>{html(inside)}</{name}>")


def section(anchor: str, title: str, *parts: str) -> Html:
    """A section with its heading; nothing if it has no content."""
    inside = join(parts)
    if not inside:
        return Html()
    return tag("section", join([tag("h2", title), inside]), id=anchor)


def paragraph(*parts: str, kind: str = "") -> Html:
    """A paragraph of pieces."""
    return tag("p", join(parts), class_=kind)


def code(text: str) -> Html:
    """A word of code."""
    return tag("code", text)


def genome(text: str, name: str = "code") -> Html:
    """A genome on one line, which does not break within the brackets of a block if it can."""
    pieces = re.split(r"(\S*\[[^\]]*\]\S*)", text)
    inside = (tag("span", p, class_="whole") if i % 2 else p for i, p in enumerate(pieces))
    return tag(name, join(inside), class_="genome" if name != "code" else "")


def command(*lines: str) -> Html:
    """Commands to type."""
    return tag("pre", "\n".join(lines), class_="command")


def details(summary: str, *inside: str) -> Html:
    """What is unfolded on demand."""
    return tag("details", join([tag("summary", summary), *inside]))


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    lines: Sequence[str] = (),
    strong: int | None = None,
    kind: str = "cards",
) -> Html:
    """A table; on a narrow screen `cards` make a card of each row.

    Args:
        header: The titles of the columns, all different.
        rows: Cells, one for each column.
        numbers: The columns of numbers.
        lines: The columns that take a line of their own in a card, without their title.
        strong: The row that stands out.
        kind: Class of the table.
    """
    kinds = [
        " ".join(word for word, names in (("number", numbers), ("line", lines)) if name in names)
        for name in header
    ]
    columns = list(zip(header, kinds, strict=True))
    head = join(tag("th", name, scope="col", class_=of) for name, of in columns)
    body = []
    for i, row in enumerate(rows):
        cells = (
            tag("td", cell, class_=of, data_label=name)
            for (name, of), cell in zip(columns, row, strict=True)
        )
        body.append(tag("tr", join(cells), class_="strong" * (i == strong)))
    inside = join([tag("thead", tag("tr", head)), tag("tbody", join(body))])
    return tag("div", tag("table", inside, class_=kind), class_="scroll")


def track(inside: str, kind: str = "") -> Html:
    """A horizontal scale for marks that are placed by percent."""
    return tag("span", inside, class_=f"track {kind}".strip(), aria_hidden="true")


def mark(kind: str, at: float, to: float | None = None, title: str = "") -> Html:
    """A mark on a track: a point, or a stretch from `at` to `to`; both are shares of it."""
    first = min(max(at, 0.0), 1.0)
    style = f"left:{100 * first:.2f}%"
    if to is not None:
        style += f";width:{100 * max(0.0, min(to, 1.0) - first):.2f}%"
    return tag("i", class_=kind, style=style, title=title)


Ends = tuple[float, float]


def whisker(mean: float, interval: Ends, scale: Ends, kind: str = "") -> Html:
    """A mean with its interval on a track that goes from one end of `scale` to the other."""
    low, high = scale
    least, at, most = (
        (value - low) / (high - low or 1.0) for value in (interval[0], mean, interval[1])
    )
    zero = [mark("zero", -low / (high - low))] if low < 0 < high else []
    return track(join([*zero, mark("range", least, most), mark("dot", at)]), kind)


def around(mean: float, half: float) -> Ends:
    """The ends of an interval."""
    return mean - half, mean + half


def signed(value: float, form: str = ".3f") -> str:
    """A change with its sign."""
    return f"{value:+{form}}".replace("-", MINUS)


def with_interval(mean: str, half: str) -> str:
    """A mean and half of its interval."""
    return f"{mean} {PLUS_MINUS} {half}"

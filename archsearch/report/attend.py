"""Behind `archsearch attend`: what every mixer looks at, as one page of pictures in SVG.

Shapes: H heads, T output time, S value time.
"""

from __future__ import annotations

import math
import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from archsearch.inference.patterns import Pattern, patterns
from archsearch.report.lines import BOLD, text
from archsearch.search.fresh import write

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from torch import Tensor

    from archsearch.inference.loading import Loaded

SIDE, THUMB, COLUMNS, HEADS = 288, 33, 3, 8
"""Pixels of a map and of a small one; maps in a row; small ones below each."""
LEFT, TOP, MARGIN = 60, 26, 24
FOOT = THUMB + 74
SHADE = 0.7
"""Power of a weight in its colour; below 1 it lifts what is faint."""
MOST_LABELS = 48
"""Tokens up to which each is named at the axes."""
PLUS, MINUS = (22, 78, 140), (176, 58, 46)
"""Colours of the largest weight and of the largest negative one."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A pattern as it is drawn; all numbers from -1 to 1."""

    title: str
    mean: Tensor
    """Mean over heads of the absolute weights, each row over its largest: TS."""
    heads: tuple[tuple[int, Tensor], ...]
    """Some heads, by number, with signs, each row over its largest."""


def attend(loaded: Loaded, text: str, out: Path, console: Console) -> None:
    """Write the page of one text.

    Raises:
        ModelError: if the text is empty or too long, or the model has nothing to show.
        RunError: if the page cannot be written.
    """
    ids, seen = loaded.vocabulary.encode(text), list[Seen]()
    refused = patterns(loaded.model, ids, lambda found: seen.append(_seen(found)))
    names = [_visible(loaded.vocabulary.decode([token])) for token in ids]
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, page(loaded.model.genome.text(), names, seen, refused))
    for name, why in refused.items():
        console.print(f"not drawn: {name}: {why}", markup=False, soft_wrap=True)
    drawn = f"{len(seen)} mixer" + ("s" if len(seen) > 1 else "")
    console.print(f"wrote {out}: {drawn}, {len(ids)} tokens", markup=False, soft_wrap=True)


def page(title: str, names: Sequence[str], seen: Sequence[Seen], refused: dict[str, str]) -> str:
    """All patterns side by side, as an SVG picture."""
    columns = min(COLUMNS, len(seen))
    rows = math.ceil(len(seen) / columns)
    wide, high = LEFT + SIDE + MARGIN, TOP + SIDE + FOOT
    width = max(columns * wide, 2 * wide)
    notes = [
        "Row: the token that looks. Column: what it looks at. Darker is more, each row relative "
        "to its largest weight.",
        "Large: mean over heads of absolute weights. Small: single heads; red is negative.",
        *(f"Not drawn: {name}: {why}." for name, why in refused.items()),
    ]
    lines = [line for note in notes for line in _wrapped(note, width // 6)]
    head = 34 + 16 * len(lines)
    height = head + 12 + rows * high
    parts = [_text(MARGIN, 24, _short(title, width // 8), size=15)]
    parts += [_text(MARGIN, 44 + 16 * i, line, size=11) for i, line in enumerate(lines)]
    for i, one in enumerate(seen):
        row, column = divmod(i, columns)
        at = f"translate({column * wide},{head + 12 + row * high})"
        parts.append(f'<g transform="{at}">{_map(one, names)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _seen(found: Pattern) -> Seen:
    weights_HTS = found.weights.float().cpu()
    share_HTS = weights_HTS.abs() / weights_HTS.abs().sum(-1, keepdim=True).clamp(min=1e-30)
    count = len(weights_HTS)
    few = sorted({round(i * (count - 1) / max(1, HEADS - 1)) for i in range(HEADS)})
    what = "channel" if found.channels else "head"
    title = f"{found.name}, {count} {what}{'s' if count > 1 else ''}"
    if len(few) < count:
        title += f"; small: {len(few)} of {count} {what}s"
    heads = tuple((h, _relative(weights_HTS[h])) for h in few) if count > 1 else ()
    return Seen(title, _relative(share_HTS.mean(0)), heads)


def _relative(weights_TS: Tensor) -> Tensor:
    return weights_TS / weights_TS.abs().amax(-1, keepdim=True).clamp(min=1e-30)


def _map(one: Seen, names: Sequence[str]) -> str:
    time = len(one.mean)
    parts = [_text(LEFT, TOP - 10, one.title, size=12, more=BOLD)]
    parts.append(_image(one.mean, LEFT, TOP, SIDE))
    parts.append(
        f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" '
        'stroke="#7b8794" stroke-width="0.5"/>'
    )
    labels = list(enumerate(names)) if time == len(names) <= MOST_LABELS else _numbers(time)
    cell = SIDE / time
    size = max(5.0, min(10.0, 0.85 * cell))
    for place, name in labels:
        at = (place + 0.5) * cell
        parts.append(_text(LEFT - 5, TOP + at + 0.35 * size, _short(name, 9), size, "end"))
        x, y = LEFT + at + 0.35 * size, TOP + SIDE + 5
        turned = f' transform="rotate(-90 {x:.1f} {y})"'
        parts.append(_text(x, y, _short(name, 7), size, "end", turned))
    for i, (head, weights_TS) in enumerate(one.heads):
        x, y = LEFT + i * (SIDE - THUMB) / (HEADS - 1), TOP + SIDE + 42
        parts.append(_image(weights_TS, x, y, THUMB))
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{THUMB}" height="{THUMB}" fill="none" '
            'stroke="#7b8794" stroke-width="0.5"/>'
        )
        parts.append(_text(x + THUMB / 2, y + THUMB + 10, str(head), 8, "middle"))
    return "".join(parts)


def _numbers(time: int) -> list[tuple[int, str]]:
    step = next(s for s in (1, 2, 5, 10, 20, 50) if time / s <= 10)
    return [(place, str(place)) for place in range(0, time, step)]


def _image(weights_TS: Tensor, x: float, y: float, side: int) -> str:
    return (
        f'<image x="{x:.1f}" y="{y}" width="{side}" height="{side}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{b64encode(png(coloured(weights_TS))).decode()}"/>'
    )


def coloured(weights_TS: Tensor) -> Tensor:
    """Colours_TS3 (uint8) of weights from -1 to 1: white at 0, the more the darker."""
    plus_3, minus_3 = torch.tensor(PLUS), torch.tensor(MINUS)
    ink_TS3 = torch.where(weights_TS[..., None] < 0, minus_3, plus_3)
    depth_TS1 = weights_TS.abs().pow(SHADE)[..., None]
    return (255 - (255 - ink_TS3) * depth_TS1).round().to(torch.uint8)


def png(pixels_TS3: Tensor) -> bytes:
    """A picture as PNG, 8 bits for each of red, green and blue (ISO/IEC 15948)."""
    height, width, _ = pixels_TS3.shape
    rows = (b"\0" + bytes(row.flatten().tolist()) for row in pixels_TS3)  # 0: no filter
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows), 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _visible(token: str) -> str:
    """A token with signs for what cannot be seen."""
    shown = token.replace("\n", "\u21b5").replace("\t", "\u21e5").replace(" ", "\u00b7")
    return "".join(c if c.isprintable() else "\ufffd" for c in shown)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _wrapped(text: str, most: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


def _text(
    x: float, y: float, said: str, size: float = 11, anchor: str = "start", more: str = ""
) -> str:
    return text(x, y, said, anchor, more=f' font-size="{size:.3g}"{more}')

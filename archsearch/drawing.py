"""A genome as a drawing: one box per residual branch, input at the bottom, in plain SVG."""

from __future__ import annotations

import colorsys
import hashlib
from html import escape
from typing import TYPE_CHECKING

from archsearch.catalogue import block_info
from archsearch.dims import word
from archsearch.genome import runs

if TYPE_CHECKING:
    from archsearch.genome import Gene, Genome

WIDTH, BOX, GAP, LEFT, RIGHT = 360, 40, 14, 44, 300
COLOURS = {
    "attention": "#fde0a8", "shared_attention": "#f9c6b0", "mamba2": "#bfe3c8", "swiglu": "#c9d8f5",
}  # fmt: skip
INK, LINE = "#1f2933", "#7b8794"


def draw_svg(genome: Genome) -> str:
    """The architecture as an SVG picture of 360 pixels width."""
    motifs = list(reversed(runs(genome.genes)))
    count = sum(len(motif) for _, motif in motifs)
    height = (count + 2) * (BOX + GAP) + 24 + 10 * len(motifs)
    parts: list[str] = []
    y = 14
    parts += _box(
        y, "readout", f"{genome.norm} norm" + (", tied" if genome.tie_embeddings else ""), "#eef1f4"
    )
    y += BOX + GAP
    for repeats, motif in motifs:
        top = y
        for gene in reversed(motif):
            parts += _gene(y, gene)
            y += BOX + GAP
        if repeats > 1:
            parts += _bracket(top - 4, y - GAP + 4, repeats)
        y += 10
    parts += _box(y, "embedding", f"width {genome.d_model}", "#eef1f4")
    middle = (LEFT + RIGHT) / 2
    spine = (
        f'<line x1="{middle}" y1="{14 + BOX}" x2="{middle}" y2="{y}" '
        f'stroke="{LINE}" stroke-width="2"/>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif">'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>{spine}{"".join(parts)}</svg>\n'
    )


def _gene(y: float, gene: Gene) -> list[str]:
    shown = [f"{name} {word(value)}" for name, value in gene.changed.items()]
    share = f" *{gene.share}" if gene.share else ""
    detail = ", ".join(shown)
    if len(detail) > 40:
        detail = detail[:39] + "..."
    side = block_info(gene.block).joins == "next"
    return _box(y, gene.block.replace("_", " ") + share, detail, _colour(gene.block), dashed=side)


def _box(y: float, title: str, detail: str, fill: str, *, dashed: bool = False) -> list[str]:
    dash = ' stroke-dasharray="5 3"' if dashed else ""
    middle = (LEFT + RIGHT) / 2
    lines = [
        f'<rect x="{LEFT}" y="{y}" width="{RIGHT - LEFT}" height="{BOX}" rx="7" fill="{fill}" '
        f'stroke="{LINE}"{dash}/>'
    ]
    title_y = y + (17 if detail else 25)
    lines.append(
        f'<text x="{middle}" y="{title_y}" font-size="14" font-weight="600" fill="{INK}" '
        f'text-anchor="middle">{escape(title)}</text>'
    )
    if detail:
        lines.append(
            f'<text x="{middle}" y="{y + 33}" font-size="13" fill="{INK}" '
            f'text-anchor="middle">{escape(detail)}</text>'
        )
    return lines


def _bracket(top: float, bottom: float, repeats: int) -> list[str]:
    x = RIGHT + 10
    path = f"M{x},{top} h8 V{bottom} h-8"
    middle = (top + bottom) / 2 + 5
    return [
        f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.5"/>',
        f'<text x="{x + 14}" y="{middle}" font-size="14" fill="{INK}">x{repeats}</text>',
    ]


def _colour(block: str) -> str:
    """The colour of a family; a block from elsewhere gets one from its name."""
    if block in COLOURS:
        return COLOURS[block]
    hue = hashlib.sha256(block.encode()).digest()[0] / 255
    red, green, blue = (round(255 * c) for c in colorsys.hls_to_rgb(hue, 0.85, 0.6))
    return f"#{red:02x}{green:02x}{blue:02x}"

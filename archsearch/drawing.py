"""A genome as a drawing, in plain SVG: one box per residual branch, the input at the bottom.

Wrappers are frames around what they hold. Edges other than the stream run along the left margin.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from archsearch.catalogue import block_info
from archsearch.layout import TEXT, TITLE, Box, Bracket, Edge, Tag, Wire, picture

if TYPE_CHECKING:
    from archsearch.genome import Genome
    from archsearch.layout import Mark

FAMILIES = {
    "#fde0a8": "attention shared_attention block_recurrent",
    "#bfe3c8": "mamba1 mamba2 liquid_s4 hydra",
    "#b3e0e4": "gated_deltanet gla rwkv7 ttt",
    "#dcecae": "short_conv hyena",
    "#dccff2": "armt pkm",
    "#c9d8f5": "swiglu",
    "#f9c9b4": "moe peer",
    "#f3c9e1": "kan",
    "#f1ece0": "mod loop parallel skip",
}
"""Colours: attention, state spaces, linear attention and fast weights, convolutions, memories,
feed-forward, experts, learned functions, wrappers."""
COLOURS = {block: colour for colour, blocks in FAMILIES.items() for block in blocks.split()}
ENDS, OTHER = "#eef1f4", "#dfe3e8"
"""Colours of embedding and readout, and of blocks of no known family."""
INK, LINE = "#1f2933", "#7b8794"
EDGES = ("#2f6db5", "#b0542b", "#3f8a4f", "#8352a8", "#a8324f")


def draw_svg(genome: Genome) -> str:
    """The architecture as an SVG picture; its size is in pixels."""
    drawn = picture(genome)
    width, height = f"{drawn.width:g}", f"{drawn.height:g}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        f"{''.join(map(_svg, drawn.marks))}</svg>\n"
    )


def _svg(mark: Mark) -> str:
    match mark:
        case Box():
            return _box(mark)
        case Wire():
            return (
                f'<line x1="{mark.x1:g}" y1="{mark.y1:g}" x2="{mark.x2:g}" y2="{mark.y2:g}" '
                f'stroke="{LINE}" stroke-width="2" stroke-linecap="round"/>'
            )
        case Bracket():
            return _bracket(mark)
        case Edge():
            return _edge(mark)
        case Tag():
            return _tag(mark)


def _box(box: Box) -> str:
    joins_next = box.block and block_info(box.block).joins == "next"
    dash = ' stroke-dasharray="5 3"' if joins_next else ""
    fill = colour(box.block) if box.block else ENDS
    rect = (
        f'<rect class="{"frame" if box.frame else "box"}" x="{box.x:g}" y="{box.y:g}" '
        f'width="{box.width:g}" height="{box.height:g}" rx="7" fill="{fill}" '
        f'stroke="{LINE}"{dash}/>'
    )
    first = box.y + (17 if box.lines else 19)
    texts = [_text(box.middle, first, box.title, TITLE, ' font-weight="600"')]
    texts += [_text(box.middle, first + 16 * n, line, TEXT) for n, line in enumerate(box.lines, 1)]
    return rect + "".join(texts)


def _text(x: float, y: float, text: str, size: int, extra: str = "") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}"{extra} fill="{INK}" '
        f'text-anchor="middle">{escape(text)}</text>'
    )


def _bracket(bracket: Bracket) -> str:
    x, middle = bracket.x, (bracket.top + bracket.bottom) / 2 + 5
    return (
        f'<path class="bracket" d="M{x:g},{bracket.top:g} h8 V{bracket.bottom:g} h-8" '
        f'fill="none" stroke="{LINE}" stroke-width="1.5"/>'
        f'<text x="{x + 13:g}" y="{middle:g}" font-size="{TITLE}" fill="{INK}">'
        f"x{bracket.count}</text>"
    )


def _edge(edge: Edge) -> str:
    """One path for all that read the stream, so that no stroke lies on another."""
    (x1, y1), lane, ink = edge.source, edge.lane, EDGES[edge.colour % len(EDGES)]
    paths, heads = [], []
    for x2, y2 in edge.targets:
        bend = min(8, (y1 - y2) / 2)
        paths.append(
            f"M{x1:g},{y1:g} H{lane + bend:g} Q{lane:g},{y1:g} {lane:g},{y1 - bend:g} "
            f"V{y2 + bend:g} Q{lane:g},{y2:g} {lane + bend:g},{y2:g} H{x2 - 5:g}"
        )
        heads.append(f"M{x2:g},{y2:g} l-7,-3.5 v7 z")
    return (
        f'<path class="edge" d="{" ".join(paths)}" fill="none" stroke="{ink}" '
        f'stroke-width="1.5"/><path class="head" d="{" ".join(heads)}" fill="{ink}"/>'
        f'<circle cx="{x1:g}" cy="{y1:g}" r="3" fill="{ink}"/>'
    )


def _tag(tag: Tag) -> str:
    right = tag.x + tag.width
    return (
        f'<line x1="{right:g}" y1="{tag.y:g}" x2="{right + 10:g}" y2="{tag.y:g}" '
        f'stroke="{LINE}" stroke-width="1.3"/>'
        f'<rect class="tag" x="{tag.x:g}" y="{tag.y - 9:g}" width="{tag.width:g}" height="18" '
        f'rx="9" fill="#ffffff" stroke="{LINE}"/>'
    ) + _text(tag.x + tag.width / 2, tag.y + 4.5, tag.text, TEXT)


def colour(block: str) -> str:
    """The colour of a block's family; a neutral one for a block from elsewhere."""
    return COLOURS.get(block, OTHER)

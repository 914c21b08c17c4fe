"""Where everything stands in the drawing of a genome: boxes, frames, repeats and edges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archsearch.catalogue import block_info
from archsearch.dims import word
from archsearch.genome import runs

if TYPE_CHECKING:
    from archsearch.genome import Gene, Genome

TITLE, TEXT = 14, 13
"""Font sizes, in pixels."""
BODY, LEAST, MOST_ROW, MOST_TITLE = 256, 84, 460, 320
"""Widths: of a box at least, of a box side by side with others at least, of such a row at most,
and of a title at most."""
MARGIN, GAP, SIDE_GAP, PAD = 16, 13, 10, 12
LINE = 16
"""Height of a line of details."""
LANE = 9
"""Distance of the edges in the margin from each other."""
LEAVES, ENTERS = 8, 14
"""Where edges touch a box: below its top, above its bottom."""


@dataclass(frozen=True, slots=True)
class Box:
    """One branch; a frame if it holds others."""

    x: float
    y: float
    width: float
    height: float
    title: str
    lines: tuple[str, ...]
    block: str = ""
    """Empty for embedding and readout."""
    frame: bool = False

    @property
    def middle(self) -> float:
        """Horizontal centre."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Lower end."""
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class Wire:
    """A straight piece of the stream."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class Bracket:
    """What stands `count` times."""

    x: float
    top: float
    bottom: float
    count: int


@dataclass(frozen=True, slots=True)
class Edge:
    """From the stream after a box, up the margin at x = `lane`, to the box that reads it."""

    lane: float
    source: tuple[float, float]
    target: tuple[float, float]
    colour: int


@dataclass(frozen=True, slots=True)
class Tag:
    """How the inputs of a box become one; the box is to the right of it."""

    x: float
    y: float
    width: float
    text: str


Mark = Box | Wire | Bracket | Edge | Tag


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything to draw, what is below first."""

    width: float
    height: float
    marks: tuple[Mark, ...]


Groups = list[tuple[int, tuple["Gene", ...]]]


def picture(genome: Genome) -> Picture:
    """The genome, its input at the bottom."""
    groups = _groups(genome.genes)
    lanes = _lanes(genome.genes)
    tags = [_wide(gene.combine) + 12 for gene in genome.genes if len(gene.inputs) > 1]
    room = (max(lanes.values()) + 2) * LANE if lanes else 0
    x = MARGIN + room + (max(tags) + 10 if tags else 0)
    width = max(BODY, *(_natural(gene) for gene in genome.genes))
    title, parts = "readout", _readout(genome)
    last = _box(title, parts, x, MARGIN, width, most=3)
    marks, tops, bottom = _column(groups, x, last.bottom + GAP, width)
    first = _box("embedding", _embedding(genome), x, bottom + GAP, width, most=3)
    spine = Wire(first.middle, last.bottom, first.middle, first.y)
    boxes = [first, *_unrolled(groups, tops)]
    edges = _edges(genome.genes, boxes, lanes, MARGIN + room - LANE)
    whole = width + x + MARGIN + _bracket_room(groups)
    return Picture(whole, first.bottom + MARGIN, (spine, last, first, *marks, *edges))


def _readout(genome: Genome) -> list[str]:
    place = "" if genome.norm_place == "pre" else f"{genome.norm_place} "
    shown = [f"{genome.norm} {place}norm"]
    shown += ["tied"] if genome.tie_embeddings else []
    shown += [f"soft cap {word(genome.soft_cap)}"] if genome.soft_cap else []
    shown += [f"layer dropout {word(genome.layer_dropout)}"] if genome.layer_dropout else []
    return shown + ([f"exit loss {word(genome.exit_loss)}"] if genome.exit_loss else [])


def _embedding(genome: Genome) -> list[str]:
    shown = [f"width {genome.d_model}"]
    shown += [f"rank {genome.embedding_rank}"] if genome.embedding_rank else []
    count = genome.pause_tokens
    return shown + ([f"{count} pause token{'s' if count > 1 else ''}"] if count else [])


def _groups(genes: Sequence[Gene]) -> Groups:
    """The genes as `runs`, none of which goes on past a place from which an edge starts."""
    cuts = sorted({0, len(genes), *(n for gene in genes for n in gene.inputs)})
    pieces = zip(cuts, cuts[1:], strict=False)
    return [group for start, end in pieces for group in runs(genes[start:end])]


def _column(
    groups: Groups, x: float, top: float, width: float
) -> tuple[list[Mark], list[list[Box]], float]:
    """Groups of genes, the last one on top: what is drawn, the boxes of each group, the end."""
    marks: list[Mark] = []
    boxes: list[list[Box]] = []
    y = top
    for count, motif in reversed(groups):
        start, own = y, []
        for gene in reversed(motif):
            placed = _gene(gene, x, y, width)
            marks += placed
            assert isinstance(placed[0], Box)
            own.append(placed[0])
            y = placed[0].bottom + GAP
        if count > 1:
            marks.append(Bracket(x + width + 8, start - 4, y - GAP + 4, count))
        boxes.append(own[::-1])
        y += 6
    return marks, boxes[::-1], y - GAP - 6


def _gene(gene: Gene, x: float, y: float, width: float) -> list[Mark]:
    """A gene and what it holds; its own box first."""
    title, parts = _title(gene), [f"{name} {word(value)}" for name, value in gene.changed.items()]
    box = _box(title, parts, x, y, width, gene.block)
    if not gene.inner:
        return [box]
    top, inside = box.bottom + 2, (x + PAD, width - 2 * PAD)
    if block_info(gene.block).wraps == "set":
        marks, bottom = _row_marks(gene.inner, *inside, top)
    else:
        groups = runs(gene.inner)
        free = inside[1] - _bracket_room(groups)
        marks, _, bottom = _column(groups, inside[0], top, free)
        marks = [Wire(inside[0] + free / 2, top - 6, inside[0] + free / 2, bottom + PAD), *marks]
    height = bottom + PAD - y
    return [Box(x, y, width, height, title, box.lines, gene.block, frame=True), *marks]


def _row_marks(
    genes: Sequence[Gene], x: float, width: float, top: float
) -> tuple[list[Mark], float]:
    """Genes side by side, in as many rows as they need: what is drawn, and where it ends."""
    marks: list[Mark] = []
    rows = _rows(genes)
    y = top + (6 if len(rows) == 1 else 0)
    for row in rows:
        wanted = [_natural(gene) for gene in row]
        more = (width - sum(wanted) - SIDE_GAP * (len(row) - 1)) / len(row)
        left, placed = x, []
        for gene, own in zip(row, wanted, strict=True):
            placed.append(_gene(gene, left, y, own + more))
            left += own + more + SIDE_GAP
        tops = [held[0] for held in placed if isinstance(held[0], Box)]
        y = max(box.bottom for box in tops)
        if len(rows) == 1:
            above, below = top - 2, y + 8
            wires = [Wire(box.middle, above, box.middle, below) for box in tops]
            bars = [Wire(wires[0].x1, at, wires[-1].x1, at) for at in (above, below)]
            middle = x + width / 2
            marks += [*bars, *wires, Wire(middle, below, middle, y + PAD)]
        marks += [mark for held in placed for mark in held]
        y += GAP
    return marks, y - GAP


def _rows(genes: Sequence[Gene]) -> list[list[Gene]]:
    """Genes that fit side by side."""
    rows: list[list[Gene]] = [[]]
    used = 0.0
    for gene in genes:
        wide = _natural(gene) + SIDE_GAP
        if rows[-1] and used + wide > MOST_ROW:
            rows.append([])
            used = 0.0
        rows[-1].append(gene)
        used += wide
    return rows


def _natural(gene: Gene) -> float:
    """The width that a gene needs for its titles."""
    own = max(LEAST, min(_wide(_title(gene), TITLE, bold=True), MOST_TITLE) + 2 * PAD)
    if not gene.inner:
        return own
    if block_info(gene.block).wraps == "set":
        widths = [
            sum(map(_natural, row)) + SIDE_GAP * (len(row) - 1) for row in _rows(gene.inner)
        ]
    else:
        room = _bracket_room(runs(gene.inner))
        widths = [_natural(held) + room for held in gene.inner]
    return max(own, max(widths) + 2 * PAD)


def _bracket_room(groups: Groups) -> float:
    most = max(count for count, _ in groups)
    return _wide(f"x{most}", TITLE) + 24 if most > 1 else 0


def _title(gene: Gene) -> str:
    return gene.block.replace("_", " ") + (f" *{gene.share}" if gene.share else "")


def _box(
    title: str, parts: list[str], x: float, y: float, width: float, block: str = "", most: int = 2
) -> Box:
    lines = _wrapped(parts, width - 2 * PAD, most)
    shown = _cut(title, width - 2 * PAD + 1, TITLE, bold=True)
    height = 28 + LINE * len(lines) - (4 if lines else 0)
    return Box(x, y, width, height, shown, lines, block)


def _lanes(genes: Sequence[Gene]) -> dict[int, int]:
    """For each stream that an edge starts from, its place in the margin; 0 is next to the boxes.

    Streams that are read at the same height have different places.
    """
    ends: dict[int, int] = {}
    for number, gene in enumerate(genes, 1):
        for source in gene.inputs:
            ends[source] = number
    lanes: dict[int, int] = {}
    for source in sorted(ends, key=lambda n: (ends[n] - n, n)):
        beside = {
            lanes[other] for other in lanes if source < ends[other] and other < ends[source]
        }
        lanes[source] = min(set(range(len(beside) + 1)) - beside)
    return lanes


def _edges(
    genes: Sequence[Gene], boxes: list[Box], lanes: dict[int, int], nearest: float
) -> list[Mark]:
    """Every edge once, and the tags; `boxes` are those of all streams, the embedding first."""
    marks: dict[Mark, None] = {}
    for gene, box in zip(genes, boxes[1:], strict=True):
        x, y = box.x, box.bottom - ENTERS
        if len(gene.inputs) > 1:
            wide = _wide(gene.combine) + 12
            x -= wide + 10
            marks[Tag(x, y, wide, gene.combine)] = None
        for n in gene.inputs:
            start = boxes[n].x, boxes[n].y + LEAVES
            marks[Edge(nearest - lanes[n] * LANE, start, (x, y), n)] = None
    return sorted(marks, key=lambda mark: isinstance(mark, Tag))


def _unrolled(groups: Groups, boxes: list[list[Box]]) -> Iterable[Box]:
    """The box of every gene; those of one bracket stand for several."""
    for (count, _), own in zip(groups, boxes, strict=True):
        yield from own * count


def _wrapped(parts: list[str], width: float, most: int) -> tuple[str, ...]:
    """Parts with commas between, in lines of that width; what is too much is cut off."""
    lines: list[str] = []
    for i, part in enumerate(parts):
        item = part + ("," if i < len(parts) - 1 else "")
        if lines and (len(lines) == most or _wide(f"{lines[-1]} {item}") <= width):
            lines[-1] += f" {item}"
        else:
            lines.append(item)
    return tuple(_cut(line, width) for line in lines)


def _cut(text: str, width: float, size: int = TEXT, *, bold: bool = False) -> str:
    """The text, or as much of it as fits."""
    if _wide(text, size, bold=bold) <= width:
        return text
    while text and _wide(text + "...", size, bold=bold) > width:
        text = text[:-1]
    return text.rstrip(" ,") + "..."


def _wide(text: str, size: int = TEXT, *, bold: bool = False) -> float:
    """Upper estimate of the width of a text in a usual sans-serif font."""
    ems = sum(0.36 if c in "iljtfr.,:;'|!()[] " else 0.95 if c in "mwMW" else 0.63 for c in text)
    return ems * size * (1.07 if bold else 1.0)

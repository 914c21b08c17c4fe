"""Where everything stands in the drawing of a genome: boxes, frames, repeats and edges."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from archsearch.catalogue import block_info
from archsearch.dims import word
from archsearch.genome import runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archsearch.genome import Gene, Genome

TITLE, TEXT = 14, 13
"""Font sizes, in pixels."""
BODY, LEAST, MOST_ROW, MOST_TITLE = 208, 84, 300, 320
"""Widths: of a box at least, of a box side by side with others at least, of such a row at most,
and of a title at most."""
MARGIN, GAP, SIDE_GAP, PAD = 16, 14, 10, 12
SPACE = 8
"""Distance of a bracket from what it holds."""
LINE = 16
"""Height of a line of details."""
LANE = 9
"""Distance of the edges in the margin from each other."""
STUB = 6
"""Length of the stream above the last box within a frame."""


NARROW, MEDIUM = "iljtfr.,:;'|!()[] -", "abcdeghknopqsuvxyzEFJLTZ0123456789*+=<>_?/"
"""Letters of at most 0.36 and at most 0.63 times the font size; the others have at most 1."""


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
    """From the stream after a box, up the margin at x = `lane`, to the boxes that read it."""

    lane: float
    source: tuple[float, float]
    targets: tuple[tuple[float, float], ...]
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


@dataclass(frozen=True, slots=True)
class Repeat:
    """Parts of a stack that stand `count` times."""

    count: int
    parts: Parts


Parts = tuple["Gene | Repeat", ...]


@dataclass(slots=True)
class Column:
    """Parts on top of each other, drawn from the top down to `y`."""

    marks: list[Mark]
    boxes: list[Box]
    """The box of every gene, the first gene first; what repeats stands here again and again."""
    y: float


def picture(genome: Genome) -> Picture:
    """The genome, its input at the bottom."""
    parts, lanes = _cut_parts(genome.genes), _lanes(genome.genes)
    tags = [_wide(gene.combine) + 12 for gene in genome.genes if len(gene.inputs) > 1]
    room = (max(lanes.values()) + 1.5) * LANE if lanes else 0
    x = MARGIN + room + (max(tags) + 10 if tags else 0)
    width = max(BODY, *(_natural(gene) for gene in genome.genes))
    last = _box("readout", _readout(genome), x, MARGIN, width, most=6)
    column = _column(parts, x, last.bottom + GAP, width)
    first = _box("embedding", _embedding(genome), x, column.y + GAP, width, most=6)
    spine = Wire(first.middle, last.bottom, first.middle, first.y)
    edges = _edges(genome.genes, [first, *column.boxes], lanes, MARGIN + room - LANE)
    whole = x + width + _room(parts) + MARGIN
    return Picture(whole, first.bottom + MARGIN, (spine, *edges, last, first, *column.marks))


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


def _parts(genes: Sequence[Gene]) -> Parts:
    """The genes with everything that repeats written once, also within what repeats."""
    parts: list[Gene | Repeat] = []
    for count, motif in runs(genes):
        parts += [Repeat(count, _parts(motif))] if count > 1 else motif
    return tuple(parts)


def _cut_parts(genes: Sequence[Gene]) -> Parts:
    """The same, where nothing repeats past a place from which an edge starts."""
    cuts = sorted({0, len(genes), *(n for gene in genes for n in gene.inputs)})
    pieces = pairwise(cuts)
    return tuple(part for start, end in pieces for part in _parts(genes[start:end]))


def _column(parts: Parts, x: float, top: float, width: float) -> Column:
    """Parts on top of each other, the last one on top."""
    column = Column([], [], top - GAP)
    bracketed = False
    for part in reversed(parts):
        y = column.y + GAP
        if not isinstance(part, Repeat):
            placed = _gene(part, x, y + (SPACE if bracketed else 0), width)
            assert isinstance(placed[0], Box)
            own = Column(placed, [placed[0]], placed[0].bottom)
        else:
            own = _column(part.parts, x, y + (SPACE if column.marks else 0), width)
            right = x + width + _room(part.parts) + SPACE
            tops = own.boxes[-1].y - 3, own.y + 3
            own = Column(
                [*own.marks, Bracket(right, *tops, part.count)], own.boxes * part.count, own.y
            )
        bracketed = isinstance(part, Repeat)
        column.marks += own.marks
        column.boxes = own.boxes + column.boxes
        column.y = own.y
    return column


def _room(parts: Parts) -> float:
    """The width that brackets take, to the right of the boxes."""
    wide = [
        _room(part.parts) + SPACE + 12 + _wide(f"x{part.count}", TITLE)
        for part in parts
        if isinstance(part, Repeat)
    ]
    return max(wide, default=0)


def _gene(gene: Gene, x: float, y: float, width: float) -> list[Mark]:
    """A gene and what it holds; its own box first."""
    details = [f"{name} {word(value)}" for name, value in gene.changed.items()]
    box = _box(_title(gene), details, x, y, width, gene.block)
    if not gene.inner:
        return [box]
    top, left, free = box.bottom + STUB, x + PAD, width - 2 * PAD
    if block_info(gene.block).wraps == "set":
        marks, bottom = _side_by_side(gene.inner, left, free, top)
    else:
        parts = _parts(gene.inner)
        room = _room(parts)
        column = _column(parts, left + room, top, free - 2 * room)
        bottom = column.y
        marks = [Wire(box.middle, top - STUB, box.middle, bottom + PAD), *column.marks]
    height = bottom + PAD - y
    return [Box(x, y, width, height, box.title, box.lines, gene.block, frame=True), *marks]


def _side_by_side(
    genes: Sequence[Gene], x: float, width: float, top: float
) -> tuple[list[Mark], float]:
    """Genes in as few rows as they fit in: what is drawn, and where it ends."""
    wires: list[Mark] = []
    boxes: list[Mark] = []
    rows = _rows(genes)
    y = top
    for row in rows:
        wanted = [_natural(gene) for gene in row]
        more = (width - sum(wanted) - SIDE_GAP * (len(row) - 1)) / len(row)
        left, placed = x, []
        for gene, own in zip(row, wanted, strict=True):
            placed.append(_gene(gene, left, y, own + more))
            left += own + more + SIDE_GAP
        tops = [held[0] for held in placed if isinstance(held[0], Box)]
        above, y = y - STUB, max(box.bottom for box in tops) + STUB
        wires += [Wire(box.middle, above, box.middle, y) for box in tops]
        wires += [Wire(tops[0].middle, at, tops[-1].middle, at) for at in (above, y)]
        boxes += [mark for held in placed for mark in held]
        y += GAP
    y -= GAP
    return [Wire(x + width / 2, y, x + width / 2, y - STUB + PAD), *wires, *boxes], y - STUB


def _rows(genes: Sequence[Gene]) -> list[Sequence[Gene]]:
    """Genes that fit side by side, in rows of nearly the same number."""
    for count in range(1, len(genes)):
        ends = [round(len(genes) * n / count) for n in range(count + 1)]
        rows = [genes[start:end] for start, end in pairwise(ends)]
        if max(map(_row_width, rows)) <= MOST_ROW:
            return rows
    return [[gene] for gene in genes]


def _row_width(genes: Sequence[Gene]) -> float:
    return sum(map(_natural, genes)) + SIDE_GAP * (len(genes) - 1)


def _natural(gene: Gene) -> float:
    """The width that a gene needs for its titles."""
    own = max(LEAST, min(_wide(_title(gene), TITLE, bold=True), MOST_TITLE) + 2 * PAD)
    if not gene.inner:
        return own
    if block_info(gene.block).wraps == "set":
        held = max(map(_row_width, _rows(gene.inner)))
    else:
        held = max(map(_natural, gene.inner)) + 2 * _room(_parts(gene.inner))
    return max(own, held + 2 * PAD)


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
        beside = {lanes[other] for other in lanes if source < ends[other] and other < ends[source]}
        lanes[source] = min(set(range(len(beside) + 1)) - beside)
    return lanes


def _edges(
    genes: Sequence[Gene], boxes: list[Box], lanes: dict[int, int], nearest: float
) -> list[Mark]:
    """An edge for every stream that is read, then the tags.

    `boxes` are those of all streams, the embedding first.
    """
    tags: list[Mark] = []
    targets: dict[int, list[tuple[float, float]]] = {n: [] for n in sorted(lanes)}
    for gene, box in zip(genes, boxes[1:], strict=True):
        x, y = box.x, box.y + 14
        if len(gene.inputs) > 1:
            wide = _wide(gene.combine) + 12
            x -= wide + 10
            tags.append(Tag(x, y, wide, gene.combine))
        for n in gene.inputs:
            targets[n].append((x, y))
    edges = [
        Edge(
            nearest - lanes[n] * LANE,
            (boxes[n].middle, boxes[n].y - GAP / 2),
            tuple(dict.fromkeys(ends)),
            colour,
        )
        for colour, (n, ends) in enumerate(targets.items())
    ]
    return [*edges, *dict.fromkeys(tags)]


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
    ems = sum(0.36 if c in NARROW else 0.63 if c in MEDIUM else 1.0 for c in text)
    return ems * size * (1.07 if bold else 1.0)

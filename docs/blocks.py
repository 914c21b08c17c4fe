"""Write a page for every block shipped here: docs/blocks/NAME.md, NAME.svg and an index.

    python docs/blocks.py

Everything on a page is read off the block: its docstrings, its parameters and its cost.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from archsearch.block import block_class
from archsearch.catalogue import SIZES, block_costs, block_info, found, source_hash
from archsearch.dims import word
from archsearch.drawing import draw_svg
from archsearch.genome import Gene, Genome
from archsearch.report.lists import COST_COLUMNS, KINDS, cost_rows, paper_link
from archsearch.words import short

PAGES = Path(__file__).parent / "blocks"
SINGULAR = {"mixer": "Mixer", "ffn": "Feed-forward", "wrapper": "Wrapper"}


def main() -> None:
    """Write every page and drawing, and remove those of blocks that are gone."""
    PAGES.mkdir(exist_ok=True)
    for old in (*PAGES.glob("*.md"), *PAGES.glob("*.svg")):
        old.unlink()
    for name, text in pages().items():
        (PAGES / name).write_text(text)
    for name in names():
        (PAGES / f"{name}.svg").write_text(draw_svg(example(name)))


def pages() -> dict[str, str]:
    """The text of every page by its file name."""
    return {"README.md": index()} | {f"{name}.md": page(name) for name in names()}


def names() -> list[str]:
    """The blocks shipped here; those of other packages that are installed have no page."""
    return sorted(name for name, point in found("blocks").items() if source_hash(point.module))


def index() -> str:
    """The list of all blocks by kind."""
    width, context = SIZES[0]
    parts = [
        "# Blocks",
        "Every block that a space may name. Parameters and bytes of decode state (fp32, per "
        f"sequence) are those of the defaults at width {width} and context {context:,}; a "
        "wrapper's are what it adds itself.",
    ]
    for kind, (heading, what) in KINDS.items():
        rows = []
        for name in names():
            info, cost = block_info(name), block_costs(name)[0]
            if info.kind == kind:
                params = short(cost.params) if cost else "-"
                state = short(cost.state_bytes) if cost and not info.bidirectional else "-"
                rows.append((f"[{name}]({name}.md)", params, state, paper(name), info.summary))
        columns = ("block", "params", "state", "paper", "what it is")
        title = heading[0].upper() + heading[1:]
        parts += [f"## {title}: {what}", table(columns, rows, right=(1, 2))]
    parts.append(
        "A block of your own is one class in one file: [Adding a block](../adding-a-block.md). "
        "These pages are written by `make pages`."
    )
    return "\n\n".join(parts) + "\n"


def page(name: str) -> str:
    """One block: what it is, its equations, its parameters and what it costs."""
    block = block_class(name)
    info, module = block.info, sys.modules[block.__module__]
    parts = [
        f"# {name}",
        f"{info.summary}.",
        f"{SINGULAR[info.kind]}, {paper(name)}. {notes(name)}".strip(),
        f'<img src="{name}.svg" width="300" alt="a model with {name} as a drawing">',
        "## Equations and shapes",
        f"```text\n{inspect.cleandoc(module.__doc__ or '')}\n```",
        "## Parameters",
    ]
    rows = []
    for key, dim in info.dims.items():
        default = f"as `{dim.default_from}`" if dim.default_from else word(dim.default)
        when = f" (with `{dim.when[0]}: {word(dim.when[1])}`)" if dim.when else ""
        rows.append((f"`{key}`", default, dim.legal, info.docs.get(key, "") + when))
    parts.append(table(("parameter", "default", "legal", "meaning"), rows) if rows else "None.")
    parts += ["## Cost", cost_note(name), table(COST_COLUMNS, cost_rows(name), right=range(6))]
    parts.append("[All blocks](README.md)")
    return "\n\n".join(parts) + "\n"


def paper(name: str) -> str:
    """A link to the paper of a block."""
    number = block_info(name).paper
    return f"[arXiv {number}]({link})" if (link := paper_link(number)) else number


def notes(name: str) -> str:
    """What is unusual about a block."""
    info, said = block_info(name), []
    if info.joins == "next":
        said.append("Its output goes to the next block alone and never joins the residual stream.")
    if info.bidirectional:
        said.append(
            "It looks ahead: it cannot decode, and stands only in spaces with `causal: false`."
        )
    elif not info.causal:
        said.append("Training looks ahead; outside training it does not.")
    if info.wraps:
        said.append(
            "It holds slots of its own under `of`, "
            + ("one after the other." if info.wraps == "chain" else "side by side.")
        )
    return " ".join(said)


def cost_note(name: str) -> str:
    """What the numbers of the table are."""
    own = " What it adds to the blocks that it holds." if block_info(name).wraps else ""
    return (
        "With the defaults; `active` parameters are those that one token meets, state is what "
        f"decoding keeps for each sequence in fp32.{own}"
    )


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()
) -> str:
    """A Markdown table; the columns with a number in `right` are set to the right."""
    rule = ["--:" if i in right else "---" for i in range(len(columns))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, rule, *cells])


def example(name: str) -> Genome:
    """A model of width 64 around one block; a wrapper holds attention and swiglu."""
    info = block_info(name)
    if info.wraps:
        return Genome(64, (Gene.of(name, of=[Gene.of("attention"), Gene.of("swiglu")]),))
    if info.joins == "next":
        return Genome(64, (Gene.of(name), Gene.of("swiglu")))
    return Genome(64, (Gene.of(name),))


if __name__ == "__main__":
    main()

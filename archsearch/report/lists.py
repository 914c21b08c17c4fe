"""What there is to choose from: spaces, blocks and tasks."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from archsearch.catalogue import SIZES, block_costs, block_info, block_names, found
from archsearch.dims import word
from archsearch.errors import SpaceError, nearest
from archsearch.library import short_names
from archsearch.space_yaml import load
from archsearch.words import short

if TYPE_CHECKING:
    from rich.console import RenderableType


KINDS = {
    "mixer": ("mixers", "move information along time"),
    "ffn": ("FFNs", "work on each token alone"),
    "wrapper": ("wrappers", "hold other blocks"),
}
BASELINES, FULL_SIZE = "baselines/", "baselines/full/"
"""Folders of single architectures, small ones and those with the widths of the paper."""
COST_COLUMNS = ("width", "context", "params", "active", "FLOPs/token", "state bytes")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def space_table() -> RenderableType:
    """Every shipped space: its size, its tasks and what it is about; then the baselines."""
    table = _table("space", "combinations", "tasks", "what it asks")
    baselines = _table("baseline", "what is kept of it")
    full: list[str] = []
    for called, name in short_names().items():
        if name.startswith(FULL_SIZE):
            full.append(called)
            continue
        try:
            experiment = load(name)
        except SpaceError as error:
            table.add_row(name, "", "", Text(str(error).splitlines()[0], style="red"))
            continue
        about = str(experiment.notes).strip()
        if name.startswith(BASELINES):
            baselines.add_row(called, about)
        else:
            size = f"{experiment.space.size:.3g}"
            table.add_row(name, size, str(len(experiment.tasks)), about)
    named = Text(f"in full size, each with {FULL_SIZE} before it: {', '.join(full)}")
    ends = Text(f"baselines have {BASELINES} before them; the end of a name is enough")
    steps = Text("next: archsearch check NAME, archsearch run NAME")
    return Group(table, Text(), baselines, named, ends, Text(), steps)


def block_table() -> RenderableType:
    """Every block by kind: its size, its paper and what it is, one line each."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    infos = [block_info(name) for name in block_names()]
    table.add_column("block", no_wrap=True, min_width=max(len(info.name) for info in infos))
    table.add_column("params", justify="right", no_wrap=True, min_width=6)
    table.add_column("state", justify="right", no_wrap=True, min_width=5)
    table.add_column("arXiv", no_wrap=True, min_width=10)
    table.add_column("what it is")
    for kind, (heading, what) in KINDS.items():
        rows = [info for info in infos if info.kind == kind]
        if rows:
            table.add_row()
            table.add_row(Text(heading, style="bold"), "", "", "", Text(what, style="dim"))
        for info in rows:
            cost = block_costs(info.name)[0]
            params = short(cost.params) if cost else "-"
            state = short(cost.state_bytes) if cost and not info.bidirectional else "-"
            about = Text(info.summary, no_wrap=True, overflow="ellipsis")
            table.add_row(info.name, params, state, info.paper, about)
    width, context = SIZES[0]
    note = (
        f"params, and bytes of decode state (fp32), at width {width} and context {context};\n"
        "of a wrapper what it adds itself"
    )
    return Group(table, Text(), Text(note), Text("next: archsearch blocks NAME"))


def block_page(name: str) -> RenderableType:
    """One block with its parameters, what is legal and what is the default.

    Raises:
        SpaceError: if there is no such block.
    """
    if name not in block_names():
        raise SpaceError(f"unknown block '{name}'; {nearest(name, block_names())}")
    info = block_info(name)
    table = _table("parameter", "default", "legal", "meaning")
    for key, dim in info.dims.items():
        default = f"as {dim.default_from}" if dim.default_from else word(dim.default)
        when = f" (with {dim.when[0]}: {word(dim.when[1])})" if dim.when else ""
        table.add_row(key, default, dim.legal, info.docs.get(key, "") + when)
    link = paper_link(info.paper) or info.paper
    head = Text.assemble((name, "bold"), f"  {info.kind}, {link}\n{info.summary}.")
    return Group(head, Text(), table, Text(), cost_table(name))


def cost_table(name: str) -> Table:
    """What a block costs at a small and a large size."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in COST_COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in cost_rows(name):
        table.add_row(*row)
    return table


def cost_rows(name: str) -> list[tuple[str, ...]]:
    """A row of `COST_COLUMNS` for a small and a large size."""
    rows = []
    for (width, context), cost in list(zip(SIZES, block_costs(name), strict=True))[1:]:
        known: tuple[str, ...] = ("-",) * 4
        if cost:
            numbers = (cost.params, cost.active_params, cost.flops, cost.state_bytes)
            known = tuple(short(number) for number in numbers)
        if block_info(name).bidirectional:
            known = (*known[:3], "-")
        rows.append((str(width), f"{context // 1024}K", *known))
    return rows


def paper_link(paper: str) -> str | None:
    """The address of a paper on arXiv; None where it is no arXiv number."""
    return f"https://arxiv.org/abs/{paper}" if re.fullmatch(r"\d{4}\.\d{4,5}", paper) else None


def task_page(name: str) -> RenderableType:
    """One task with its parameters and their defaults.

    Raises:
        SpaceError: if there is no such task.
    """
    if name not in found("tasks"):
        raise SpaceError(f"unknown task '{name}'; {nearest(name, found('tasks'))}")
    kind = found("tasks")[name].load()
    axes = getattr(kind, "axes", {})
    table = _table("parameter", "default", "harder values")
    for field in dataclasses.fields(kind):
        harder = ", ".join(str(value) for value in axes.get(field.name, ()))
        table.add_row(field.name, str(field.default), harder)
    parts = (kind.__doc__ or "").strip().split("\n\n")
    about = "\n\n".join(" ".join(part.split()) for part in parts)
    return Group(Text.assemble((name, "bold"), f"\n{about}"), Text(), table)


def task_table() -> RenderableType:
    """Every task: vocabulary, length and the accuracy of guessing."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("task", no_wrap=True)
    for column in ("vocab", "length", "chance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("what is asked")
    for name in sorted(found("tasks")):
        task = found("tasks")[name].load()()
        about = " ".join((type(task).__doc__ or "").strip().split("\n\n")[0].split())
        numbers = (str(task.vocab), str(task.length), f"{task.chance:.3f}")
        table.add_row(name, *numbers, about.split(". ")[0].rstrip(".") + ".")
    return table

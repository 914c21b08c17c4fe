"""What there is to choose from: spaces, blocks and tasks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from archsearch.catalogue import block_info, block_names, found
from archsearch.dims import word
from archsearch.errors import SpaceError, nearest
from archsearch.library import shipped
from archsearch.space_yaml import load

if TYPE_CHECKING:
    from rich.console import RenderableType


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def space_table() -> RenderableType:
    """Every shipped space: its size, its tasks and what it is about."""
    table = _table("space", "combinations", "tasks", "what it asks")
    for name in shipped():
        try:
            experiment = load(name)
        except SpaceError as error:
            table.add_row(name, "", "", Text(str(error).splitlines()[0], style="red"))
            continue
        about = str(experiment.notes).strip()
        size = f"{experiment.space.size:.3g}"
        table.add_row(name, size, str(len(experiment.tasks)), about)
    return Group(table, Text(), Text("next: archsearch check NAME, archsearch run NAME"))


def block_table() -> RenderableType:
    """Every block: kind, paper and what it is."""
    table = _table("block", "kind", "arXiv", "parameters", "what it is")
    for name in block_names():
        info = block_info(name)
        table.add_row(name, info.kind, info.paper, ", ".join(info.dims), info.summary)
    return Group(table, Text(), Text("next: archsearch blocks NAME"))


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
    head = Text.assemble((name, "bold"), f"  {info.kind}, arXiv {info.paper}\n{info.summary}.")
    return Group(head, Text(), table)


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
    about = " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())
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

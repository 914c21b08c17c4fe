"""Verbs that list what there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from archsearch.cli.common import console

app = typer.Typer()


@app.command()
def spaces() -> None:
    """List the spaces that can be run by name."""
    from archsearch.report.lists import space_table

    console.print(space_table())


@app.command()
def blocks(
    name: Annotated[str | None, typer.Argument(help="One block, with its parameters.")] = None,
) -> None:
    """List the blocks that a space may use, or describe one."""
    from archsearch.report.lists import block_page, block_table

    console.print(block_page(name) if name else block_table())


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="One task, with its parameters.")] = None,
) -> None:
    """List the tasks, with the score of guessing, or describe one."""
    from archsearch.report.lists import task_page, task_table

    console.print(task_page(name) if name else task_table())


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Say what this machine has, which kernels run on it, and how to get faster ones."""
    from archsearch.report.doctor import examine, page

    found = examine()
    if as_json:
        print(found.to_json())  # noqa: T201
    else:
        console.print(page(found))


@app.command()
def schema() -> None:
    """Print the JSON Schema of space files, for completion in editors."""
    from archsearch.schema import json_schema

    print(json.dumps(json_schema(), indent=2))  # noqa: T201

"""The command line: one verb, one thin function. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from archsearch.cli import lists, models, scale, search
from archsearch.errors import ArchsearchError

app = typer.Typer(
    help="Find the best hybrid sequence model that your blocks can make.",
    epilog="Begin with:  archsearch run quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for part in (search, scale, models, lists):
    app.add_typer(part.app)


def main() -> None:
    """Run the command line; every known error ends in a sentence and an exit code."""
    try:
        app()
    except ArchsearchError as error:
        Console(stderr=True, highlight=False).print(str(error), markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        said = f"{where}{error.strerror}"
        Console(stderr=True, highlight=False).print(said, markup=False, soft_wrap=True)
        sys.exit(3)

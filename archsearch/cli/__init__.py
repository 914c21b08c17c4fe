"""The command line: one verb, one thin function. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from archsearch.cli import lists, models, scale, search
from archsearch.errors import ArchsearchError

LIBRARY = (
    (r"^Value error, ", ""),
    (r"^Input should be greater than or equal to (.*)", r"it must be \1 or more"),
    (r"^Input should be less than or equal to (.*)", r"it must be \1 or less"),
    (r"^Input should be a valid integer\b.*", "it must be a whole number"),
    (r"^Input should be a valid number\b.*", "it must be a number"),
)
"""How the library of the command line begins what it has against a value, and our words for it."""

SPINS = 10_000
"""How often a thread of torch looks for more to do before it sleeps: a fraction of a millisecond.
By default GNU OpenMP lets it spin for many times that, which beside other programs takes the core
from the thread that all are waiting for."""


class Verbs(TyperGroup):
    """The verbs; a value that is wrong is refused in our words."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was asked for."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            for theirs, ours in LIBRARY:
                error.message = re.sub(theirs, ours, error.message)
            raise


app = typer.Typer(
    cls=Verbs,
    help="Find the best hybrid sequence model that your blocks can make.",
    epilog="Begin with:  archsearch run quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for part in (search, scale, models, lists):
    app.add_typer(part.app)


def _version(asked: bool) -> None:
    if asked:
        Console().print(version("archsearch"))
        raise typer.Exit


@app.callback()
def options(
    shown: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Find the best hybrid sequence model that your blocks can make."""


def main() -> None:
    """Run the command line; every known error ends in a sentence and an exit code."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # read as torch is imported
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

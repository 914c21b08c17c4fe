"""Space files: by path, or by the name of one that an installed package brings; tables of them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

from archsearch.catalogue import found
from archsearch.errors import SpaceError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_BYTES = 1_000_000


@cache
def shipped() -> Mapping[str, Traversable]:
    """Every space of every installed package, by name: `quickstart`, `baselines/zamba2`."""
    return _shipped(".yaml")


@cache
def shipped_tables() -> Mapping[str, Traversable]:
    """The tables of shipped spaces that have one, by the name of the space."""
    return _shipped(".jsonl.gz")


def _shipped(suffix: str) -> Mapping[str, Traversable]:
    named: dict[str, Traversable] = {}
    for point in found("spaces").values():
        named |= _walk(files(point.value), "", suffix)
    return dict(sorted(named.items()))


def _walk(folder: Traversable, prefix: str, suffix: str) -> dict[str, Traversable]:
    named: dict[str, Traversable] = {}
    for item in folder.iterdir():
        if item.is_dir() and not item.name.startswith((".", "_")):
            named |= _walk(item, f"{prefix}{item.name}/", suffix)
        elif item.name.endswith(suffix):
            named[prefix + item.name.removesuffix(suffix)] = item
    return named


def read_space(source: str) -> tuple[str, str]:
    """The text of a space and the name that its errors carry.

    Raises:
        SpaceError: if there is no such file or shipped space, or it is no text.
    """
    path = Path(source)
    try:
        if source in shipped() and not path.is_file():
            return shipped()[source].read_text(encoding="utf-8"), f"{source}.yaml"
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "does not exist"
            hint = nearest(source, shipped())
            raise SpaceError(f"{source} {what} and is no shipped space; {hint}")
        if path.stat().st_size > MOST_BYTES:
            raise SpaceError(f"{source} is larger than {MOST_BYTES} bytes; is it a space file?")
        return path.read_text(encoding="utf-8"), source
    except UnicodeDecodeError:
        raise SpaceError(f"{source} is not a text file") from None
    except OSError as error:
        raise SpaceError(f"{source} cannot be read: {error.strerror}") from None

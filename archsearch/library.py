"""Space files: by path, or by the name of one that an installed package brings."""

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
    spaces: dict[str, Traversable] = {}
    for point in found("spaces").values():
        spaces |= _walk(files(point.value), "")
    return dict(sorted(spaces.items()))


def _walk(folder: Traversable, prefix: str) -> dict[str, Traversable]:
    spaces: dict[str, Traversable] = {}
    for item in folder.iterdir():
        if item.is_dir() and not item.name.startswith((".", "_")):
            spaces |= _walk(item, f"{prefix}{item.name}/")
        elif item.name.endswith(".yaml"):
            spaces[prefix + item.name.removesuffix(".yaml")] = item
    return spaces


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

"""Space files: by path, or by the name of one that an installed package brings; tables of them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

from archsearch.catalogue import found
from archsearch.errors import SpaceError
from archsearch.words import likely

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


@cache
def short_names() -> Mapping[str, str]:
    """Every space by what it may be called for short: `zamba2` is `baselines/zamba2`.

    That is the last part of its name, or all of it where several end alike.
    """
    last = {name: name.rpartition("/")[2] for name in shipped()}
    count = Counter(last.values())
    return {short if count[short] == 1 else name: name for name, short in last.items()}


def _walk(folder: Traversable, prefix: str, suffix: str) -> dict[str, Traversable]:
    named: dict[str, Traversable] = {}
    for item in folder.iterdir():
        if item.is_dir() and not item.name.startswith((".", "_")):
            named |= _walk(item, f"{prefix}{item.name}/", suffix)
        elif item.name.endswith(suffix):
            named[prefix + item.name.removesuffix(suffix)] = item
    return named


def read_space(source: str) -> tuple[str, str]:
    """The text of a space and the name that its errors carry; a file goes before a shipped space.

    Of the name of a shipped one any end will do that no other has: `zamba2`, `full/gemma-2b`.

    Raises:
        SpaceError: if there is no such file or shipped space, or it is no text.
    """
    path = Path(source)
    ends = [name for name in shipped() if f"/{name}".endswith(f"/{source}")]
    name = source if source in shipped() else ends[0] if len(ends) == 1 else None
    try:
        if name and not path.is_file():
            return shipped()[name].read_text(encoding="utf-8"), f"{name}.yaml"
        if not path.is_file():
            what = "is a directory" if path.is_dir() else "does not exist"
            hint = likely(source, short_names(), most=3) or likely(source, shipped(), most=3)
            raise SpaceError(
                f"{source} {what} and is no shipped space; {hint}`archsearch spaces` lists all"
            )
        if path.stat().st_size > MOST_BYTES:
            raise SpaceError(f"{source} is larger than {MOST_BYTES} bytes; is it a space file?")
        return path.read_text(encoding="utf-8"), source
    except UnicodeDecodeError:
        raise SpaceError(f"{source} is not a text file") from None
    except OSError as error:
        raise SpaceError(f"{source} cannot be read: {error.strerror}") from None

"""What things are called in a file that holds the sources of several modules."""

from __future__ import annotations


def plain_name(name: str) -> str:
    """A name as it is in the file, where no other has it: roles are starts there."""
    return name.replace("roles", "starts").replace("ROLES", "STARTS")


def qualified(name: str, place: str) -> str:
    """A name with that of its module: EPS of `ttt` is TTT_EPS, _chunks is _ttt_chunks."""
    bare = name.lstrip("_")
    start = name[: len(name) - len(bare)]
    if bare.isupper():
        return f"{start}{place.upper()}_{bare}"
    if bare[0].isupper():
        return f"{start}{place.title().replace('_', '')}{bare}"
    return f"{start}{place}_{bare}"

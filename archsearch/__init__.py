"""Neural architecture search over hybrid sequence-model blocks.

    archsearch run space.yaml        search a space
    archsearch.load(folder)          rebuild an exported model

Importing this package costs nothing; torch is imported by what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archsearch.export import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from archsearch.export import load

        return load
    raise AttributeError(f"module 'archsearch' has no attribute '{name}'")

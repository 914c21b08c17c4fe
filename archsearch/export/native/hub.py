"""The package transformers, imported where it is needed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from archsearch.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def transformers() -> Iterator[Any]:
    """The package, without its bars of progress.

    Raises:
        ExportError: if it is not installed.
    """
    try:
        import transformers as package
    except ImportError:
        raise ExportError("this format needs transformers: pip install 'archsearch[hf]'") from None
    logs = package.utils.logging
    shown = logs.is_progress_bar_enabled()
    logs.disable_progress_bar()
    try:
        yield package
    finally:
        if shown:
            logs.enable_progress_bar()

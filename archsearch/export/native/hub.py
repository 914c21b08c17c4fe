"""The package transformers, imported where it is needed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from archsearch.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def transformers() -> Iterator[Any]:
    """The package, without its bars of progress and its hints at faster kernels.

    Raises:
        ExportError: if it is not installed.
    """
    try:
        import transformers as package
    except ImportError:
        raise ExportError("this format needs transformers: pip install 'archsearch[hf]'") from None
    logs = package.utils.logging
    shown, level = logs.is_progress_bar_enabled(), logs.get_verbosity()
    logs.disable_progress_bar()
    logs.set_verbosity_error()
    try:
        yield package
    finally:
        logs.set_verbosity(level)
        if shown:
            logs.enable_progress_bar()

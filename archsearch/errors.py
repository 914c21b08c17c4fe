"""Everything that can go wrong, and the exit code it ends in.

ArchsearchError
  SpaceError        the YAML file or the space is wrong            exit 2
  BlockError        a block cannot be built this way               exit 2
  RunError          a run directory or its study cannot be used    exit 3
  ExportError       an exported model is missing or does not fit   exit 4
  CorpusError       a text or its token files cannot be used       exit 5
  ModelError        a model cannot do what is asked of it          exit 6
  TrialError        one trial failed; the study goes on
    Diverged        the loss is not finite
    OutOfMemory     training needs more memory than there is
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ArchsearchError(Exception):
    """Base of every error that archsearch raises on purpose. The text is for the user."""

    exit_code = 1


class SpaceError(ArchsearchError):
    """The space, or the file that describes it, is wrong."""

    exit_code = 2


class BlockError(ArchsearchError):
    """A block cannot be built with this width and these parameters."""

    exit_code = 2


class RunError(ArchsearchError):
    """A run directory or its study cannot be used."""

    exit_code = 3


class ExportError(ArchsearchError):
    """An exported model is missing, damaged or from a newer version."""

    exit_code = 4


class CorpusError(ArchsearchError):
    """A text cannot be read, tokenized or kept, or is too short."""

    exit_code = 5


class ModelError(ArchsearchError):
    """A model cannot do what is asked of it, or not with what it was given."""

    exit_code = 6


class TrialError(ArchsearchError):
    """One trial failed; the study records why and goes on."""

    status = "invalid"


class Diverged(TrialError):
    """The loss is not finite."""

    status = "diverged"


class OutOfMemory(TrialError):
    """Training needs more memory than there is."""

    status = "oom"


def nearest(name: str, known: Iterable[str]) -> str:
    """The words that follow "unknown ...": the nearest legal name, then all of them."""
    known = sorted(known)
    close = get_close_matches(str(name), known, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(known)}" if known else f"{hint}none is known here"

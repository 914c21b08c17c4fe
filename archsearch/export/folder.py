"""A directory of files that belong together: all of them, or nothing new."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "archsearch.json"
"""What an export is, and its files; written last."""
FORMAT = 1


@contextmanager
def whole(target: Path, about: dict[str, Any], *, force: bool) -> Iterator[Path]:
    """A directory to fill, which becomes `target` when nothing was raised.

    Args:
        target: Where the files go.
        about: What the manifest says beside its files.
        force: Replace an earlier export there; other files in the directory stay.

    Raises:
        ExportError: if `target` holds anything else, or cannot be written.
    """
    earlier = _replaceable(target, force=force)
    made = _missing(target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            folder = Path(scratch)
            yield folder
            _publish(folder, target, about, earlier)
    except OSError as error:
        _remove(made)
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from None
    except BaseException:
        _remove(made)
        raise


def manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a directory says; nothing where there is none.

    Raises:
        ExportError: if it is damaged, or of another version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    try:
        told: dict[str, Any] = json.loads(file.read_text())
        known = told["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ExportError(f"{file} is damaged") from None
    if known != FORMAT:
        raise ExportError(f"{folder} has format {known}; this version reads format {FORMAT}")
    return told


def _publish(folder: Path, target: Path, about: dict[str, Any], earlier: set[str]) -> None:
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    told = {"format": FORMAT, "archsearch": version("archsearch"), **about, "files": names}
    (folder / MANIFEST).write_text(json.dumps(told, indent=2) + "\n")
    mode = (folder / MANIFEST).stat().st_mode
    target.mkdir(exist_ok=True)
    for name in (*names, MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).chmod(mode)  # safetensors are made for their owner alone
        (folder / name).replace(target / name)
    for name in earlier - {*names, MANIFEST}:
        (target / name).unlink(missing_ok=True)


def _replaceable(target: Path, *, force: bool) -> set[str]:
    """The files of an earlier export, which may be replaced.

    Raises:
        ExportError: if there is anything that may not.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return set()
    try:
        told = json.loads((target / MANIFEST).read_text())
        names = {str(name) for name in told["files"]} | {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        raise ExportError(
            f"{target} is not empty and holds no export of this kind; nothing was written. "
            "Choose another place"
        ) from None
    if not force:
        raise ExportError(f"{target} is not empty; nothing was written. --force replaces it")
    root = target.resolve()
    return {name for name in names if root in (root / name).resolve().parents}


def _missing(folder: Path) -> list[Path]:
    """The directories above that are not there yet, the innermost first."""
    return [p for p in (folder, *folder.parents) if not p.exists()]


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()

"""Where a study is kept: an Optuna journal file, or any storage that Optuna opens by URL."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from archsearch.errors import RunError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL = "journal.log"


class TailLock(JournalFileOpenLock):
    """A lock that the kernel releases when its holder dies, and that mends a torn last line.

    A process killed in the middle of a write leaves half a line. The next writer would glue its
    own to it; so whoever takes the lock first cuts the file back to its last complete line.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._lock_path = journal.with_suffix(".lock")
        self._file: int | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        _cut_torn_tail(self._journal)
        return True

    def release(self) -> None:
        """Let the next one in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _cut_torn_tail(journal: Path) -> None:
    with journal.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def open_storage(place: str | Path) -> BaseStorage:
    """The storage in a run directory, or at an Optuna URL.

    Raises:
        RunError: if it cannot be opened, or the journal is damaged.
    """
    if "://" in str(place):
        return _by_url(str(place))
    journal = Path(place) / JOURNAL
    lock = TailLock(journal)
    try:
        if os.access(journal.parent, os.W_OK):
            journal.touch()
            lock.acquire()
            lock.release()
        _check_journal(journal)
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
    except OSError as error:
        raise RunError(f"{journal} cannot be used: {error.strerror}") from None


def _check_journal(journal: Path) -> None:
    with journal.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return  # somebody is writing it
            try:
                entry = json.loads(line)
                whole = isinstance(entry, dict) and "op_code" in entry
            except ValueError:
                whole = False
            if not whole:
                raise RunError(
                    f"{journal}:{number}: the study file is damaged at this line.\n"
                    f"Nothing was changed. To keep the {number - 1} entries before it:\n"
                    f"  head -n {number - 1} {journal} > mended.log && mv mended.log {journal}"
                )


def _by_url(url: str) -> BaseStorage:
    try:
        if url.startswith("sqlite"):
            return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        return optuna.storages.get_storage(url)
    except Exception as error:  # noqa: BLE001 - drivers raise errors of their own
        text = str(error).strip().split("\n")[0]
        raise RunError(f"the storage {_without_password(url)} cannot be opened: {text}") from None


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.rsplit(':', 1)[0]}:...@{tail}" if at and head.count(":") > 1 else url

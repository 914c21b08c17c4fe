"""Where a study is kept: an Optuna journal file, or any storage that Optuna opens by URL."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from archsearch.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from optuna.storages import BaseStorage

JOURNAL = "journal.log"
LOCKED = 60.0
"""Seconds to wait for another program that has locked an SQLite file."""


TROUBLE = (RunError, OSError, StorageInternalError, SQLAlchemyError, KeyError)
"""What a storage raises when it cannot be written or reached, or a study in it is gone."""
_GONE = KeyError("Record does not exist.").args
"""What Optuna's KeyError says of a study that is gone."""


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
        self._wait()
        try:
            _cut_torn_tail(self._journal)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Let the next one in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def mend(self) -> None:
        """Check the journal, then cut a torn last line.

        Raises:
            RunError: if another line is damaged; nothing is changed then.
        """
        self._wait()
        try:
            _check_journal(self._journal)
            _cut_torn_tail(self._journal)
        finally:
            self.release()

    def _wait(self) -> None:
        self._file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)


class Journal(JournalFileBackend):
    """A journal file whose failures are said in one sentence."""

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Entries from a number on.

        Raises:
            RunError: if they cannot be read, e.g. because the directory is gone.
        """
        try:
            yield from super().read_logs(log_number_from)
        except OSError as error:
            raise self._trouble("read", error) from None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries at the end.

        Raises:
            RunError: if they cannot be written, e.g. because the disk is full.
        """
        try:
            super().append_logs(logs)
        except OSError as error:
            raise self._trouble("written", error) from None

    def _trouble(self, done: str, error: OSError) -> RunError:
        return RunError(
            f"{self._file_path} cannot be {done}: {error.strerror}. Finished trials are safe; "
            "the same command continues once it can be"
        )


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
            lock.mend()
        else:
            _check_journal(journal)
        return JournalStorage(Journal(str(journal), lock_obj=lock))
    except OSError as error:
        raise RunError(f"{journal} cannot be used: {error.strerror}") from None


def must_be_there(url: str) -> None:
    """Refuse an SQLite database whose file does not exist, which to open would make it.

    Raises:
        RunError: if there is no such file.
    """
    with suppress(SQLAlchemyError, ValueError):  # `open_storage` says what is wrong with a URL
        known = make_url(url)
        file = known.database or ":memory:"
        if known.get_backend_name() != "sqlite" or file == ":memory:" or file.startswith("file:"):
            return
        if not Path(file).is_file():
            raise RunError(
                f"the storage {_without_password(url)} is not there: {file} is no file. Only "
                "`archsearch run` makes one"
            )


@contextmanager
def in_words(place: str) -> Iterator[None]:
    """Say in one sentence what a storage has to complain about.

    Raises:
        RunError: for every error of the storage at `place`, and if the study in it is gone.
    """
    try:
        yield
    except KeyError as error:
        if error.args != _GONE:
            raise
        raise RunError(
            f"the study is gone from {_without_password(place)}: somebody deleted it. The same "
            "command begins it again; drawings and weights stay in the run directory"
        ) from None
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        raise RunError(
            f"the storage {_without_password(place)} failed: {_first_line(cause or error, place)}. "
            "Finished trials are safe; the same command continues once it works again"
        ) from None


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
        if not url.startswith("sqlite"):
            return optuna.storages.get_storage(url)
        waiting = {"connect_args": {"timeout": LOCKED}}
        storage = optuna.storages.RDBStorage(url, engine_kwargs=waiting)
        with storage.engine.connect() as connection:  # readers and a writer at the same time
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        return optuna.storages.get_storage(storage)
    except ImportError as error:
        driver = getattr(error.__cause__ or error, "name", None) or "its driver"
        raise RunError(
            f"the storage {_without_password(url)} needs a package: pip install {driver}"
        ) from None
    except Exception as error:  # noqa: BLE001 - drivers raise errors of their own
        text = _first_line(error, url)
        raise RunError(f"the storage {_without_password(url)} cannot be opened: {text}") from None


def _without_password(url: str) -> str:
    if "://" not in url:
        return url
    try:
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return url.partition("://")[0] + "://..."


def _first_line(error: BaseException, url: str) -> str:
    """The first line of an error, cleared of the URL and the password in it."""
    text = str(error).strip().split("\n")[0].replace(url, _without_password(url))
    text = text.replace("is locked", "is locked by another program that does not let go of it")
    try:
        secrets = [make_url(url).password, *map(str, make_url(url).query.values())]
    except (SQLAlchemyError, ValueError):
        secrets = []
    for secret in filter(None, secrets):
        text = text.replace(str(secret), "***")
    return text

"""Optuna's dashboard on a run.

It is shown a view of the storage: what only programs read is left out, so that its tables stay
readable, and a note and pictures of the study are added, always of what has finished by now.
Nothing is written for it.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import InMemoryStorage

from archsearch.errors import RunError
from archsearch.report.overview import attributes, figures, note

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial
    from rich.console import Console

    from archsearch.search.study import Study

HOST = "127.0.0.1"
HIDDEN = ("owner", "genome_json", "scores", "attempt", "given_back")
"""Attributes of a trial that only programs read; some are lines of a thousand letters."""
PLAIN = ("experiment", "finals", "control", "carried")
"""Attributes of a study that only programs read."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing of every request."""


def serve(study: Study, folder: Path, port: int, console: Console) -> None:
    """Serve the dashboard on this machine alone until it is interrupted.

    Raises:
        RunError: if the port is taken.
    """
    store = FileSystemArtifactStore(folder / "artifacts")
    app = optuna_dashboard.wsgi(view(study, str(folder)), artifact_store=store)
    try:
        server = make_server(HOST, port, app, _Server, _Quiet)
    except OSError as error:
        raise RunError(f"port {port}: {error.strerror}; choose another with --port") from None
    where = f"http://{HOST}:{server.server_port}/dashboard"
    console.print(f"{study.name}: {where}   (stop with Ctrl-C)", markup=False)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


def view(study: Study, run: str) -> BaseStorage:
    """The storage of a study as the dashboard is to see it.

    Args:
        study: The study that is looked at.
        run: Its directory, as commands name it.
    """
    shown = copy.deepcopy(study.storage)
    trials, studies = shown.get_all_trials, shown.get_all_studies
    page = _Page(study, run)

    def get_all_trials(*args: Any, **kwargs: Any) -> list[FrozenTrial]:
        return [_trimmed(trial) for trial in trials(*args, **kwargs)]

    def get_all_studies() -> list[Any]:
        return [page.added(found) for found in studies()]

    vars(shown).update(get_all_trials=get_all_trials, get_all_studies=get_all_studies)
    return shown


def _trimmed(trial: FrozenTrial) -> FrozenTrial:
    """A trial without what only programs read, and with constraints as the dashboard knows them.

    It reads the list that Optuna kept before version 5.
    """
    shown = copy.copy(trial)
    shown.user_attrs = {k: v for k, v in trial.user_attrs.items() if k not in HIDDEN}
    if trial.constraints:
        shown.system_attrs = trial.system_attrs | {"constraints": [*trial.constraints.values()]}
    return shown


class _Page:
    """What is added to the page of a study; made anew when a trial or the finals have ended."""

    def __init__(self, study: Study, run: str) -> None:
        self._study, self._run = study, run
        self._made: tuple[Any, ...] | None = None
        self._system: dict[str, Any] = {}

    def added(self, found: Any) -> Any:
        """A study as Optuna lists it, with note, pictures and readable attributes."""
        shown = copy.copy(found)
        shown.user_attrs = {k: v for k, v in found.user_attrs.items() if k not in PLAIN}
        if found.study_name == self._study.name:
            shown.user_attrs = attributes(self._study) | shown.user_attrs
            shown.system_attrs = self._added(found._study_id) | found.system_attrs
        return shown

    def _added(self, study_id: int) -> dict[str, Any]:
        """What the dashboard's own functions write for a note and for pictures."""
        made = len(self._study.records()), self._study.fresh, study_id
        if made != self._made:
            storage = InMemoryStorage()
            scratch = optuna.create_study(storage=storage)
            optuna_dashboard.save_note(scratch, note(self._study, study_id, self._run))
            for name, figure in figures(self._study).items():
                optuna_dashboard.save_plotly_graph_object(scratch, figure, graph_object_id=name)
            number = storage.get_study_id_from_name(scratch.study_name)
            self._system = storage.get_study_system_attrs(number)
            self._made = made
        return self._system

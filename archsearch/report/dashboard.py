"""Optuna's dashboard on a run."""

from __future__ import annotations

from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore

from archsearch.errors import RunError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from archsearch.search.study import Study

HOST = "127.0.0.1"


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
    app = optuna_dashboard.wsgi(study.storage, artifact_store=store)
    try:
        server = make_server(HOST, port, app, _Server, _Quiet)
    except OSError as error:
        raise RunError(f"port {port}: {error.strerror}; choose another with --port") from None
    where = f"http://{HOST}:{server.server_port}/dashboard"
    console.print(f"{study.name}: {where}   (stop with Ctrl-C)", markup=False)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()

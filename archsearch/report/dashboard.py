"""Optuna's dashboard on a run."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore

from archsearch.errors import RunError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from archsearch.search.study import Study

HOST = "127.0.0.1"


def serve(study: Study, folder: Path, port: int, console: Console) -> None:
    """Serve the dashboard on this machine alone until it is interrupted.

    Raises:
        RunError: if the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise RunError(f"port {port}: {error.strerror}; choose another with --port") from None
    console.print(f"http://{HOST}:{port}/dashboard   (stop with Ctrl-C)")
    store = FileSystemArtifactStore(folder / "artifacts")
    optuna_dashboard.run_server(study.storage, host=HOST, port=port, artifact_store=store)

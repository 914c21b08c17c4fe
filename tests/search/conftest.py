import gc
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from tests.search.helpers import LISTED
from tests.search.widening import run


def pytest_collection_modifyitems(items):
    """`archsearch.search` silences this warning of Optuna; pytest makes it an error again."""
    quiet = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(quiet)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As in a worker: sums depend on the number of threads in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def postgresql(tmp_path):
    """The URL of an empty PostgreSQL database."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = [shutil.which(name) for name in ("initdb", "pg_ctl")]
    if not all(programs):
        pytest.skip("there is no PostgreSQL server on this machine")
    folder, user = tmp_path / "postgresql", []
    folder.mkdir()
    if os.geteuid() == 0:  # the server refuses to run as root
        if not shutil.which("setpriv"):
            pytest.skip("PostgreSQL does not run as root, and there is no setpriv")
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        os.chown(folder, 65534, 65534)
        for path in (tmp_path, *tmp_path.parents[:2]):
            path.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    initdb, pg_ctl = programs
    data = ["-D", str(folder / "data")]
    quiet = {"cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([*user, initdb, *data, "-A", "trust", "-U", "me"], **quiet)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    log = str(folder / "log")
    subprocess.run([*user, pg_ctl, *data, "-l", log, "-w", "-o", options, "start"], **quiet)
    yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
    subprocess.run([*user, pg_ctl, *data, "-m", "immediate", "stop"], **quiet)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """A run of five trials."""
    folder = tmp_path_factory.mktemp("five") / "run"
    run(folder, LISTED, trials=5)
    return folder


@pytest.fixture
def finished(five, folder):
    """A copy of it."""
    shutil.copytree(five, folder)
    return folder


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def url(request, folder):
    """Where the study is kept: empty for the journal. Optuna never closes its connections."""
    if request.param == "postgresql":
        yield request.getfixturevalue("postgresql")
    else:
        yield "" if request.param == "journal" else f"sqlite:///{folder}.db"
    gc.collect()

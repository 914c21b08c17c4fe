from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import TINY, archsearch


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the finished run runs/tiny in it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    done = archsearch("run", "tiny.yaml", "--workers", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "out.txt").write_text(done.stdout)
    return folder

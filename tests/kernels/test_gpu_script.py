"""The script that measures on a GPU runs to its end without one, so it is not broken on arrival."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from archsearch.testing.kernel_cases import CASES

ROOT = Path(__file__).parent.parent.parent
SCRIPT = "benchmarks/gpu.py"
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def run(*args):
    return subprocess.run(
        [sys.executable, SCRIPT, *args], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_it_runs_to_its_end_on_tiny_sizes(tmp_path):
    proven = (ROOT / "archsearch/kernels/proven.json").read_text()
    done = run("--tiny", "--mark", "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told["tiny"]
    assert set(told["versions"]) >= {"torch", "triton"}
    assert told["proven"] == list(CASES), "every kernel is compared, and right"
    assert {target["verdict"] for target in told["targets"]} == {"not measured"}
    for row in told["rows"]:
        reason = any(part in row["why"] for part in ("is not installed", "needs an NVIDIA GPU"))
        assert row["error"] is not None or row["microseconds"] or reason, row
    kinds = {row["what"].split(",")[0] for row in told["rows"]}
    assert {"MAD step", "MAD steps", "ssd tiny", *(f"{op} tiny" for op in CASES)} <= kinds
    assert (ROOT / "archsearch/kernels/proven.json").read_text() == proven, (
        "tiny sizes prove little"
    )


def test_what_there_is_no_time_for_is_named_and_proves_nothing(tmp_path):
    done = run("--tiny", "--only", "mod", "mad", "--minutes", "0", "--out", f"{tmp_path}/gpu.json")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told["proven"] == []
    assert {"mod tiny", "MAD step"} <= {row["what"].split(",")[0] for row in told["rows"]}
    assert all(row["why"].startswith(("not measured", "not timed")) for row in told["rows"])


def test_a_name_that_is_none_is_refused():
    done = run("--tiny", "--only", "pear")
    assert done.returncode == 2
    assert "invalid choice: 'pear'" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no GPU")
def test_on_a_gpu_every_kernel_is_right(tmp_path):
    done = run("--only", *CASES, "--tiny", "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "gpu.json").read_text())["proven"] == list(CASES)

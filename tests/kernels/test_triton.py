"""Our Triton kernels without a GPU: right in the interpreter, compiled for GPUs within a budget.

Both need a process of their own: Triton reads whether it interprets when it is first imported, and
an access out of bounds ends the process.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def child(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False,
        cwd=HERE.parent.parent, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_in_the_interpreter_every_kernel_is_right():
    files = [f"tests/kernels/interpreted{part}.py" for part in ("", "_spline", "_ttt")]
    told = child("-m", "pytest", "-q", *files, TRITON_INTERPRET="1")
    assert " passed" in told
    assert " failed" not in told


@pytest.fixture(scope="module")
def taken():
    return json.loads(child("tests/kernels/compiled.py", TRITON_INTERPRET="0"))


def test_every_kernel_compiles_for_every_gpu_within_its_budget(taken):
    budget = json.loads((HERE / "budget.json").read_text())
    if taken["triton"] != budget["triton"]:
        pytest.skip(f"the budget is that of Triton {budget['triton']}, not {taken['triton']}")
    assert grown(taken["kernels"], budget["kernels"]) == []


def test_no_kernel_spills_registers(taken):
    for gpu, kernels in taken["kernels"].items():
        for name, used in kernels.items():
            assert used["stack"] == 0, f"{gpu}: {name}"


def grown(taken, budget):
    """What takes more than its budget, or has none. If it is meant: `compiled.py --write`."""
    return [
        f"{gpu}: {name}: {what} {number}, budget {budget.get(gpu, {}).get(name, {}).get(what)}"
        for gpu, kernels in taken.items()
        for name, used in kernels.items()
        for what, number in used.items()
        if number > budget.get(gpu, {}).get(name, {}).get(what, -1)
    ]


def test_growth_is_seen():
    budget = {"sm_90": {"k": {"registers": 10, "stack": 0}}}
    assert grown(budget, budget) == []
    assert grown({"sm_90": {"k": {"registers": 11, "stack": 0}}}, budget) == [
        "sm_90: k: registers 11, budget 10"
    ]
    assert len(grown({"sm_90": {"new": {"registers": 1}}}, budget)) == 1

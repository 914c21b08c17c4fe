"""How fast are our kernels on a GPU, and are they right there?

    python benchmarks/gpu.py --out benchmarks/results/gpu.json --mark

One call does it all. Every way to launch every kernel of ours is compared with plain torch in fp64
first, value and all gradients, and so is every library; what is wrong is not timed. Then ours,
torch, `torch.compile` and the libraries are timed side by side, beside the floor: the bytes that
must be moved over the bandwidth of a copy on this very device. A training step of a MAD trial
(width 128, 128 tokens, 128 rows, four branches) follows: plain, compiled, with CUDA graphs, several
models in one graph, and several processes on one GPU. Products of fp32 may be rounded to TF32, for
all alike.

`--mark` notes what was right in archsearch/kernels/proven.json: from then on such a kernel is taken
unasked on that kind of GPU with that Triton. `--tiny` runs all of it on tiny sizes, without a GPU
in Triton's interpreter; its times mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

GPU = torch.cuda.is_available()  # noqa: TID251 - here the device is chosen
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton
DEVICE = "cuda" if GPU else "cpu"

import mad_steps  # noqa: E402
from recurrences import RECURRENCES  # noqa: E402

from archsearch.blocks.rwkv7 import Heads  # noqa: E402
from archsearch.errors import ModelError  # noqa: E402
from archsearch.kernels.backends import OPS, Problem, version  # noqa: E402
from archsearch.kernels.dispatch import PROVEN, architecture, choose  # noqa: E402
from archsearch.kernels.table_rows import Picks  # noqa: E402
from archsearch.testing.kernel_cases import (  # noqa: E402
    CASES,
    TOLERANCE,
    Case,
    bytes_of,
    error,
    launched,
    plain_of,
    triton_of,
    ways,
)

PACKAGES = ("archsearch", "torch", "triton", "fla-core", "mamba-ssm")
LIBRARIES = ("fla", "mamba_ssm")
LOOSE = 5e-2
"""Largest error of a library, which multiplies bfloat16 where we multiply float32."""


@dataclasses.dataclass
class Row:
    """One figure, or why there is none."""

    what: str
    backend: str
    direction: str = ""
    microseconds: float | None = None
    floor: float | None = None
    error: float | None = None
    why: str = ""


def main() -> None:
    """Everything, or what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", nargs="*", help="some ops, and `mad` and `workers`")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    parser.add_argument("--mark", action="store_true", help="note in proven.json what is right")
    chosen = parser.parse_args()
    if not GPU and not chosen.tiny:
        sys.exit(
            "there is no NVIDIA GPU that torch can use here; --tiny shows that the script runs"
        )
    torch.set_float32_matmul_precision("high")
    names = chosen.only or [*CASES, *RECURRENCES, "mad", "workers"]
    about = describe(chosen.tiny)
    print(json.dumps(about))
    rows, proven = [], []
    for row in parities(names, chosen.tiny):
        show(row)
        rows.append(row)
    for op in (op for op in names if op in CASES):
        mine = [r for r in rows if r.what.split()[0] == op and r.backend.startswith("triton")]
        if mine and not any(r.why for r in mine):
            proven.append(op)
    wrong = {(r.what.split()[0], r.backend.split()[0].strip(",")) for r in rows if r.why}
    for row in timings(names, chosen.tiny, wrong, about["bandwidth"]):
        show(row)
        rows.append(row)
    if chosen.out:
        told = about | {"proven": proven, "rows": [dataclasses.asdict(row) for row in rows]}
        chosen.out.write_text(json.dumps(told, indent=1) + "\n")
    if chosen.mark and GPU and not chosen.tiny:
        mark(proven, about)


def describe(tiny: bool) -> dict[str, Any]:
    """The device, its driver, versions, and the bandwidth of a copy."""
    count = 1 << (16 if tiny else 29)
    one = torch.ones(count, dtype=torch.bfloat16, device=DEVICE)
    other = torch.empty_like(one)
    seconds = timed(lambda: other.copy_(one)) * 1e-6
    name = torch.cuda.get_device_name() if GPU else f"{platform.machine()}, Triton's interpreter"
    return {
        "device": name,
        "arch": architecture(torch.device(DEVICE, 0) if GPU else torch.device("cpu")),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "versions": {package: version(package) for package in PACKAGES},
        "tiny": tiny,
        "bandwidth": 2 * bytes_of(one) / seconds,
    }


def _driver() -> str:
    if not GPU:
        return ""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def parities(names: list[str], tiny: bool) -> Iterator[Row]:
    """The error of every way to launch and of every library."""
    sizes = ["tiny"] if tiny else ["tiny", "proxy"]
    torch.set_float32_matmul_precision("highest")  # our tolerance is that of float32
    for op, case in CASES.items():
        if op not in names:
            continue
        for size in sizes:
            for dtype in case.dtypes:
                for which in range(ways(op)):
                    with launched(op, which):
                        label = f"triton {which}, {_word(dtype)}"
                        given = case.given(size, dtype, DEVICE)
                        tolerance = TOLERANCE[dtype]
                        yield _parity(case, f"{op} {size}", label, triton_of(op), given, tolerance)
    torch.set_float32_matmul_precision("high")
    for op, case in {**CASES, **RECURRENCES}.items():
        for library in LIBRARIES if op in names else ():
            function = _library(op, library)
            if not isinstance(function, str):
                for dtype in case.dtypes:
                    given = case.given(sizes[-1], dtype, DEVICE)
                    label = f"{library}, {_word(dtype)}"
                    yield _parity(case, f"{op} {sizes[-1]}", label, function, given, LOOSE)
            elif function:
                yield Row(f"{op} {sizes[-1]}", library, why=function)


def _parity(
    case: Case, what: str, backend: str, function: Callable[..., Any], given: Any, tolerance: float
) -> Row:
    row = Row(what, backend)
    try:
        row.error = error(case, function, plain_of(case), given)
    except Exception as broken:  # noqa: BLE001 - a kernel that fails is a result
        row.why = _line(broken)
    else:
        if not row.error < tolerance:
            row.why = f"wrong: error {row.error:.1e}, at most {tolerance:.0e}"
    return row


def _library(op: str, library: str) -> Callable[..., Any] | str:
    """The adapter of a library, or why there is none; empty for a kernel that it lacks."""
    if library not in [b.name for b in OPS[op].backends]:
        return ""
    there = architecture(torch.device(DEVICE, 0)) if GPU else ""
    problem = Problem(DEVICE, there, torch.bfloat16, OPS[op].example)
    try:
        function = choose(op, problem, library).function
    except ModelError as broken:
        return _line(broken)
    assert function is not None
    return (lambda *given: function(Heads(*given))) if op == "rwkv7" else function


def timings(
    names: list[str], tiny: bool, wrong: set[tuple[str, str]], bandwidth: float
) -> Iterator[Row]:
    """What is right, timed."""
    for op, case in {**CASES, **RECURRENCES}.items():
        for size in () if op not in names else ("tiny",) if tiny else ("proxy", "real"):
            for dtype in case.dtypes[-1:] if tiny else case.dtypes:
                given = case.given(size, dtype, DEVICE)
                for backend, function, way in _functions(op, case, tiny):
                    if (op, backend.split()[0]) not in wrong:
                        with way:
                            label = f"{op} {size}, {_word(dtype)}"
                            yield from _timed(case, label, backend, function, given, bandwidth)
    if "mad" in names:
        yield from steps(tiny)
    if "workers" in names:
        yield from crowds(tiny)


def _functions(
    op: str, case: Case, tiny: bool
) -> Iterator[tuple[str, Callable[..., Any], AbstractContextManager[Any]]]:
    """Every backend of an op that is there, and how to launch it."""
    yield "torch", plain_of(case), nullcontext()
    if not case.loops and (op in CASES or not tiny):
        compiled = torch.compile(plain_of(case), backend="eager" if tiny else "inductor")
        yield "compile", compiled, nullcontext()
    for library in LIBRARIES:
        function = _library(op, library)
        if not isinstance(function, str):
            yield library, function, nullcontext()
    for which in range(1 if tiny else ways(op)) if op in CASES else ():
        yield f"triton {which}", triton_of(op), launched(op, which)


def _timed(
    case: Case,
    what: str,
    backend: str,
    function: Callable[..., Any],
    given: tuple[Any, ...],
    bandwidth: float,
) -> Iterator[Row]:
    """Forward, then forward and backward."""
    inputs = [x for x in given if isinstance(x, torch.Tensor) and x.is_floating_point()]

    def fresh() -> list[Any]:
        """Without what an earlier call has sorted."""
        return [Picks(x.row_NE, sparse=x.sparse) if isinstance(x, Picks) else x for x in given]

    def forward() -> None:
        with torch.no_grad():
            function(*fresh())

    def both() -> None:
        found = function(*fresh())
        first = found[0] if isinstance(found, tuple) else found
        torch.autograd.grad(first, inputs, torch.ones_like(first), allow_unused=True)

    floor = case.moved(given) / bandwidth * 1e6
    for direction, run in (("forward", forward), ("both", both)):
        row = Row(what, backend, direction, floor=floor if direction == "forward" else None)
        try:
            row.microseconds = timed(run)
        except Exception as broken:  # noqa: BLE001
            row.why = _line(broken)
        yield row


def timed(run: Callable[[], Any]) -> float:
    """Microseconds of a call: the median of many on a GPU, of one elsewhere."""
    if GPU:
        from triton.testing import do_bench

        return 1e3 * do_bench(run, warmup=100, rep=400, return_mode="median")
    began = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - began)


def steps(tiny: bool) -> Iterator[Row]:
    """Microseconds of a training step, one model at a time and several in one process."""
    for what, backend, count, make in mad_steps.ways(DEVICE, tiny):
        row = Row(what, backend, "both")
        try:
            row.microseconds = timed(make()) / count
        except Exception as broken:  # noqa: BLE001
            row.why = _line(broken)
        torch.compiler.reset()
        yield row


def crowds(tiny: bool) -> Iterator[Row]:
    """Microseconds of a step when several processes share the device, all of them together."""
    for count, rate in mad_steps.crowds(DEVICE, tiny):
        row = Row(f"MAD steps, {count} processes", "torch", "both")
        row.microseconds = 1e6 / rate
        yield row


def show(row: Row) -> None:
    """One line."""
    parts = [f"{row.what:<31} {row.backend:<18} {row.direction:<7}"]
    if row.microseconds is not None:
        parts.append(f"{row.microseconds:>9.1f} us")
    if row.microseconds is not None and row.floor is not None:
        parts.append(f"{row.microseconds / row.floor:>6.1f} floors")
    if row.error is not None:
        parts.append(f"error {row.error:.1e}")
    print(" ".join([*parts, row.why]).rstrip(), flush=True)


def mark(proven: list[str], about: dict[str, Any]) -> None:
    """Note for which GPU and Triton kernels of ours are right."""
    known = json.loads(PROVEN.read_text())
    for op in proven:
        entry = {"op": op, "triton": about["versions"]["triton"], "arch": about["arch"]}
        known += [entry] if entry not in known else []
    PROVEN.write_text(json.dumps(known, indent=1) + "\n")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _line(broken: Exception) -> str:
    text = str(broken).strip().split("\n")[0][:200]
    return f"{type(broken).__name__}: {text}" if not isinstance(broken, ModelError) else text


if __name__ == "__main__":
    main()

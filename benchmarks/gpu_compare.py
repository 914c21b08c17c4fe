"""Are kernels right? What `gpu.py` compares, each on its own.

Every launch config of ours is compared with plain torch in fp64, value and all gradients, on small
sizes, and the first with plain torch in fp32 on real ones; libraries with plain torch in fp64.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

GPU = torch.cuda.is_available()  # noqa: TID251 - here the device is chosen
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton
DEVICE = "cuda" if GPU else "cpu"

from recurrences import RECURRENCES  # noqa: E402

from archsearch.blocks.rwkv7 import Heads  # noqa: E402
from archsearch.errors import ModelError  # noqa: E402
from archsearch.kernels.backends import OPS, Problem  # noqa: E402
from archsearch.kernels.dispatch import architecture, choose  # noqa: E402
from archsearch.testing.kernel_cases import (  # noqa: E402
    CASES,
    TOLERANCE,
    configs,
    error,
    launched,
    plain_of,
    triton_of,
)
from archsearch.words import dtype_name  # noqa: E402

EVERY = {**CASES, **RECURRENCES}
LIBRARIES = ("fla", "mamba_ssm")
LOOSE = 5e-2
"""Largest error of a library, which multiplies bfloat16 where we multiply float32."""
REAL = 1e-4
"""Largest error on real sizes, where plain torch rounds to fp32 too."""


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
    note: str = ""
    """What the figure holds beside the kernel."""


Task = tuple[Row, Callable[[Row], None]]
"""A row, and what fills it in; whatever that raises becomes the reason of the row."""


def fill(tasks: Iterator[Task], ends: float) -> Iterator[Row]:
    """The rows, filled in until the clock `time.monotonic` passes `ends`."""
    for row, measure in tasks:
        if row.why:
            pass
        elif time.monotonic() > ends:
            row.why = "not measured: no time was left"
        else:
            try:
                measure(row)
            except Exception as broken:  # noqa: BLE001 - a kernel that fails is a result
                row.why = line(broken)
        yield row


def line(broken: Exception) -> str:
    """What went wrong, in short."""
    text = str(broken).strip().split("\n")[0][:200]
    return f"{type(broken).__name__}: {text}" if not isinstance(broken, ModelError) else text


@functools.lru_cache(maxsize=1)
def given(op: str, size: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """The arguments; those of the last call are kept."""
    return EVERY[op].given(size, dtype, DEVICE)


@contextmanager
def precision(of: str) -> Iterator[None]:
    """While this lasts, multiply float32 like this."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(of)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def comparisons(names: list[str], tiny: bool) -> Iterator[Task]:
    """Every launch config and every library."""
    sizes, real = (["tiny"], "tiny") if tiny else (["tiny", "proxy"], "real")
    for op in (op for op in CASES if op in names):
        for size in sizes:
            for dtype in CASES[op].dtypes:
                for which in range(configs(op)):
                    row = Row(f"{op} {size}", f"triton {which}, {dtype_name(dtype)}")
                    yield row, functools.partial(_compare, op, size, dtype, which)
        row = Row(f"{op} {real}", "triton 0, float32 in float32")
        yield row, functools.partial(_compare_real, op, real)
    for op in (op for op in EVERY if op in names):
        for name in LIBRARIES:
            function = library(op, name)
            if isinstance(function, str):
                if function:
                    yield Row(f"{op} {sizes[-1]}", name, why=function), _nothing
                continue
            for dtype in EVERY[op].dtypes:
                row = Row(f"{op} {sizes[-1]}", f"{name}, {dtype_name(dtype)}")
                yield row, functools.partial(_compare_library, op, sizes[-1], dtype, function)


def _nothing(row: Row) -> None:
    """For a row that says why there is no figure."""


def _compare(op: str, size: str, dtype: torch.dtype, which: int, row: Row) -> None:
    with precision("highest"), launched(op, which):  # our tolerance is that of float32
        case, args = CASES[op], given(op, size, dtype)
        _judge(row, error(case, triton_of(op), plain_of(case), args), TOLERANCE[dtype])


def _compare_real(op: str, size: str, row: Row) -> None:
    with precision("highest"), launched(op, 0):
        case, args = CASES[op], given(op, size, torch.float32)
        found = error(case, triton_of(op), plain_of(case), args, exact=torch.float32)
        _judge(row, found, REAL)


def _compare_library(
    op: str, size: str, dtype: torch.dtype, function: Callable[..., Any], row: Row
) -> None:
    case = EVERY[op]
    _judge(row, error(case, function, plain_of(case), given(op, size, dtype)), LOOSE)


def _judge(row: Row, found: float, most: float) -> None:
    row.error = found
    if not found < most:
        row.why = f"wrong: error {found:.1e}, at most {most:.0e}"


@functools.cache
def library(op: str, name: str) -> Callable[..., Any] | str:
    """The adapter of a library, or why there is none; empty for a kernel that it lacks."""
    if name not in [b.name for b in OPS[op].backends]:
        return ""
    there = architecture(torch.device(DEVICE, 0)) if GPU else ""
    problem = Problem(DEVICE, there, torch.bfloat16, OPS[op].example)
    try:
        function = choose(op, problem, name).function
    except ModelError as broken:
        return line(broken)
    assert function is not None
    return (lambda *args: function(Heads(*args))) if op == "rwkv7" else function

"""How fast are kernels? What `gpu.py` times, each on its own."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mad_steps
import torch
from gpu_compare import DEVICE, EVERY, GPU, LIBRARIES, Row, Task, given, library, line

from archsearch.kernels.dispatch import recorded, using
from archsearch.kernels.table_rows import Picks
from archsearch.testing.kernel_cases import CASES, Case, configs, launched, plain_of, triton_of
from archsearch.words import dtype_name

Backend = tuple[str, Callable[..., Any], AbstractContextManager[Any]]


def timings(
    names: list[str], tiny: bool, wrong: set[tuple[str, str]], bandwidth: float
) -> Iterator[Task]:
    """Every backend but `torch.compile`."""
    for op, case, size, dtype in _problems(names, tiny):
        for name, function, way in _backends(op, case, tiny):
            right = (op, name.split()[0]) not in wrong
            for row, measure in _directions(op, size, dtype, name, function, way, bandwidth):
                row.why = "" if right else "not timed: it was not found right"
                yield row, measure


def compilations(
    names: list[str], tiny: bool, recurrences: bool, bandwidth: float
) -> Iterator[Task]:
    """Plain torch after `torch.compile`, anew for every size; MAD steps first."""
    if "mad" in names:
        yield from _steps(mad_steps.compiled(DEVICE, tiny))
    for op, case, size, dtype in _problems(names, tiny):
        if not case.loops and (op in CASES or recurrences):
            backend = "eager" if tiny else "inductor"
            run = torch.compile(plain_of(case), backend=backend, dynamic=False)
            tasks = _directions(op, size, dtype, "compile", run, nullcontext(), bandwidth)
            for i, (row, measure) in enumerate(tasks):
                if i == 0:
                    torch.compiler.reset()
                yield row, measure


def _problems(names: list[str], tiny: bool) -> Iterator[tuple[str, Case, str, torch.dtype]]:
    for op, case in EVERY.items():
        for size in () if op not in names else ("tiny",) if tiny else ("real", "proxy"):
            for dtype in case.dtypes[-1:] if tiny else case.dtypes:
                yield op, case, size, dtype


def _backends(op: str, case: Case, tiny: bool) -> Iterator[Backend]:
    """Every backend of an op that is there, and how to launch it."""
    yield "torch", plain_of(case), nullcontext()
    if case.materialised:
        yield "materialised torch", case.materialised, nullcontext()
    for name in LIBRARIES:
        function = library(op, name)
        if not isinstance(function, str):
            yield name, function, nullcontext()
    for which in range(1 if tiny else configs(op)) if op in CASES else ():
        yield f"triton {which}", triton_of(op), Launched(op, which)


class Launched:
    """`launched`, as often as it is entered."""

    def __init__(self, op: str, which: int) -> None:
        self.args = op, which

    def __enter__(self) -> None:
        self.now = launched(*self.args)
        self.now.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.now.__exit__(*raised)


def _directions(
    op: str, size: str, dtype: torch.dtype, backend: str, function: Callable[..., Any],
    way: AbstractContextManager[Any], bandwidth: float,
) -> Iterator[Task]:  # fmt: skip
    """Forward, then forward and backward."""
    for direction in ("forward", "both"):
        row = Row(f"{op} {size}, {dtype_name(dtype)}", backend, direction)
        args = op, size, dtype
        yield row, functools.partial(_time, args, function, way, bandwidth)


def _time(
    problem: tuple[str, str, torch.dtype], function: Callable[..., Any],
    way: AbstractContextManager[Any], bandwidth: float, row: Row,
) -> None:  # fmt: skip
    args = given(*problem)
    inputs = [x for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()]

    def first() -> torch.Tensor:
        """The result, without what an earlier call has sorted."""
        fresh = [Picks(x.row_NE, sparse=x.sparse) if isinstance(x, Picks) else x for x in args]
        found = function(*fresh)
        return found[0] if isinstance(found, tuple) else found

    def forward() -> None:
        with torch.no_grad():
            first()

    def both() -> None:
        torch.autograd.grad(first(), inputs, one, allow_unused=True)

    with way:
        if row.direction == "forward":
            row.floor = EVERY[problem[0]].moved(args) / bandwidth * 1e6
            row.microseconds, row.note = timed(forward)
        else:
            one = torch.ones_like(first())
            row.microseconds, row.note = timed(both)


def timed(run: Callable[[], Any], *, graph: bool = True) -> tuple[float, str]:
    """Microseconds of a call, the median of many, and what they hold beside the kernels.

    A call is replayed from a CUDA graph, so that the time in which the CPU launches kernels does
    not count; before each the cache is emptied, which `do_bench_cudagraph` does not do.
    """
    if not GPU:
        began = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - began), ""
    from triton.testing import do_bench

    note, call = "", run
    if graph:
        try:
            call = captured(run)
        except Exception as broken:  # noqa: BLE001 - what synchronises cannot be captured
            torch.cuda.synchronize()
            note = f"with launches, no CUDA graph ({line(broken)})"
    return 1e3 * do_bench(call, return_mode="median"), note


def captured(run: Callable[[], Any]) -> Callable[[], None]:
    """A call as a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # lazy parts of torch and Triton are ready before the capture
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay() -> None:
        """Holds `run`, whose memory the graph works on."""
        assert run is not None
        graph.replay()

    return replay


def steps(tiny: bool) -> Iterator[Task]:
    """Training steps that are not compiled, and processes that share the device."""
    yield from _steps(mad_steps.plain(DEVICE, tiny, captured))


def crowds(tiny: bool) -> Iterator[Task]:
    """Steps when several processes share the device."""
    for count in (2,) if tiny else mad_steps.PROCESSES:
        row = Row(f"MAD steps, {count} processes", "eager", "both")
        yield row, functools.partial(_crowd, count, tiny)


def _steps(ways: Iterator[mad_steps.Way]) -> Iterator[Task]:
    for way in ways:
        row = Row(way.what, f"{way.how}, {way.wish}", "both")
        yield row, functools.partial(_step, way)


def _step(way: mad_steps.Way, row: Row) -> None:
    """Microseconds of one step of one model."""
    torch.compiler.reset()
    with using(way.wish), recorded() as used:
        microseconds, row.note = timed(way.make(), graph=False)
    row.backend = f"{way.how}, {_said(used)}"
    row.microseconds = microseconds / way.count


def _crowd(count: int, tiny: bool, row: Row) -> None:
    """Microseconds of a step, all processes together."""
    given.cache_clear()
    if GPU:
        torch.cuda.empty_cache()  # other processes need the memory
    rate, used = mad_steps.crowd(count, DEVICE, tiny)
    row.backend, row.microseconds = f"eager, {used}", 1e6 / rate


def _said(used: dict[str, str]) -> str:
    return ",".join(f"{op}:{backend}" for op, backend in used.items())

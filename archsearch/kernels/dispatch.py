"""Which backend computes an op, and why.

A function in plain torch with `@op(name)` has other backends in `backends.OPS`. On a CPU it is
called as it stands. On a GPU, the first call for a device, a dtype and a shape chooses; later calls
look that up. `ARCHSEARCH_BACKEND=ssd:torch,peer:triton` and `using` choose by hand.

Without being asked, one of our own Triton kernels is taken only where `benchmarks/gpu.py` compared
it with torch on that kind of GPU and with that Triton (`proven.json`); a library is taken where it
computes the same function in the same precision.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from archsearch.errors import ModelError, nearest
from archsearch.kernels.backends import OPS, VARIABLE, Backend, Problem, denied, version
from archsearch.words import dtype_name

AUTO, TORCH, OWN = "auto", "torch", "triton"
PROVEN = Path(__file__).with_name("proven.json")
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and why it is that one."""

    backend: str
    why: str
    refused: Mapping[str, str]
    """Of every better backend, why it was not taken."""
    function: Callable[..., Any] | None = None
    """None for the one in plain torch."""


@functools.cache
def proven() -> frozenset[tuple[str, str, str]]:
    """Of our own kernels: op, version of Triton, architecture, where they equal torch.

    What was found of another state of their source does not count.
    """
    known = json.loads(PROVEN.read_text())
    valid = (p for p in known if p["op"] in OPS and p.get("source") == source_hash(p["op"]))
    return frozenset((p["op"], p["triton"], p["arch"]) for p in valid)


def source_hash(op: str) -> str:
    """Of the file that holds our own kernels of an op; empty if there are none."""
    places = [backend.place for backend in OPS[op].backends if backend.name == OWN]
    if not places:
        return ""
    file = Path(__file__).with_name(places[0].partition(":")[0].rpartition(".")[2] + ".py")
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def choose(op: str, problem: Problem, want: str = AUTO) -> Choice:
    """The backend for a problem.

    Args:
        op: One of `backends.OPS`.
        problem: What is to be computed.
        want: A backend, or `auto`.

    Raises:
        ModelError: if `want` cannot compute it.
    """
    refused: dict[str, str] = {}
    if want == TORCH or (want == AUTO and problem.device != "cuda"):
        return Choice(TORCH, "asked for" if want == TORCH else f"on {problem.device}", refused)
    for backend in OPS[op].backends:
        if want not in (AUTO, backend.name) or (want == AUTO and not backend.automatic):
            continue
        reason = _refusal(op, backend, problem, asked=want != AUTO)
        if not reason:
            try:
                function = _load(backend.place)
            except Exception as error:  # noqa: BLE001 - what a library raises is its own affair
                reason = f"importing it fails: {error}"
            else:
                why = "asked for" if want != AUTO else _merit(backend)
                return Choice(backend.name, why, refused, function)
        refused[backend.name] = reason
    if want == AUTO:
        why = "nothing faster can be used" if refused else "the only backend"
        return Choice(TORCH, why, refused)
    raise ModelError(
        f"{op}: the backend '{want}' cannot be used on {problem.arch or problem.device} with "
        f"{dtype_name(problem.dtype)}: {refused[want]}"
    )


def _refusal(op: str, backend: Backend, problem: Problem, *, asked: bool) -> str:
    reason = backend.available(problem) or denied(backend.name, op, problem)
    reason = reason or backend.supports(problem)
    known = (op, version("triton"), problem.arch)
    if not reason and not asked and backend.name == OWN and known not in proven():
        reason = (
            f"not yet compared with torch on {problem.arch} with Triton {known[1]}: "
            f"benchmarks/gpu.py does; {VARIABLE} takes it unproven"
        )
    return reason


def _load(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _merit(backend: Backend) -> str:
    own = backend.name == OWN
    return "our own kernel, proven here" if own else f"kernels of {backend.name}"


def parse(said: str) -> dict[str, str]:
    """The backend that is wanted for each op, from `ssd:torch,peer:triton`.

    Raises:
        ModelError: if an op or a backend is not known.
    """
    wanted = {}
    for part in filter(None, (part.strip() for part in said.split(","))):
        name, _, backend = part.partition(":")
        if ":" not in part:
            raise ModelError(f"{VARIABLE}: '{part}' is not OP:BACKEND, e.g. ssd:torch,peer:triton")
        if name not in OPS:
            raise ModelError(f"{VARIABLE}: unknown op '{name}'; {nearest(name, OPS)}")
        known = [AUTO, TORCH, *(b.name for b in OPS[name].backends)]
        if backend not in known:
            raise ModelError(
                f"{VARIABLE}: unknown backend '{backend}' of {name}; {nearest(backend, known)}"
            )
        wanted[name] = backend
    return wanted


class _State:
    """What this process was told, and who listens."""

    def __init__(self) -> None:
        self.wanted: dict[str, str] = {}
        self.told = ""
        self.records: list[dict[str, str]] = []

    def settle(self) -> None:
        self.told = ",".join(f"{name}:{backend}" for name, backend in self.wanted.items())


_state = _State()
_state.wanted = parse(os.environ.get(VARIABLE, ""))
_state.settle()


def wanted(op: str) -> str:
    """The backend that is asked for, or `auto`."""
    return _state.wanted.get(op, AUTO)


def require(device: torch.device) -> None:
    """Make sure that a device has every backend that is asked for, at the usual size of its op.

    Raises:
        ModelError: naming the first that it lacks.
    """
    for name, backend in _state.wanted.items():
        example = OPS[name].example
        choose(name, Problem(device.type, architecture(device), torch.float32, example), backend)


@contextmanager
def using(said: str) -> Iterator[None]:
    """While this lasts, use these backends: `ssd:torch,peer:triton`.

    Raises:
        ModelError: if an op or a backend is not known.
    """
    before, _state.wanted = _state.wanted, _state.wanted | parse(said)
    _state.settle()
    try:
        yield
    finally:
        _state.wanted = before
        _state.settle()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _note(op: str, backend: str) -> None:
    """Tell who listens; what is compiled tells it once, as it is compiled."""
    for record in _state.records:
        if record.get(op) != backend:
            record |= merged(record, {op: backend})


@contextmanager
def recorded() -> Iterator[dict[str, str]]:
    """The backend of every op that is called while this lasts; several are joined with `+`."""
    record: dict[str, str] = {}
    _state.records.append(record)
    try:
        yield record
    finally:
        _state.records = [other for other in _state.records if other is not record]


def merged(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """What `recorded` would say of both together."""
    both = {name: f"{one.get(name, '')}+{other.get(name, '')}" for name in {**one, **other}}
    return {name: "+".join(sorted({*said.split("+")} - {""})) for name, said in both.items()}


def architecture(device: torch.device) -> str:
    """sm_90 and the like; empty for anything but an NVIDIA GPU."""
    if device.type != "cuda" or torch.version.hip:
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def op(name: str) -> Callable[[Function], Function]:
    """Give a function in plain torch the backends of `OPS[name]`.

    Its first argument is a tensor, or a tuple that begins with one. What it is given beside tensors
    may decide between backends.
    """

    def wrap(plain: Function) -> Function:
        signature, known = inspect.signature(plain), dict[Any, tuple[str, int]]()
        functions: list[Callable[..., Any]] = [plain]

        @functools.wraps(plain)
        def call(*given: Any, **named: Any) -> Any:
            first = given[0] if isinstance(given[0], Tensor) else given[0][0]
            if first.is_cpu and not _state.told:
                if _state.records:
                    _note(name, TORCH)
                return plain(*given, **named)
            sizes = tuple(map(_size, given)), tuple((k, _size(v)) for k, v in named.items())
            # the compiler takes a number for granted, but not a function
            return functions[find(_state.told, first.device, first.dtype, *sizes)](*given, **named)

        @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
        def find(*asked: Any) -> int:
            # read here, as the compiler cannot; it compiles anew when this changes
            key = torch.get_float32_matmul_precision(), *asked
            if key not in known:
                _, device, dtype, sizes, named = asked
                bound = signature.bind(*sizes, **dict(named))
                bound.apply_defaults()
                problem = Problem(device.type, architecture(device), dtype, bound.arguments)
                choice = choose(name, problem, wanted(name))
                function = choice.function or plain
                if function not in functions:
                    functions.append(function)
                known[key] = choice.backend, functions.index(function)
            backend, place = known[key]
            _note(name, backend)
            return place

        whole: Any = call
        return whole

    return wrap


def _size(x: Any) -> Any:
    """What a choice may depend on: the last axis of a tensor; of an object its type alone."""
    if isinstance(x, Tensor):
        return x.shape[-1] if x.dim() else 0
    if isinstance(x, tuple):
        return tuple(map(_size, x))
    return x if isinstance(x, bool | int | float | str | None) else type(x)

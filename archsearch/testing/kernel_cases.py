"""What kernels are tried on: in Triton's interpreter, by its compiler, and on a GPU.

An op with kernels of our own gets a `Case` here; tests and `benchmarks/gpu.py` then find it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from archsearch.kernels.backends import OPS
from archsearch.kernels.mod import put
from archsearch.kernels.peer import experts
from archsearch.kernels.product_keys import route
from archsearch.kernels.selective_scan import selective_scan
from archsearch.kernels.spline import ORDER, spline, spline_ref
from archsearch.kernels.spline_features import features, features_ref
from archsearch.kernels.table_rows import Picks
from archsearch.kernels.ttt import fit_linear

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error, as a norm relative to that of the result, against torch in fp64."""
CLEAR = 1e-5
"""How much better than the best that is left out the last that is chosen must be."""
Given = tuple[Any, ...]


def bytes_of(given: Any) -> int:
    """What is read if every tensor is read once."""
    if isinstance(given, Tensor):
        return given.numel() * given.element_size()
    return sum(map(bytes_of, given)) if isinstance(given, tuple | list) else 0


@dataclass(frozen=True, slots=True)
class Case:
    """An op that has kernels of our own.

    Sizes are `tiny` for the interpreter (at most 4 programs in a launch, a ragged tail), `compile`
    (what the compiler specialises on as in `real`, little else), `proxy` for a search, and `real`.
    """

    plain: Callable[..., Any]
    make: Callable[..., Given]
    sizes: Mapping[str, Mapping[str, int]]
    configs: tuple[str, ...]
    """Names of the tuples in the module of kernels that hold launch configs."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    ordered: Callable[[Any], Any] = lambda found: found
    """A result in an order that all backends agree on."""
    moved: Callable[[Given], int] = bytes_of
    """Bytes that a forward pass moves at least, results left out where they are small."""
    loops: bool = False
    """Whether plain torch loops over time, which a compiler would write out for every step."""
    materialised: Callable[..., Any] | None = None
    """The same function with all its parts in memory, as it is written down: to compare times."""
    compiled: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """More sizes to compile for, where the code differs; beside `compile`, by what is special."""

    def sizes_of(self, size: str) -> Mapping[str, int]:
        """Those that are called so."""
        return self.compiled[size] if size in self.compiled else self.sizes[size]

    def given(self, size: str, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Given:
        """Arguments; tensors of floating point need a gradient."""
        g = Generator(device).manual_seed(seed)
        found = self.make(g, dtype, **self.sizes_of(size))
        return tuple(x.requires_grad_() if _real(x) else x for x in found)


def _peer_bytes(given: Given) -> int:
    """Every picked row of both tables comes from memory; x is read and y written."""
    x_ND, _, _, gate_NE, picks, _ = given
    rows = 2 * gate_NE.numel() * x_ND.shape[1] * x_ND.element_size()
    return rows + 2 * bytes_of(x_ND) + bytes_of((gate_NE, picks.row_NE))


def _peer(g: Generator, dtype: torch.dtype, N: int, D: int, R: int, E: int, sparse: int) -> Given:
    x_ND, down_RD, up_RD = (
        torch.randn(shape, generator=g, device=g.device, dtype=torch.float32).to(dtype)
        for shape in ((N, D), (R, D), (R, D))
    )
    gate_NE = torch.rand(N, E, generator=g, device=g.device).to(dtype)
    row_NE = torch.randint(R, (N, E), generator=g, device=g.device)
    picks = Picks(row_NE, sparse=bool(sparse))
    return x_ND, down_RD / D**0.5, up_RD, gate_NE, picks, "gelu"


def _route(g: Generator, dtype: torch.dtype, N: int, H: int, K: int, E: int) -> Given:
    """Rows whose choice of pairs hangs on how a sum is rounded give way to one that is clear."""
    score_HSNK = torch.randn(H, 2, N, K, generator=g, device=g.device).to(dtype)
    one_HNE, two_HNE = score_HSNK.double().topk(min(E + 1, K)).values.unbind(1)
    pairs_HNP = (one_HNE[..., None] + two_HNE[..., None, :]).flatten(-2)
    best_HNE = pairs_HNP.topk(E + 1).values
    clear_HN = best_HNE[..., -2] - best_HNE[..., -1] > CLEAR
    first = clear_HN.flatten().nonzero()[0, 0]
    like_SK = score_HSNK[first // N, :, first % N]
    kept_HSNK = torch.where(clear_HN[:, None, :, None], score_HSNK, like_SK[None, :, None])
    return kept_HSNK.transpose(0, 1), E


def _by_row(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    gate_NE, row_NE = found
    order_NE = row_NE.argsort(-1)
    return gate_NE.gather(-1, order_NE), row_NE.gather(-1, order_NE)


def _spline(g: Generator, dtype: torch.dtype, N: int, F: int, grid: int) -> Given:
    x_NF = torch.randn(N, F, generator=g, device=g.device) * 3
    w_FC = torch.randn(F, grid + ORDER, generator=g, device=g.device)
    return x_NF.to(dtype), w_FC.to(dtype), 6.0


def _twice_x(given: Given) -> int:
    """X is read and y written."""
    return 2 * bytes_of(given[0])


def _kan_features(
    g: Generator, dtype: torch.dtype, N: int, F: int, grid: int, order: int = 3
) -> Given:
    x_NI = torch.randn(N, F, generator=g, device=g.device) * 2
    return x_NI.to(dtype), grid, order, 3.0


def _features_bytes(given: Given) -> int:
    """X is read, and as many functions of it are written."""
    x_NI, grid, order, _ = given
    return (2 + grid + order) * bytes_of(x_NI)


def _put(g: Generator, dtype: torch.dtype, N: int, D: int, R: int) -> Given:
    y_ND, x_ND = (torch.randn(N, D, generator=g, device=g.device).to(dtype) for _ in range(2))
    gate_N = torch.rand(N, generator=g, device=g.device).to(
        torch.promote_types(dtype, torch.float32)
    )
    row_N = torch.randperm(R, generator=g, device=g.device)[:N].sort().values
    return y_ND, x_ND, gate_N, row_N, R


def _put_bytes(given: Given) -> int:
    """Everything is read, and all rows are written: first with 0, then those that were taken."""
    y_ND, *_, rows = given
    return bytes_of(given) + bytes_of(y_ND) + rows * bytes_of(y_ND[:1])


def _scan(g: Generator, dtype: torch.dtype, T: int, B: int, E: int, N: int) -> Given:
    """With steps from 0.001 to 0.1 and decays from 1 to N, as Mamba starts."""
    x_TBE, B_TBN, C_TBN = (
        torch.randn(T, B, last, generator=g, device=g.device).to(dtype) for last in (E, N, N)
    )
    dt_TBE = 10 ** (2 * torch.rand(T, B, E, generator=g, device=g.device) - 3)
    A_log_EN = torch.arange(1, N + 1, device=g.device).log().expand(E, N).contiguous()
    return x_TBE, dt_TBE.to(dtype), A_log_EN.to(dtype), B_TBN, C_TBN


def _scan_bytes(given: Given) -> int:
    """Everything is read, and y written."""
    return bytes_of(given) + bytes_of(given[0])


def _ttt(g: Generator, dtype: torch.dtype, count: int, N: int, M: int, K: int) -> Given:
    """As at the start of a training: gradients a few times the weights, steps of 1 / M."""
    k, offset = (torch.randn(count, N, M, K, generator=g, device=g.device) for _ in range(2))
    rate, square = (
        torch.rand(s, generator=g, device=g.device) for s in ((count, N, M, 1), (N, 1, K))
    )
    start = torch.randn(N, K + 1, K, generator=g, device=g.device) / K**0.5
    return tuple(x.to(dtype) for x in (k, rate / (M * K), offset, square + 0.5, start))


def _ttt_bytes(given: Given) -> int:
    """Beside what is read, all weights and as many gradients as keys are written."""
    k, *_, start = given
    return bytes_of(given) + bytes_of(k) + len(k) * bytes_of(start)


CASES: dict[str, Case] = {
    "peer": Case(
        experts, _peer,
        {
            "tiny": {"N": 3, "D": 12, "R": 4, "E": 6, "sparse": 0},
            "compile": {"N": 2, "D": 1024, "R": 16, "E": 128, "sparse": 0},
            "proxy": {"N": 16384, "D": 128, "R": 64**2, "E": 32, "sparse": 0},
            "real": {"N": 8192, "D": 1024, "R": 1024**2, "E": 128, "sparse": 1},
        },
        ("EXPERTS", "TABLES"), moved=_peer_bytes,
        compiled={"widest": {"N": 2, "D": 4096, "R": 16, "E": 128, "sparse": 0}},
    ),
    "product_keys": Case(
        route, _route,
        {
            "tiny": {"N": 3, "H": 2, "K": 13, "E": 5},
            "compile": {"N": 2, "H": 8, "K": 1024, "E": 16},
            "proxy": {"N": 16384, "H": 4, "K": 64, "E": 8},
            "real": {"N": 8192, "H": 8, "K": 1024, "E": 16},
        },
        ("ROUTE",), dtypes=(torch.float32,), ordered=_by_row,
        compiled={"most picks": {"N": 2, "H": 8, "K": 1024, "E": 64}},
    ),
    "spline": Case(
        spline, _spline,
        {
            "tiny": {"N": 70, "F": 70, "grid": 12},
            "compile": {"N": 64, "F": 1024, "grid": 12},
            "proxy": {"N": 16384, "F": 256, "grid": 8},
            "real": {"N": 8192, "F": 1024, "grid": 8},
        },
        ("FORWARD", "BACKWARD"), moved=_twice_x, materialised=spline_ref,
        compiled={"many cells": {"N": 64, "F": 1024, "grid": 64}},
    ),
    "kan_features": Case(
        features, _kan_features,
        {
            "tiny": {"N": 10, "F": 130, "grid": 5},
            "compile": {"N": 16, "F": 1024, "grid": 8},
            "proxy": {"N": 16384, "F": 128, "grid": 4},
            "real": {"N": 8192, "F": 1024, "grid": 8},
        },
        ("FEATURES",), moved=_features_bytes, materialised=features_ref,
        compiled={"order 5": {"N": 16, "F": 1024, "grid": 8, "order": 5}},
    ),
    "mod": Case(
        put, _put,
        {
            "tiny": {"N": 20, "D": 130, "R": 40},
            "compile": {"N": 16, "D": 1024, "R": 128},
            "proxy": {"N": 2048, "D": 128, "R": 16384},
            "real": {"N": 1024, "D": 1024, "R": 8192},
        },
        ("TILES",), moved=_put_bytes,
    ),
    "selective_scan": Case(
        selective_scan, _scan,
        {
            "tiny": {"T": 18, "B": 2, "E": 36, "N": 3},
            "compile": {"T": 16, "B": 16, "E": 64, "N": 16},
            "proxy": {"T": 128, "B": 128, "E": 256, "N": 16},
            "real": {"T": 2048, "B": 8, "E": 2048, "N": 16},
        },
        ("FORWARD", "BACKWARD"), dtypes=(torch.float32,), moved=_scan_bytes, loops=True,
        compiled={"largest state": {"T": 16, "B": 16, "E": 64, "N": 256}},
    ),
    "ttt_linear": Case(
        fit_linear, _ttt,
        {
            "tiny": {"count": 2, "N": 2, "M": 18, "K": 12},
            "compile": {"count": 2, "N": 2, "M": 16, "K": 64},
            "proxy": {"count": 8, "N": 512, "M": 16, "K": 32},
            "real": {"count": 128, "N": 256, "M": 16, "K": 64},
        },
        ("LOOP",), dtypes=(torch.float32,), moved=_ttt_bytes, loops=True,
        compiled={"long mini-batch": {"count": 2, "N": 2, "M": 40, "K": 64}},
    ),
}  # fmt: skip


def kernels_of(op: str) -> Any:
    """The module of the Triton kernels of an op; importing it needs Triton."""
    return importlib.import_module(_place(op)[0])


def triton_of(op: str) -> Callable[..., Any]:
    """The Triton backend of an op."""
    module, name = _place(op)
    return getattr(importlib.import_module(module), name)


def _place(op: str) -> tuple[str, str]:
    place = next(b.place for b in OPS[op].backends if b.name == "triton")
    module, _, name = place.partition(":")
    return module, name


def plain_of(case: Case) -> Callable[..., Any]:
    """The function in plain torch, without a choice."""
    return getattr(case.plain, "__wrapped__", case.plain)


@contextmanager
def launched(op: str, which: int) -> Iterator[dict[str, Any]]:
    """While this lasts, launch the kernels of an op with another config.

    Args:
        op: Which op.
        which: A number below `configs(op)`; a kernel with fewer takes its last.
    """
    module = kernels_of(op)
    before = {name: getattr(module, name) for name in CASES[op].configs}
    now = {name: known[min(which, len(known) - 1)] for name, known in before.items()}
    for name, config in now.items():
        setattr(module, name, (config,))
    try:
        yield now
    finally:
        for name, known in before.items():
            setattr(module, name, known)


def configs(op: str) -> int:
    """How many launch configs there are."""
    return max(len(getattr(kernels_of(op), name)) for name in CASES[op].configs)


def found(
    case: Case, function: Callable[..., Any], given: Given, exact: torch.dtype = torch.float64
) -> list[Tensor]:
    """What a function returns and all its gradients, in `exact` and dense."""
    results = case.ordered(function(*given))
    results = results if isinstance(results, tuple) else (results,)
    inputs = [x for x in given if _real(x)]
    real = [x for x in results if _real(x)]
    total: Any = sum((x.to(exact) * _weight(x).to(exact)).sum() for x in real)
    gradients = torch.autograd.grad(total, inputs)
    return [x.detach().to_dense().to(exact) if _real(x) else x for x in (*results, *gradients)]


def error(
    case: Case,
    function: Callable[..., Any],
    plain: Callable[..., Any],
    given: Given,
    exact: torch.dtype = torch.float64,
) -> float:
    """The largest error of values and gradients against torch in `exact` on the same numbers."""
    wide = tuple(x.detach().to(exact).requires_grad_() if _real(x) else x for x in given)
    ours, theirs = found(case, function, given, exact), found(case, plain, wide, exact)
    worst = 0.0
    for one, two in zip(ours, theirs, strict=True):
        if one.dtype == torch.int64:
            worst = max(worst, 0.0 if torch.equal(one, two) else float("inf"))
        else:
            scale = two.norm().clamp(min=1e-30)
            worst = max(worst, float((one - two).norm() / scale))
    return worst


def _weight(x: Tensor) -> Tensor:
    """Numbers that bfloat16 holds exactly, the same for every backend."""
    place = torch.arange(x.numel(), device=x.device, dtype=torch.float64)
    return ((place % 17 - 8) / 8).view(x.shape)


def _real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()

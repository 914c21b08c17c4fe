"""The backends of every op, the best first; plain torch, which every op has, comes after them all.

Libraries are looked for, not imported. What is here decides nothing: `dispatch` does.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HERE = "archsearch.kernels"
VARIABLE = "ARCHSEARCH_BACKEND"
"""Environment variable: the backend that is asked for of each op, e.g. ssd:torch,peer:triton."""
MAX_WIDTH = 4096
"""Width of a row that one program of our kernels still holds in its registers."""

MAX_HEAD_DIM = 64
"""Width of a square of weights that one program still holds there."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What an op is asked to compute."""

    device: str
    """cpu, cuda, ..."""
    arch: str
    """Of an NVIDIA GPU, e.g. sm_90; empty elsewhere."""
    dtype: torch.dtype
    sizes: Mapping[str, Any]
    """By argument: of a tensor its last axis, of a tuple a tuple of those, of others themselves."""


def fits_all(problem: Problem) -> str:
    """For a backend that computes everything."""
    return ""


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute an op."""

    name: str
    place: str
    """Its function, `module:name`; the module is imported when the function is needed."""
    available: Callable[[Problem], str]
    """Why it cannot run here; empty if it can."""
    supports: Callable[[Problem], str] = field(default=fits_all)
    """Why it cannot compute a problem; empty if it can."""
    automatic: bool = True
    """Whether it is taken without being asked for."""


@dataclass(frozen=True, slots=True)
class Op:
    """Something that has several backends."""

    does: str
    example: Mapping[str, Any]
    """`Problem.sizes` of a usual call."""
    backends: tuple[Backend, ...] = ()
    exact: bool = False
    """Whether blocks always call it in float32 or better."""


@dataclass(frozen=True, slots=True)
class Denied:
    """A backend that is known to be wrong somewhere."""

    backend: str
    op: str
    triton: tuple[str, str]
    """From this version on, and before that one."""
    arch: str
    why: str


DENIED = (
    Denied(
        "fla", "gated_deltanet", ("3.4", "3.7.1"), "sm_90",
        "Triton 3.4.0 to 3.7.0 gives wrong gradients on Hopper (flash-linear-attention issue 640)",
    ),
)  # fmt: skip


def interpreted() -> bool:
    """Whether Triton kernels run on the CPU, in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def version(package: str) -> str:
    """Which version is installed; empty if none is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def numbers(said: str) -> tuple[int, ...]:
    """A version as numbers, to compare: 3.7.1 is (3, 7, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", said)[:3])


def denied(backend: str, op: str, problem: Problem) -> str:
    """Why a backend must not be used; empty if nothing speaks against it."""
    known = numbers(version("triton"))
    for entry in DENIED:
        low, high = map(numbers, entry.triton)
        meant = (entry.backend, entry.op, entry.arch) == (backend, op, problem.arch)
        if meant and low <= known < high:
            return entry.why
    return ""


def _triton(problem: Problem) -> str:
    if interpreted() and find_spec("triton"):
        return ""
    return _library(problem)


def _library(problem: Problem) -> str:
    """Libraries are not interpreted: some of their kernels cannot be."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install 'archsearch[cuda]'"
    return "" if problem.device == "cuda" else "it needs an NVIDIA GPU"


def _fla(problem: Problem) -> str:
    if find_spec("fla") is None:
        return "fla-core is not installed: pip install 'archsearch[cuda]'"
    return _library(problem)


def _mamba_ssm(problem: Problem) -> str:
    if find_spec("mamba_ssm") is None:
        return "mamba-ssm is not installed: see docs/kernels.md"
    return _library(problem)


def _rounds(problem: Problem) -> str:
    """What libraries that multiply on tensor cores do to fp32."""
    import torch

    if problem.dtype == torch.float64:
        return "it has no fp64"
    if problem.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return (
            "it rounds fp32 to TF32, which torch.set_float32_matmul_precision('high') would allow"
        )
    return ""


def _ssd(problem: Problem) -> str:
    if not problem.sizes["positive"]:
        return "it takes the logarithms of decays, and here they may be negative"
    return _rounds(problem)


def _mamba_scan(problem: Problem) -> str:
    import torch

    if problem.dtype == torch.float64:
        return "it has no fp64"
    states = problem.sizes["A_log_EN"]
    return f"it has at most 256 states to a channel, not {states}" if states > 256 else ""


def _fla_ttt(problem: Problem) -> str:
    return (
        "its TTT is not that of the paper: it adds LN(z) to z where the paper adds it to the "
        "query, and has no learning rate of the token that writes"
    )


def _ttt(problem: Problem) -> str:
    import torch

    if problem.dtype != torch.float32 and not (problem.dtype == torch.float64 and interpreted()):
        return "it computes in float32 alone, as the block does under bfloat16 too"
    width = problem.sizes["k"]
    return (
        "" if width <= MAX_HEAD_DIM else f"weights of {width} x {width} do not fit into registers"
    )


def _never(problem: Problem) -> str:
    return ""


def _wide(problem: Problem) -> str:
    width = problem.sizes["x_ND"]
    return "" if width <= MAX_WIDTH else f"rows of {width} do not fit into registers"


OPS: dict[str, Op] = {
    "ssd": Op(
        "Mamba-2, Hydra, linear attention with a decay per head",
        {"x_BTHP": 64, "dt_BTH": 16, "a_BTH": 16, "B_BTGN": 64, "C_BTGN": 64, "D_H": 16,
         "positive": True},
        (
            Backend("fla", f"{HERE}._fla:ssd", _fla, _ssd),
            Backend("mamba_ssm", f"{HERE}._mamba_ssm:ssd", _mamba_ssm, _ssd),
            Backend("reference", f"{HERE}.ssd:ssd_ref", _never, automatic=False),
        ),
    ),
    "selective_scan": Op(
        "Mamba (S6)",
        {"x_TBE": 2048, "dt_TBE": 2048, "A_log_EN": 16, "B_TBN": 16, "C_TBN": 16},
        (
            Backend(
                "mamba_ssm", f"{HERE}._mamba_ssm_scan:selective_scan", _mamba_ssm, _mamba_scan
            ),
            Backend("triton", f"{HERE}._selective_scan_triton:selective_scan", _triton),
        ),
        exact=True,
    ),
    "gla": Op(
        "gated linear attention with a decay per channel",
        {"q_BTHK": 64, "k_BTHK": 64, "v_BTHV": 64, "log_a_BTHK": 64},
        (Backend("fla", f"{HERE}._fla:gla", _fla, _rounds),),
        exact=True,
    ),
    "gated_deltanet": Op(
        "gated delta rule",
        {"q_BTGK": 64, "k_BTGK": 64, "v_BTHV": 64, "log_a_BTH": 16, "beta_BTH": 16},
        (Backend("fla", f"{HERE}._fla:gated_deltanet", _fla, _rounds),),
        exact=True,
    ),
    "rwkv7": Op(
        "delta rule of RWKV-7",
        {"heads": (64,) * 6},
        (Backend("fla", f"{HERE}._fla:rwkv7", _fla, _rounds),),
        exact=True,
    ),
    "ttt_linear": Op(
        "TTT with a linear inner model",
        {"k": 64, "rate": 1, "offset": 64, "square": 64, "start": 64},
        (
            Backend("fla", "", _fla, _fla_ttt),
            Backend("triton", f"{HERE}._ttt_triton:fit_linear", _triton, _ttt),
        ),
        exact=True,
    ),
    "product_keys": Op(
        "retrieval of PEER and product key memory",
        {"score_SNK": 1024, "count": 16},
        (Backend("triton", f"{HERE}._product_keys_triton:route", _triton),),
        exact=True,
    ),
    "peer": Op(
        "experts of PEER",
        {"x_ND": 1024, "act": "gelu"},
        (Backend("triton", f"{HERE}._peer_triton:experts", _triton, _wide),),
    ),
    "spline": Op(
        "B-spline in place of a nonlinearity",
        {"x": 4096, "w_FC": 15, "reach": 6.0},
        (Backend("triton", f"{HERE}._spline_triton:spline", _triton),),
    ),
    "kan_features": Op(
        "B-splines of KAN",
        {"x": 1024, "grid": 8, "order": 3, "reach": 3.0},
        (Backend("triton", f"{HERE}._spline_triton:features", _triton),),
    ),
    "mod": Op(
        "putting tokens back in Mixture-of-Depths",
        {"y_ND": 1024, "x_ND": 1024, "gate_N": 1024, "row_N": 1024, "rows": 8192},
        (Backend("triton", f"{HERE}._mod_triton:put", _triton),),
    ),
}  # fmt: skip

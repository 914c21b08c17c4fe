"""What the kernels were meant to reach on a GPU, beside what `gpu.py` measured."""

from __future__ import annotations

from fnmatch import fnmatch

import torch
from gpu_compare import DEVICE, GPU, LIBRARIES, Row

from archsearch.kernels.backends import OPS, Problem
from archsearch.kernels.dispatch import architecture, choose

RIVALS = {"SSD": "ssd", "gated delta rule": "gated_deltanet", "TTT": "ttt_linear"}


def targets(rows: list[Row]) -> list[dict[str, str]]:
    """One line for each: what, measured, target, and whether it is met."""

    def fastest(what: str, *backends: str, direction: str = "both") -> float | None:
        times = [
            row.microseconds
            for row in rows
            if row.microseconds and fnmatch(row.what, what) and row.direction == direction
            if not backends or row.backend.startswith(backends)
        ]
        return min(times, default=None)

    def floor(what: str) -> float | None:
        return next((row.floor for row in rows if row.floor and row.what == what), None)

    peer, spline = "peer real, bfloat16", "spline real, bfloat16"
    gathers, kan = (fastest(what, "triton", direction="forward") for what in (peer, spline))
    dense = fastest(spline, "materialised", direction="forward")
    eager, graph = fastest("MAD step", "eager, ssd:torch"), fastest("MAD steps, 1 in a graph")
    quick = min(filter(None, (graph, fastest("MAD step", "compile"))), default=None)
    found = [
        ("PEER forward, share of the gather bound", _over(floor(peer), gathers), 0.6),
        ("PEER, times torch", _over(fastest(peer, "torch"), fastest(peer, "triton")), 3),
        ("B-spline forward, share of the bound", _over(floor(spline), kan), 0.5),
        ("B-spline forward, times materialised torch", _over(dense, kan), 10),
        ("MAD step, times eager torch", _over(eager, quick), 3),
        ("trials per hour, times one at a time", _over(eager, fastest("MAD steps, *")), 5),
    ]
    for name, op in RIVALS.items():
        what = f"{op} real, float32"
        speed = _over(fastest(what, *LIBRARIES), fastest(what, _taken(op)))
        found.append((f"{name}, times the fastest library", speed, 1))
    return [_line(*target) for target in found]


def _taken(op: str) -> str:
    """The backend that is taken unasked."""
    there = architecture(torch.device(DEVICE, 0)) if GPU else ""
    return choose(op, Problem(DEVICE, there, torch.float32, OPS[op].example)).backend


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def _line(what: str, measured: float | None, target: float) -> dict[str, str]:
    met = "not measured" if measured is None else "met" if measured >= target else "not met"
    shown = "" if measured is None else f"{measured:.2f}"
    return {"what": what, "measured": shown, "target": f">= {target:g}", "verdict": met}

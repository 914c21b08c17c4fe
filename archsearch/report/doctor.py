"""Behind `archsearch doctor`: what this machine has, and which backend each op takes on it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from archsearch.errors import ModelError
from archsearch.kernels.backends import OPS, VARIABLE, Op, Problem, interpreted, version
from archsearch.kernels.dispatch import Choice, architecture, choose, wanted
from archsearch.memory import machine_bytes
from archsearch.words import dtype_name, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

DTYPES = (torch.float32, torch.bfloat16)
NEVER = "none"
NOT_CALLED = "-"
PACKAGES = {
    "triton": ("our own kernels and those of fla-core", "pip install 'archsearch[cuda]'"),
    "fla-core": ("SSD, GLA, delta rules, RWKV-7", "pip install 'archsearch[cuda]'"),
    "mamba-ssm": ("selective scan; SSD, where fla-core is not", "docs/kernels.md says how"),
}
"""What other backends come from: what each is good for, and how it is installed."""


@dataclass(frozen=True, slots=True)
class Found:
    """What there is, and what is chosen."""

    device: Mapping[str, str]
    versions: Mapping[str, str]
    """Empty where a package is not installed."""
    asked: str
    """What the environment asks for."""
    chosen: Mapping[str, Mapping[str, Choice]]
    """By op, by type of the numbers with which blocks call it."""

    def to_json(self) -> str:
        """All of it."""
        chosen = {
            op: {
                dtype: {"backend": c.backend, "why": c.why, "refused": dict(c.refused)}
                for dtype, c in of.items()
            }
            for op, of in self.chosen.items()
        }
        told = asdict(self) | {"chosen": chosen}
        return json.dumps(told, indent=2)


def examine() -> Found:
    """Look at this machine."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    packages = "archsearch", "torch", *PACKAGES
    return Found(
        device=dict(_device(device)),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        asked=os.environ.get(VARIABLE, ""),
        chosen={
            name: {dtype_name(t): _choice(name, device, t) for t in DTYPES if not _idle(op, t)}
            for name, op in OPS.items()
        },
    )


def _idle(op: Op, dtype: torch.dtype) -> bool:
    """Whether no block calls an op with numbers of this type."""
    return op.exact and dtype != torch.float32


def _choice(op: str, device: torch.device, dtype: torch.dtype) -> Choice:
    problem = Problem(device.type, architecture(device), dtype, OPS[op].example)
    try:
        return choose(op, problem, wanted(op))
    except ModelError as error:
        # the rest of the message names op and type, which may be told once for several
        reason = str(error).partition(f"with {dtype_name(dtype)}: ")[2] or str(error)
        return Choice(NEVER, "asked for, which fails", {wanted(op): reason})


def _device(device: torch.device) -> Iterator[tuple[str, str]]:
    yield "cpu", f"{platform.machine()}, {os.cpu_count()} cores, {size(machine_bytes())}"
    yield "threads", f"{torch.get_num_threads()} per process"
    if device.type == "cpu":
        yield "gpu", "" if torch.version.cuda else "none that this build of torch can use"
        return
    yield "gpu", device.type
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        yield "gpu", f"{about.name}, {architecture(device)}, {size(about.total_memory)}"
        yield "driver", driver()
        yield "cuda", str(torch.version.cuda or torch.version.hip)


def driver() -> str:
    """The version of NVIDIA's driver; empty where nothing says it."""
    if not (tool := shutil.which("nvidia-smi")):
        return ""
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def page(found: Found) -> RenderableType:
    """What a person reads."""
    parts: list[RenderableType] = [_about(found), "", _choices(found)]
    parts.append(Text(f"{NOT_CALLED}: blocks call it in float32 alone", style="dim"))
    for heading, lines in (
        ("not used", _refusals(found)),
        ("for a faster one", _advice(found)),
    ):
        if lines:
            parts += ["", Text(heading, style="dim"), *(_point(line) for line in lines)]
    return Group(*parts)


def _about(found: Found) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in {**found.device, **found.versions}.items():
        table.add_row(name, value or "not installed" if name in found.versions else value or "none")
    if found.asked:
        table.add_row(VARIABLE, found.asked)
    if interpreted():
        table.add_row("TRITON_INTERPRET", "1: Triton kernels run on the CPU, slowly")
    return table


def _choices(found: Found) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("op", *map(dtype_name, DTYPES), "why", "what uses it"):
        table.add_column(column, overflow="fold")
    for op, of in found.chosen.items():
        table.add_row(
            op,
            *(of[name].backend if name in of else NOT_CALLED for name in map(dtype_name, DTYPES)),
            Text("; ".join(dict.fromkeys(c.why for c in of.values()))),
            OPS[op].does,
        )
    return table


def _refusals(found: Found) -> list[str]:
    """Each reason once, with the ops that it is about."""
    about: dict[tuple[str, str], list[str]] = defaultdict(list)
    for op, of in found.chosen.items():
        for backend, reason in {(b, r): None for c in of.values() for b, r in c.refused.items()}:
            about[backend, reason].append(op)
    return [f"{b} ({', '.join(ops)}): {reason}" for (b, reason), ops in about.items()]


def _advice(found: Found) -> list[str]:
    """What can be done."""
    if "sm_" not in found.device.get("gpu", ""):
        lines = ["on a CPU every op is plain torch, the fastest there; other backends need a GPU"]
        if not torch.version.cuda:
            lines.append("torch for NVIDIA GPUs: see pytorch.org/get-started/locally")
        lines.append("on a machine with an NVIDIA GPU: pip install 'archsearch[cuda]'")
        return lines
    missing = {name: of for name, of in PACKAGES.items() if not found.versions[name]}
    return [f"{name} ({good}): {how}" for name, (good, how) in missing.items()]


def _point(line: str) -> Padding:
    return Padding(Text(line), (0, 0, 0, 2))

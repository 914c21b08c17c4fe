"""What was written is loaded again, in a process that does not know archsearch.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from archsearch.errors import ExportError
from archsearch.train import generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from archsearch.model import Model

TOLERANCES = {"logits": 1e-5, "decode": 1e-4}
"""Largest deviation over the largest logit, or over 1 if that is less."""
ROWS, LENGTH = 2, 24


def check(folder: Path, kind: str, model: Model) -> dict[str, float]:
    """Load a directory and compare it with the model in memory.

    Args:
        folder: What was written.
        kind: torch or hf.
        model: What it must be equal to, in evaluation mode.

    Returns:
        The deviations of a whole pass and of a decode.

    Raises:
        ExportError: if it does not load, or gives other numbers.
    """
    (found,) = deviations(kind, [(folder, model)])
    for name, deviation in found.items():
        if not deviation <= TOLERANCES[name]:
            raise ExportError(
                f"the {name} of what was written are off by {deviation:.1e} of the largest logit, "
                f"allowed are {TOLERANCES[name]:.0e}; nothing was left. Please report this genome"
            )
    return found


def deviations(kind: str, written: Sequence[tuple[Path, Model]]) -> list[dict[str, float]]:
    """How far off each of several directories is, all of them loaded in one process.

    Raises:
        ExportError: if one does not load.
    """
    script = importlib.resources.files("archsearch.export") / "reloaded.py"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-I", "-B", str(script), kind]
        for number, (folder, model) in enumerate(written):
            probe = Path(scratch) / f"probe-{number}.safetensors"
            save_file(_probe(model), probe)
            command += [str(folder), str(probe)]
        env = os.environ | {
            "HF_HUB_OFFLINE": "1", "HF_HOME": scratch, "HF_MODULES_CACHE": f"{scratch}/modules",
            "TRANSFORMERS_VERBOSITY": "error",
        }  # fmt: skip
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise ExportError(_why(ran.stderr, kind))
    return [json.loads(line) for line in ran.stdout.splitlines()[-len(written) :]]


@torch.no_grad()
def _probe(model: Model) -> dict[str, Tensor]:
    """Tokens, and the logits that they must have."""
    tokens_BT = torch.randint(model.vocab, (ROWS, LENGTH), generator=generator("export", "check"))
    probe = {"tokens": tokens_BT, "logits": model(tokens_BT).contiguous()}
    if not probe["logits"].isfinite().all():
        raise ExportError("the model gives numbers that are not finite; its weights are damaged")
    if not model.genome.bidirectional and model.readout_kind == "token":
        probe["decode"] = torch.ones(1)
    return probe


def _why(stderr: str, kind: str) -> str:
    last = (stderr.strip().splitlines() or ["no output"])[-1]
    if kind == "hf" and "No module named 'transformers'" in last:
        return "checking what is written needs transformers: pip install 'archsearch[hf]'"
    return f"what was written does not load, so nothing was left: {last}"

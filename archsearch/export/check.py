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
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from archsearch.errors import ExportError
from archsearch.export.gguf import FILE as GGUF
from archsearch.export.llama import MARK
from archsearch.export.native.parity import parity
from archsearch.train import generator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from archsearch.model import Model

TOLERANCES = {"logits": 1e-5, "decode": 1e-4}
"""Largest deviation over the largest logit, or over 1 if that is less."""
ROWS, LENGTH = 2, 24
NEEDED = {"hf": "transformers", "gguf": "xllamacpp"}
"""What a format is checked with."""


def check(folder: Path, kind: str, model: Model) -> None:
    """Load a directory and compare it with the model in memory.

    Args:
        folder: What was written.
        kind: torch, hf, native or gguf.
        model: What it must be equal to, in evaluation mode.

    Raises:
        ExportError: if it does not load, or gives other numbers.
    """
    written = [(folder, model)]
    if kind == "native":
        known = parity(model, folder)
        found = {"logits": known.logits, "decode": known.decode or 0.0}
    else:
        (found,) = gguf_deviations(written) if kind == "gguf" else deviations(kind, written)
    for name, deviation in found.items():
        if not deviation <= TOLERANCES[name]:
            raise ExportError(
                f"the {name} of what was written are off by {deviation:.1e} of the largest logit, "
                f"allowed are {TOLERANCES[name]:.0e}; nothing was left. Please report this genome"
            )


def deviations(kind: str, written: Sequence[tuple[Path, Model]]) -> list[dict[str, float]]:
    """How far off each of several directories is, all of them loaded in one process.

    Raises:
        ExportError: if one does not load.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked = [kind]
        for number, (folder, model) in enumerate(written):
            probe = Path(scratch) / f"probe-{number}.safetensors"
            save_file(_probe(model), probe)
            asked += [str(folder), str(probe)]
        ran = _run("reloaded.py", *asked, env={
            "HF_HUB_OFFLINE": "1", "HF_HOME": scratch, "HF_MODULES_CACHE": f"{scratch}/modules",
            "TRANSFORMERS_VERBOSITY": "error",
        })  # fmt: skip
    if ran.returncode:
        raise ExportError(_why(ran.stderr, kind))
    return [json.loads(line) for line in ran.stdout.splitlines()[-len(written) :]]


def gguf_deviations(written: Sequence[tuple[Path, Model]]) -> list[dict[str, float]]:
    """How far off the log-probabilities of llama.cpp are, in each of several directories.

    It reads a text at once, then two more tokens one by one.

    Raises:
        ExportError: if llama.cpp is not there, or stops.
    """
    texts = [_tokens(model)[0].tolist() for _, model in written]
    questions = [
        (folder / GGUF, [ids[:-2], ids[:-1], ids], model.vocab)
        for ids, (folder, model) in zip(texts, written, strict=True)
    ]
    found = []
    for ids, (_, model), answers in zip(texts, written, llama(questions), strict=True):
        assert [answer["read"] for answer in answers] == [LENGTH - 2, 1, 1]
        whole, *later = (
            log_probability_deviation(model, ids[: LENGTH - 2 + more], answer["next"])
            for more, answer in enumerate(answers)
        )
        found.append({"logits": whole, "decode": max(later)})
    return found


def llama(questions: Sequence[tuple[Path, Sequence[str | list[int]], int]]) -> list[Any]:
    """What llama.cpp answers to questions, see `export.llama`; in a process of its own.

    Raises:
        ExportError: if it is not there, or stops.
    """
    lines = "".join(json.dumps((str(file), *asked)) + "\n" for file, *asked in questions)
    ran = _run("llama.py", stdin=lines)
    said = [line for line in ran.stdout.splitlines() if line.startswith(MARK)]
    if len(said) < len(questions):
        raise ExportError(_why(ran.stderr, "gguf"))
    return [json.loads(line.removeprefix(MARK)) for line in said]


@torch.no_grad()
def log_probability_deviation(model: Model, ids: list[int], found: Sequence[float]) -> float:
    """The largest difference of log-probabilities after `ids`, over the largest logit or 1."""
    logits_V = model(torch.tensor([ids]))[0, -1]
    wanted_V = logits_V.log_softmax(-1)
    seen_V = wanted_V > -80  # below, llama.cpp rounds a probability to 0
    off_V = (torch.tensor(found) - wanted_V)[seen_V].abs()
    return float(off_V.max() / max(1.0, logits_V.abs().max()))


def _run(
    script: str, *asked: str, stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script that stands beside this file."""
    place = str(importlib.resources.files("archsearch.export") / script)
    return subprocess.run(
        [sys.executable, "-P", "-B", place, *asked], input=stdin, env=os.environ | (env or {}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def _tokens(model: Model) -> Tensor:
    stream = generator("export", "check")
    return torch.randint(model.vocab, (ROWS, LENGTH), generator=stream)


@torch.no_grad()
def _probe(model: Model) -> dict[str, Tensor]:
    """Tokens, and the logits that they must have."""
    tokens_BT = _tokens(model)
    probe = {"tokens": tokens_BT, "logits": model(tokens_BT).contiguous()}
    if not probe["logits"].isfinite().all():
        raise ExportError("the model gives numbers that are not finite; its weights are damaged")
    if not model.genome.bidirectional and model.readout_kind == "token":
        probe["decode"] = torch.ones(1)
    return probe


def _why(stderr: str, kind: str) -> str:
    last = (stderr.strip().splitlines() or ["no output"])[-1]
    package = NEEDED.get(kind)
    if package and f"No module named '{package}'" in last:
        return f"checking what is written needs {package}: pip install 'archsearch[{kind}]'"
    return f"what was written does not load, so nothing was left: {last}"

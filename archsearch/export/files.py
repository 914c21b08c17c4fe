"""A model as files: `model.yaml` (the genome), `config.json` and safetensors. No pickle anywhere.

DIR/model.yaml                     the genome; itself a space file with one member
DIR/config.json                    format, genome and what each set of weights was trained on
DIR/<task>.safetensors             weights, one file per task
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from archsearch.errors import ExportError, nearest
from archsearch.genome import Genome
from archsearch.model import Model
from archsearch.space_yaml import dump

FORMAT = 1


def export(genome: Genome, weights: Path | None, target: Path, *, force: bool = False) -> Path:
    """Write a genome, with its weights where there are any, into the directory `target`.

    Everything is written beside it first and moved into place at the end.

    Raises:
        ExportError: if `target` is not empty (unless `force`) or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not force:
        raise ExportError(f"{target} is not empty; nothing was written. --force replaces it")
    config: dict[str, Any] = {
        "format": FORMAT,
        "genome": genome.to_json(),
        "key": genome.key,
        "tasks": {},
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            if weights and (weights / "tasks.json").is_file():
                config["tasks"] = json.loads((weights / "tasks.json").read_text())
                for task in config["tasks"].values():
                    shutil.copyfile(weights / task["file"], scratch / task["file"])
            (scratch / "model.yaml").write_text(dump(genome))
            (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            scratch.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror}") from None
    return target


def load(folder: str | Path, task: str | None = None) -> Model:
    """Rebuild an exported model with its weights, ready for evaluation.

    Args:
        folder: A directory that `archsearch export` wrote.
        task: Which weights, where there are several; by default the first.

    Raises:
        ExportError: if something is missing, damaged, does not fit or is from a newer version.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        if config["format"] != FORMAT:
            raise ExportError(
                f"{folder} has format {config['format']}; this version reads format {FORMAT}"
            )
        genome = Genome.from_json(config["genome"])
        tasks = config["tasks"]
    except OSError as error:
        raise ExportError(f"{folder / 'config.json'}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder / 'config.json'} is damaged: {error}") from None
    if not tasks:
        raise ExportError(f"{folder} holds a genome without weights; train it first")
    name = task or next(iter(tasks))
    if name not in tasks:
        raise ExportError(f"{folder} has no weights for '{name}'; {nearest(name, tasks)}")
    with torch.device("meta"):
        model = Model(genome, tasks[name]["vocab"], tasks[name]["readout"])
    model = model.to_empty(device="cpu")
    try:
        load_model(model, folder / tasks[name]["file"])
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error).split("\n")[0]
        raise ExportError(f"the weights in {folder} do not fit the genome: {text}") from None
    return model.eval()

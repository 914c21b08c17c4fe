"""A model as files: `model.yaml` (the genome), `config.json` and safetensors. No pickle anywhere.

DIR/model.yaml                     the genome; itself a space file with one member
DIR/config.json                    format, genome and what each set of weights was trained on
DIR/<task>.safetensors             weights, one file per task
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from archsearch.catalogue import found
from archsearch.errors import BlockError, ExportError, SpaceError
from archsearch.genome import Genome
from archsearch.model import Model, Readout
from archsearch.space_yaml import dump
from archsearch.words import likely

if TYPE_CHECKING:
    from collections.abc import Iterable

    from archsearch.mup import Base

FORMAT = 1


def export(genome: Genome, weights: Path | None, target: Path, *, force: bool = False) -> Path:
    """Write a genome, with its weights where there are any, into the directory `target`.

    Every file is written whole before it takes its place, `config.json` last.

    Args:
        genome: The architecture.
        weights: Where `save_weights` wrote; None or an empty place for a genome without weights.
        target: Directory to make.
        force: Replace an earlier export there. Other files in the directory stay.

    Raises:
        ExportError: if `target` is not empty or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not _exported(target):
            raise ExportError(
                f"{target} is not empty and holds no export; nothing was written. "
                "Choose another place"
            )
        if not force:
            raise ExportError(f"{target} is not empty; nothing was written. --force replaces it")
    config: dict[str, Any] = {
        "format": FORMAT,
        "genome": genome.to_json(),
        "key": genome.key,
        "tasks": {},
    }
    made = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        earlier = _weights_of(target)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target) as scratch:
            folder = Path(scratch)
            if weights and (weights / "tasks.json").is_file():
                config["tasks"] = json.loads((weights / "tasks.json").read_text())
            files = [task["file"] for task in config["tasks"].values()]
            for file in files:
                shutil.copyfile(weights / file, folder / file)
            (folder / "model.yaml").write_text(dump(genome))
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            for name in (*files, "model.yaml", "config.json"):
                (folder / name).replace(target / name)
        for name in earlier - set(files):
            (target / name).unlink(missing_ok=True)
    except OSError as error:
        if made:
            with suppress(OSError):
                target.rmdir()
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from None
    return target


def _weights_of(folder: Path) -> set[str]:
    """The weights files that an earlier export left in a directory."""
    try:
        tasks = json.loads((folder / "config.json").read_text())["tasks"]
        return {Path(task["file"]).name for task in tasks.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _exported(folder: Path) -> bool:
    """Whether a directory holds what `export` writes."""
    return (folder / "model.yaml").is_file() and (folder / "config.json").is_file()


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
        if "model_type" in config:
            raise ExportError(
                f"{folder} is for transformers: AutoModelForCausalLM.from_pretrained('{folder}', "
                "trust_remote_code=True); or archsearch.inference.load"
            )
        if config["format"] != FORMAT:
            raise ExportError(
                f"{folder} has format {config['format']}; this version reads format {FORMAT}"
            )
        genome = Genome.from_json(config["genome"])
        tasks = {
            name: (task["file"], int(task["vocab"]), task["readout"])
            for name, task in config["tasks"].items()
        }
    except OSError as error:
        raise ExportError(f"{folder / 'config.json'}: {error.strerror}") from None
    except SpaceError as error:
        raise ExportError(f"{folder / 'config.json'}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{folder / 'config.json'} is damaged: {type(error).__name__}: {error}"
        ) from None
    if not tasks:
        raise ExportError(f"{folder} holds a genome without weights; train it first")
    name = task or next(iter(tasks))
    if name not in tasks:
        raise no_weights(str(folder), name, tasks)
    file, vocab, readout = tasks[name]
    return filled(genome, vocab, folder / file, readout)


def no_weights(where: str, name: str, tasks: Iterable[str]) -> ExportError:
    """What to say of a task whose weights are not among those that there are."""
    known = found("tasks")
    hint = "" if name in known else likely(name, {*tasks, *known})
    return ExportError(
        f"{where} has no weights for '{name}'; {hint}it has those of {', '.join(tasks)}, and other "
        "tasks need weights that were trained on them"
    )


def filled(
    genome: Genome, vocab: int, file: Path, readout: Readout = "token", base: Base | None = None
) -> Model:
    """A model with the weights of a file, ready for evaluation.

    Raises:
        ExportError: if the file cannot be read, is damaged or belongs to another model.
    """
    try:
        with torch.device("meta"):
            model = Model(genome, vocab, readout, base)
        model = model.to_empty(device="cpu")
        load_model(model, file)
    except OSError as error:
        raise ExportError(f"{file} cannot be read: {error.strerror or error}") from None
    except BlockError as error:
        raise ExportError(f"{file.parent}: {error}") from None
    except (SafetensorError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise ExportError(
            f"the weights in {file} are damaged or belong to another genome: {text}"
        ) from None
    return model.eval()

"""A directory becomes a model that can be used: weights, vocabulary, what it was trained on.

DIR is any of

    what `archsearch export` wrote    config.json with `tasks`: one set of weights for each task
    a Hugging Face directory of ours  config.json with the genome, model.safetensors, and for a
                                      model of text tokenizer.json
    what `archsearch scale` wrote     the checkpoints step-*/ of one training, or the directory of
                                      `winner` and `baseline`, of which the winner is taken
    a run                             its best model, best/

Nothing is unpickled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from archsearch.catalogue import found
from archsearch.errors import BlockError, CorpusError, ExportError, SpaceError
from archsearch.export import load as load_export
from archsearch.export.folder import manifest
from archsearch.export.origin import below
from archsearch.genome import Genome
from archsearch.inference.vocabulary import Vocabulary
from archsearch.model import Model
from archsearch.mup import Base
from archsearch.scale import checkpoint, tokens
from archsearch.scale.sources import HUB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PREFIX = "model."
"""Of the names of weights in a Hugging Face directory."""
NAMES = ("winner", "baseline")
"""The trainings that `archsearch scale` puts side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model in eval mode, and what belongs to it."""

    folder: Path
    """Where its files are."""
    model: Model
    vocabulary: Vocabulary
    context: int | None
    """Tokens of the sequences that it was trained on; None where that is not recorded."""
    base: Base
    """The model that its hyper-parameters come from; itself where that is not recorded."""
    labels: tuple[str, ...] = ()
    """The tasks that the directory has weights for; none for text."""
    label: str = ""
    """The one of these weights."""
    task: Any = None
    """That task; None for text, and where its parameters are not recorded."""
    corpus: str = ""
    """Key of the text that it was trained on; empty where that is not recorded."""
    cache: Path = Path("runs") / "text"
    """Where the token files of its text are, or may be kept."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device


def load(
    folder: str | Path, task: str = "", tokenizer: str = "", device: torch.device | None = None
) -> Loaded:
    """The model of a directory.

    Args:
        folder: See above.
        task: Which weights, where there are several; by default the first.
        tokenizer: What `scale.tokens` knows; by default the one beside the weights, or recorded.
        device: Where the model goes; None for the CPU.

    Raises:
        ExportError: if there is no model, or it is damaged, does not fit or is from a newer
            version.
        RunError: if the last checkpoint of a training is damaged or from a newer version.
        CorpusError: if the tokenizer cannot be used.
    """
    place = _place(Path(folder))
    if (place / "state.json").is_file():
        loaded = _checkpoint(place, tokenizer)
    elif "tasks" in (config := _json(place / CONFIG)):
        loaded = _export(place, config, task)
    else:
        loaded = _hugging_face(place, config, tokenizer)
    if task and not loaded.label:
        raise ExportError(f"{place} was trained on text, not on tasks; name none")
    loaded.model.to(device or "cpu").eval()
    return loaded


def _place(folder: Path) -> Path:
    """The directory with the weights.

    Raises:
        ExportError: if there is none, or one that is not read here.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder} is no directory; name what `archsearch export` or `archsearch "
                          "scale` wrote")  # fmt: skip
    kind = manifest(folder).get("kind", "hf")
    if kind != "hf":
        raise ExportError(
            f"{folder} is for other programs (--format {kind}); export the same source with "
            "--format hf to use it here"
        )
    for place in (folder, folder / "best", *(folder / name for name in NAMES)):
        if (place / CONFIG).is_file() or (place / "state.json").is_file():
            return place
        if known := checkpoint.latest(place):
            return known[0]
    raise ExportError(
        f"{folder} holds no model: neither {CONFIG}, as `archsearch export` writes it, nor step-*, "
        f"as `archsearch scale` does{below(folder)}"
    )


def _export(folder: Path, config: Mapping[str, Any], task: str) -> Loaded:
    """What `archsearch export` wrote."""
    model = load_export(folder, task or None)
    label = task or next(iter(config["tasks"]))
    about = config["tasks"][label]
    name = about.get("tokenizer")
    of_text = [task for task, said in config["tasks"].items() if said.get("tokenizer")]
    vocabulary = (
        Vocabulary.of_text(tokens.tokenizer(name), name, model.vocab)
        if name
        else Vocabulary.of_ids(model.vocab, f"--task {of_text[0]} was" if of_text else "")
    )
    return Loaded(
        folder=folder, model=model, vocabulary=vocabulary, context=about.get("length"),
        base=_own_base(model), label=label, labels=tuple(config["tasks"]),
        task=_task(label, about), corpus=about.get("corpus", ""),
    )  # fmt: skip


def _task(label: str, about: Mapping[str, Any]) -> Any:
    """The task of an export; None if no package brings it, or it has other rows by now."""
    name = label.partition("#")[0]
    if name not in found("tasks"):
        return None
    try:
        task = found("tasks")[name].load()(**about.get("params", {}))
    except (TypeError, ValueError):
        return None
    same = (task.vocab, task.length) == (about.get("vocab"), about.get("length"))
    return task if same else None


def _hugging_face(folder: Path, config: Mapping[str, Any], tokenizer: str) -> Loaded:
    """A directory with the genome in its config and the weights as one file."""
    if not isinstance(config.get("genome"), dict):
        raise ExportError(f"{folder / CONFIG} has no genome; it is not a model of archsearch")
    known = config.get("architecture") or {}
    branch, logits = _multiplier(known.get("stack", ())), known.get("logit_multiplier", 1.0)

    def based(genome: Genome) -> Base:
        """A base as wide, over which the depth alone gives what branches are multiplied by."""
        return Base(genome.d_model, len(genome.genes) * branch, "completep")

    model = _model(folder, folder / CONFIG, config, based)
    model.logit_multiplier = logits
    of_text = tokenizer or tokens.kept(folder)
    return Loaded(
        folder=folder, model=model, context=None, base=_own_base(model),
        vocabulary=(
            _vocabulary(folder, model, of_text, "") if of_text else Vocabulary.of_ids(model.vocab)
        ),
    )  # fmt: skip


def _multiplier(entries: Sequence[Mapping[str, Any]]) -> float:
    """What branches are multiplied by where they join the stream, all by the same."""
    for entry in entries:
        inside = _multiplier(entry.get("of", ()))
        found = entry.get("multiplier", 1.0)
        if (found, inside) != (1.0, 1.0):
            return float(inside if found == 1.0 else found)
    return 1.0


def _checkpoint(folder: Path, tokenizer: str) -> Loaded:
    """One checkpoint of `archsearch scale`."""
    state = _json(folder / "state.json")
    if state.get("format") != checkpoint.FORMAT:
        raise ExportError(
            f"{folder} has format {state.get('format')}; this version reads format "
            f"{checkpoint.FORMAT}"
        )
    about = state.get("about")
    if not isinstance(about, dict) or "genome" not in about:
        raise ExportError(f"{folder / 'state.json'} is damaged: it does not say what was trained")
    model = _model(folder, folder / "state.json", about, lambda genome: Base(**about["base"]))
    corpus = str(about.get("text", ""))
    settings = about.get("settings", {})
    return Loaded(
        folder=folder, model=model, vocabulary=_vocabulary(folder, model, tokenizer, corpus),
        context=settings.get("context"), base=model.base or _own_base(model), corpus=corpus,
        cache=folder.resolve().parents[2] / "text",
    )  # fmt: skip


def _model(
    folder: Path, source: Path, about: Mapping[str, Any], based: Callable[[Genome], Base]
) -> Model:
    """The model that `source` describes, with the weights of `folder`."""
    weights = folder / WEIGHTS
    try:
        genome = Genome.from_json(about["genome"])
        base = based(genome)
    except (SpaceError, BlockError) as error:
        raise ExportError(f"{source}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{source} is damaged: {type(error).__name__}: {error}") from None
    try:
        named = {name.removeprefix(PREFIX): t for name, t in load_file(weights).items()}
        if "embedding.weight" not in named:
            raise ValueError("embedding.weight is missing")
        vocab = len(named["embedding.weight"])
        with torch.device("meta"):
            model = Model(genome, vocab, base=base)
        model = model.to_empty(device="cpu")
        fill(model, named)
    except OSError as error:
        raise ExportError(f"{weights} cannot be read: {error.strerror or error}") from None
    except (BlockError, SpaceError) as error:
        raise ExportError(f"{source}: {error}") from None
    except (SafetensorError, ValueError) as error:
        raise ExportError(
            f"{weights} is damaged or belongs to another genome than {source.name} says: "
            f"{_line(error)}"
        ) from None
    return model


@torch.no_grad()
def fill(model: Model, weights: dict[str, Tensor]) -> None:
    """Fill every parameter; weights that are one may stand under one of their names or under each.

    Raises:
        ValueError: if some are missing, left over or of another shape.
    """
    left = dict(weights)
    for name, parameter in model.named_parameters():
        if name not in left:
            raise ValueError(f"{name} is missing")
        value = left.pop(name)
        if value.shape != parameter.shape:
            shapes = f"{tuple(value.shape)}, not {tuple(parameter.shape)}"
            raise ValueError(f"{name} has the shape {shapes}")
        parameter.copy_(value)
    own = dict(model.named_parameters(remove_duplicate=False))
    wrong = [name for name, value in left.items() if not _equal(own.get(name), value)]
    if wrong:
        raise ValueError(f"{wrong[0]} has no place in this genome")


def _equal(own: Tensor | None, value: Tensor) -> bool:
    return own is not None and own.shape == value.shape and bool((own == value).all())


def _vocabulary(folder: Path, model: Model, tokenizer: str, corpus: str) -> Vocabulary:
    """The texts that a model reads."""
    above = 2 if (folder / "state.json").is_file() else 0
    name = tokenizer or tokens.kept(folder, above) or _recorded(folder, corpus)
    if not name and model.vocab == 256:
        name = tokens.BYTE
    if not name:
        raise CorpusError(
            f"the tokenizer of {folder} is not recorded; name it with --tokenizer: byte, a "
            "tokenizer.json, or a Hugging Face tokenizer"
        )
    made = tokens.tokenizer(name)
    fits = model.vocab == 256 if name == tokens.BYTE else made.vocab - 1 <= model.vocab
    if not fits:
        raise CorpusError(
            f"the tokenizer {name} has {made.vocab} ids, the model in {folder} {model.vocab}; name "
            "the one that it was trained with as --tokenizer"
        )
    return Vocabulary.of_text(made, name, model.vocab)


def _recorded(folder: Path, corpus: str) -> str:
    """The tokenizer that the text beside a training was cut with; empty if that is not known.

    Of a tokenizer.json only the name of the file is recorded, which says nothing.
    """
    for place in folder.resolve().parents[:3]:
        for file in place.glob(f"text/*-{corpus}/corpus.json") if corpus else ():
            name = str(_json(file).get("tokenizer", ""))
            if name == tokens.BYTE or name.startswith(HUB):
                return name
    return ""


def _own_base(model: Model) -> Base:
    return Base(model.genome.d_model, len(model.genome.genes))


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except OSError as error:
        raise ExportError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ExportError(f"{file} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise ExportError(f"{file} is damaged: it does not hold an object")
    return data


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

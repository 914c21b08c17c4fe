"""Many small trainings on text, side by side in processes of their own, and the memory of them.

FILE, JSON lines: what was trained and how it ended, one training a line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from archsearch.device import chosen
from archsearch.errors import RunError, TrialError
from archsearch.genome import Genome
from archsearch.model import build
from archsearch.mup import Base
from archsearch.processes import side_by_side
from archsearch.scale.corpus import Corpus
from archsearch.scale.parallel import World
from archsearch.scale.pretrain import Mark, Pretraining, Settings, Step, train
from archsearch.scale.stability import Stability, judge
from archsearch.search.fresh import write
from archsearch.sections import Recipe
from archsearch.train import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from archsearch.model import Model


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One model on one text."""

    genome: Genome
    base: Base
    recipe: Recipe
    settings: Settings

    def about(self, corpus: Corpus) -> dict[str, Any]:
        """All that its end depends on, as plain data."""
        return {
            "genome": self.genome.to_json(),
            "base": asdict(self.base),
            "recipe": self.recipe.model_dump(mode="json"),
            "settings": asdict(self.settings),
            "text": corpus.key,
        }

    def key(self, corpus: Corpus) -> str:
        """Equal for equal trainings."""
        text = json.dumps(self.about(corpus), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


class Moved(NamedTuple):
    """What became of weights from the start of a training to its end."""

    left: float
    """Share of the start that is still in them: projection on the start, over its norm."""
    grown: float
    """RMS at the end over that at the start."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a training ended."""

    marks: tuple[Mark, ...]
    stability: Stability
    why: str = ""
    """One sentence if it broke off."""
    seconds: float = 0.0
    gradient: float | None = None
    """Norm of the first gradient, before it is clipped; None where the recipe clips none."""
    moved: Mapping[str, Moved] = field(default_factory=dict, hash=False)
    """What became of the weights, by kind of parameter; without those that start at 0."""
    backends: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What computed each op, see `kernels.dispatch`."""

    @property
    def loss(self) -> float:
        """On held-out text at the end, nats per token; infinite if it broke off."""
        return math.inf if self.why or not self.marks else self.marks[-1].held_out


def train_all(
    wanted: Iterable[Training],
    sources: Sequence[str],
    tokenizer: str,
    cache: Path,
    file: Path,
    workers: int,
    on_trained: Callable[[Training, Ended], None] = lambda training, ended: None,
) -> dict[Training, Ended]:
    """How each training ended; what FILE knows is not trained again.

    Every training has a process and one thread of its own.

    Args:
        wanted: The trainings.
        sources: Of the text, see `Corpus.open`.
        tokenizer: Of the text.
        cache: Where token files are kept.
        file: The memory; made if need be.
        workers: Processes.
        on_trained: Told of each new one as it ends.

    Raises:
        CorpusError: if the text cannot be used.
        RunError: if a process dies, or FILE cannot be read or written.
    """
    corpus = Corpus.open(sources, tokenizer, cache)
    trainings = list(dict.fromkeys(wanted))
    known = recall(trainings, corpus, file)
    missing = [training for training in trainings if training not in known]
    for training, ended in side_by_side(
        _trained, missing, workers, tuple(sources), tokenizer, cache
    ):
        known[training] = ended
        row = {"key": training.key(corpus), **training.about(corpus), "ended": asdict(ended)}
        _note(file, row)
        on_trained(training, ended)
    return {training: known[training] for training in trainings}


def recall(wanted: Iterable[Training], corpus: Corpus, file: Path) -> dict[Training, Ended]:
    """How those trainings ended that FILE knows.

    Raises:
        RunError: if FILE is damaged, or cannot be mended.
    """
    known = _read(file)
    keys = {training: training.key(corpus) for training in wanted}
    return {training: known[key] for training, key in keys.items() if key in known}


def _trained(wanted: Training, sources: tuple[str, ...], tokenizer: str, cache: Path) -> Ended:
    corpus = Corpus.open(sources, tokenizer, cache)
    start = generator(wanted.settings.seed, "scale", "start")
    model = build(wanted.genome, corpus.vocab, generator=start, base=wanted.base).to(chosen())
    training = Pretraining(model, corpus, wanted.recipe, wanted.settings, World(chosen()))
    begun = {name: p.detach().clone() for name, p in model.named_parameters()}
    why, norms = "", list[float]()

    def on_step(step: Step) -> None:
        if step.number == 1 and step.norm is not None:
            norms.append(float(step.norm))

    try:
        train(training, on_step)
    except TrialError as error:
        why = str(error)
    seconds = sum(mark.seconds for mark in training.marks)
    stability = judge(training.probes.log(), math.log(corpus.vocab))
    gradient = norms[0] if norms and math.isfinite(norms[0]) else None
    moved = _moved(model, begun)
    marks = tuple(training.marks)
    return Ended(marks, stability, why, seconds, gradient, moved, training.backends)


def _moved(model: Model, begun: Mapping[str, Tensor]) -> dict[str, Moved]:
    """What became of the weights of a model since they were `begun`, by kind."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, parameter in model.named_parameters():
        start, end = begun[name].double(), parameter.detach().double()
        total = sums[model.role_of(name).kind]
        for i, product in enumerate((start * start, start * end, end * end)):
            total[i] += float(product.sum())
    return {
        kind: Moved(overlap / first, (last / first) ** 0.5)
        for kind, (first, overlap, last) in sums.items()
        if first
    }


def _read(file: Path) -> dict[str, Ended]:
    """What a file knows; a last line that a killed process left half is dropped."""
    known: dict[str, Ended] = {}
    if not file.exists():
        return known
    text = file.read_text()
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            ended = row["ended"]
            known[row["key"]] = Ended(
                tuple(Mark(**mark) for mark in ended["marks"]),
                Stability(tuple(ended["stability"]["reasons"])),
                ended["why"],
                ended["seconds"],
                ended.get("gradient"),
                {kind: Moved(*of) for kind, of in ended.get("moved", {}).items()},
                ended.get("backends", {}),
            )
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise RunError(
                    f"{file}:{number} is damaged; remove the line, and its training is done again"
                ) from None
            lines.pop()
    if not text.endswith("\n"):
        write(file, "".join(f"{line}\n" for line in lines))
    return known


def _note(file: Path, row: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(json.dumps(row) + "\n")
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}") from None

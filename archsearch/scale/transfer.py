"""Do hyper-parameters transfer? One net, its learning rate swept over widths and depths.

FILE, JSON lines: what was swept, then one training a line.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from archsearch.errors import RunError, SpaceError, nearest
from archsearch.genome import Genome
from archsearch.mup import EXPONENTS, Base, widened
from archsearch.scale.plan import ScalePlan, deepened, motif
from archsearch.scale.trainings import Training
from archsearch.sections import Recipe
from archsearch.train import rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from archsearch.mup import Scheme
    from archsearch.scale.pretrain import Settings
    from archsearch.scale.trainings import Ended

Axis = Literal["width", "depth"]
SCHEMES: Mapping[Axis, tuple[Scheme, ...]] = {
    "width": ("sp", "mup"),
    "depth": ("mup", "depth_mup", "completep"),
}
"""What differs over an axis, the control first: over width all but SP are muP, and over depth SP is
muP, with a = 0."""
NETS = ("attention-net", "mamba2-net")
"""The spaces that are swept if nothing is named."""
SET_UP = (
    "recipe.steps=120", "recipe.batch=8", "recipe.betas=[0.9, 0.95]", "recipe.warmup=0.1",
    "recipe.schedule=cosine", "recipe.weight_decay=0", "recipe.clip=0", "recipe.evals=1",
)  # fmt: skip
"""How a net is trained unless it is said otherwise. Without clipping: its limit is one number for
all sizes, and gradients of other sizes have other norms."""
FORMAT = 1
OVERHEAD = 1e8
"""Work of a branch in a step that does not depend on its width."""
DECAY_RATIO = 4
"""Widths of the base up to which it is looked at what decay leaves, or the next there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """What is trained.

    Raises:
        SpaceError: if the net cannot have a width or a depth.
        BlockError: if a block cannot be built at a width.
        RunError: if sizes or learning rates do not rise, or a scheme is unknown.
    """

    genome: Genome
    """The base."""
    widths: tuple[int, ...]
    """Rising, that of the base first."""
    depths: tuple[int, ...]
    """In branches; rising, that of the base first."""
    schemes: tuple[Scheme, ...]
    log2_lrs: tuple[float, ...]
    """Learning rates of the base, as powers of two; rising."""
    seeds: int
    recipe: Recipe
    settings: Settings

    @classmethod
    def of(
        cls, genome: Genome, widths: Sequence[int], depths: Sequence[int], **more: Any
    ) -> Design:
        """The design whose base is a genome at the first width, repeated to the first depth."""
        short = motif(genome)
        length = len(short.genes)
        for depth in depths:
            if depth % length:
                raise SpaceError(
                    f"depth {depth}: {short.text()} are {length} branches; legal: multiples of "
                    f"{length}, e.g. {length}, {8 * length}"
                )
        base = widened(deepened(short, depths[0] // length), widths[0])
        return cls(genome=base, widths=tuple(widths), depths=tuple(depths), **more)

    def __post_init__(self) -> None:
        for what, values in (
            ("widths", self.widths), ("depths", self.depths), ("learning rates", self.log2_lrs)
        ):  # fmt: skip
            if sorted(set(values)) != list(values):
                raise RunError(f"{what} must rise; here: {', '.join(map(str, values))}")
        if len(self.log2_lrs) < 3:
            raise RunError(f"a sweep has three learning rates or more, not {len(self.log2_lrs)}")
        for scheme in self.schemes:
            if scheme not in EXPONENTS:
                raise RunError(f"unknown scheme '{scheme}'; {nearest(scheme, EXPONENTS)}")
        if len(self.widths) + len(self.depths) < 3:
            raise RunError(
                "one width and one depth say nothing of transfer; name another of either"
            )
        for width in self.widths:
            widened(self.genome, width)

    def trainings(self) -> list[Training]:
        """Every training, cheap ones first."""
        wanted = self._sized("mup", self.genome)
        for scheme, width in product(self._schemes("width"), self.widths[1:]):
            wanted += self._sized(scheme, widened(self.genome, width))
        for scheme, depth in product(self._schemes("depth"), self.depths[1:]):
            wanted += self._sized(scheme, deepened(self.genome, depth // self.depths[0]))
        return [*wanted, *self._decayed()]

    def work(self, training: Training, vocab: int) -> float:
        """About how much work a training is, in FLOPs of a large matrix product."""
        recipe, context = training.recipe, training.settings.context
        plan = ScalePlan(
            genome=training.genome, base=training.base, recipe=recipe, context=context, vocab=vocab
        )
        return plan.tokens * plan.flops + recipe.steps * OVERHEAD * len(training.genome.genes)

    def _schemes(self, axis: Axis) -> list[Scheme]:
        return [scheme for scheme in SCHEMES[axis] if scheme in self.schemes]

    def _sized(self, scheme: Scheme, genome: Genome) -> list[Training]:
        """One size in one scheme, at every learning rate and seed."""
        return [
            self._training(scheme, genome, {"lr": 2.0**log2_lr}, seed)
            for log2_lr, seed in product(self.log2_lrs, range(self.seeds))
        ]

    def _decayed(self) -> list[Training]:
        """The base and a wider one with decay, scaled to its width and, as a control, not.

        The decay halves what is left of the start in the course of the training.
        """
        if len(self.widths) < 2 or "mup" not in self.schemes:
            return []
        near = [width for width in self.widths[1:] if width <= DECAY_RATIO * self.widths[0]]
        wide = max(near, default=self.widths[1])
        lr = 2.0 ** self.log2_lrs[len(self.log2_lrs) // 2]
        decay = math.log(2) / (lr * sum(rate(self.recipe, i) for i in range(self.recipe.steps)))
        unscaled = decay * self.widths[0] / wide  # as the width is a factor on the decay
        cases = ((self.widths[0], decay), (wide, decay), (wide, unscaled))
        return [
            self._training("mup", widened(self.genome, width), {"lr": lr, "weight_decay": of}, seed)
            for (width, of), seed in product(cases, range(self.seeds))
        ]

    def _training(
        self, scheme: Scheme, genome: Genome, told: Mapping[str, float], seed: int
    ) -> Training:
        return Training(
            genome=genome,
            base=Base(self.widths[0], self.depths[0], scheme),
            recipe=self.recipe.model_copy(update=dict(told)),
            settings=replace(self.settings, seed=seed),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """How one training ended."""

    width: int
    depth: int
    """Branches."""
    scheme: Scheme
    lr: float
    """Of the base."""
    seed: int
    loss: float
    """On held-out text, nats per token; infinite if it broke off."""
    decay: float = 0.0
    """Weight decay of the base."""
    left: float | None = None
    """Share of the start that is left in the hidden matrices; None without decay."""
    grown: float | None = None
    """Their RMS at the end over that at the start."""

    @classmethod
    def of(cls, training: Training, ended: Ended) -> Row:
        """What is kept of a training."""
        decay = training.recipe.weight_decay
        moved = ended.moved.get("hidden") if decay else None
        return cls(
            width=training.genome.d_model, depth=len(training.genome.genes),
            scheme=training.base.scheme, lr=training.recipe.lr, seed=training.settings.seed,
            loss=round(ended.loss, 5), decay=decay,
            left=round(moved.left, 4) if moved else None,
            grown=round(moved.grown, 4) if moved else None,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What was swept, and what came of it."""

    genome: Genome
    """The base."""
    recipe: Recipe
    context: int
    """Tokens of a sequence."""
    text: str
    """Name of the text."""
    guessing: float
    """The loss of guessing, ln V, in nats."""
    rows: tuple[Row, ...]

    def write(self, file: Path) -> None:
        """Keep it.

        Raises:
            RunError: if the file cannot be written.
        """
        head = {
            "format": FORMAT, "genome": self.genome.to_json(), "recipe": self.recipe.model_dump(),
            "context": self.context, "text": self.text, "guessing": self.guessing,
        }  # fmt: skip
        lines = [json.dumps(head), *map(json.dumps, self._plain())]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise RunError(f"{file} cannot be written: {error.strerror}") from None

    def _plain(self) -> Iterable[dict[str, Any]]:
        text = motif(self.genome).text()
        for row in self.rows:
            told = {key: value for key, value in asdict(row).items() if value is not None}
            if not row.decay:
                del told["decay"]
            told["loss"] = row.loss if math.isfinite(row.loss) else None
            yield {"genome": text} | told

    @classmethod
    def read(cls, file: Path) -> Swept:
        """What `write` wrote.

        Raises:
            RunError: if the file is missing, damaged or of another version.
        """
        try:
            first, *lines = file.read_text().splitlines()
            head = json.loads(first)
            if head["format"] != FORMAT:
                raise RunError(
                    f"{file} has format {head['format']}; this archsearch reads {FORMAT}. "
                    "Make it anew with the same command"
                )
            rows = [json.loads(line) for line in lines]
            return cls(
                genome=Genome.from_json(head["genome"]), recipe=Recipe(**head["recipe"]),
                context=head["context"], text=head["text"], guessing=head["guessing"],
                rows=tuple(_row(row) for row in rows),
            )  # fmt: skip
        except OSError as error:
            raise RunError(f"{file} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{file} holds no sweeps: {type(error).__name__}: {error}. It is what `archsearch "
                "mup-check` writes"
            ) from None


def _row(told: dict[str, Any]) -> Row:
    del told["genome"]
    told["loss"] = math.inf if told["loss"] is None else told["loss"]
    return Row(**told)

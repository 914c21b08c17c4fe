"""Training of a language model on text, in one process or in many.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from archsearch.errors import Diverged
from archsearch.kernels.dispatch import merged, recorded
from archsearch.model import Extras, Model
from archsearch.scale import checkpoint
from archsearch.scale.parallel import World, spread, without_exchange
from archsearch.scale.probes import Probes
from archsearch.train import clip, cross_entropy, generator, objective, optimizers, rate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from archsearch.scale.corpus import Corpus
    from archsearch.sections import Recipe


FAR = 2.0
"""Loss on held-out text over that of guessing, above which a training has diverged, unless it began
there (tied embeddings may)."""
LOOKS = 64
"""Moments at which a training is looked into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a training on text is told beside the recipe."""

    context: int = 256
    """Tokens of a sequence."""
    accumulate: int = 1
    """Parts that the sequences of a step are cut into, one after the other: less memory."""
    held_out: int = 64
    """Sequences that are evaluated."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What it computes in; weights, gradients and moments are float32."""
    compile: bool = False
    """Whether `torch.compile` makes the step."""
    shard: bool = False
    """Whether processes share the weights (FSDP2) instead of holding all of them each (DDP)."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An evaluation on the held-out text."""

    step: int
    loss: float
    """Mean training loss since the last mark, in nats per token."""
    held_out: float
    """Loss on the held-out sequences."""
    seconds: float
    """Of training since the last mark."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step; tensors, so that no device is waited for."""

    number: int
    loss: Tensor
    """Before the step, in nats per token, the mean over all processes."""
    norm: Tensor | None
    """Of the gradient before clipping; None if nothing is clipped."""


class Pretraining:
    """One model on one corpus, step by step.

    Batches are a function of the seed and the step, so that a training that was put down, or goes
    on in more processes, meets the same ones.

    Args:
        model: With weights, the same in every process. Tables of rows are trained densely.
        corpus: The text.
        recipe: Steps, sequences per step, learning rate and the like.
        settings: The rest.
        world: The processes that train together.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        recipe: Recipe,
        settings: Settings,
        world: World | None = None,
    ) -> None:
        self.corpus, self.recipe, self.settings = corpus, recipe, settings
        self.world = world or World()
        for module in model.modules():
            if getattr(module, "sparse", False):
                module.sparse = False  # type: ignore[assignment]
        self.model = model
        dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
        self._spread: Any = spread(model, self.world, shard=settings.shard, dtype=dtype)
        if settings.compile:
            self._spread = torch.compile(self._spread)
        self._parameters = list(model.parameters())
        self.optimizers = optimizers(model, recipe)
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(recipe, i))
            for optimizer in self.optimizers
        ]
        self.step = 0
        self.begun: float | None = None
        """Training loss of the first step, before it; None until then."""
        self.marks: list[Mark] = []
        self.probes = Probes()
        self.backends: dict[str, str] = {}
        """What computed each op, see `kernels.dispatch`."""

    @property
    def learning_rate(self) -> float:
        """Of the base model's parameters, at the next step."""
        return self.recipe.lr * rate(self.recipe, self.step)

    def descend(self) -> Step:
        """One optimizer step."""
        settings, recipe = self.settings, self.recipe
        rows = self.corpus.batch(
            settings.seed, self.step, recipe.batch, settings.context,
            rank=self.world.rank, world=self.world.size,
        )  # fmt: skip
        rows = rows.to(self.world.device, non_blocking=True)
        noise = generator(settings.seed, "noise", self.step, self.world.rank)
        total = torch.zeros((), device=self.world.device)
        parts = rows.chunk(settings.accumulate)
        self._spread.train()
        for index, part_BT in enumerate(parts):
            with without_exchange(self._spread, only_if=index < len(parts) - 1):
                extras = Extras(noise)
                logits_BTV = self._spread(part_BT[:, :-1], extras)
                loss = cross_entropy(logits_BTV, part_BT[:, 1:])
                wanted = objective(loss, logits_BTV, part_BT[:, 1:], extras, recipe.z_loss)
                (wanted * (len(part_BT) / len(rows))).backward()
            total += loss.detach() * (len(part_BT) / len(rows))
        norm = clip(self._parameters, recipe.clip) if recipe.clip else None
        for optimizer, schedule in zip(self.optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        loss = self.world.mean(total)
        if self.begun is None:
            self.begun = float(loss)
        return Step(self.step, loss, norm)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Loss on the held-out text, in nats per token."""
        self._spread.eval()
        losses = []
        mine = self.corpus.held_out(self.settings.held_out, self.settings.context)
        for rows in mine.split(max(1, self.recipe.batch // self.settings.accumulate)):
            rows_BT = rows.to(self.world.device)
            logits_BTV = self._spread(rows_BT[:, :-1])
            losses.append(cross_entropy(logits_BTV, rows_BT[:, 1:]) * len(rows))
        return float(torch.stack(losses).sum()) / len(mine)

    def mark(self, loss: float, seconds: float) -> Mark:
        """Evaluate, and note it beside the training loss since the last mark.

        Raises:
            Diverged: if a loss is not finite, or above the first one and twice that of guessing.
        """
        held_out, guessing = self.evaluate(), math.log(self.corpus.vocab)
        self._require(math.isfinite(loss), f"the loss is {loss:.3g}")
        self._require(
            held_out <= max(self.begun or 0.0, FAR * guessing),
            f"the loss on held-out text is {held_out:.3g}, that of guessing {guessing:.3g},",
        )
        self.marks.append(Mark(self.step, loss, held_out, seconds))
        return self.marks[-1]

    def look(self, loss: float) -> None:
        """Note what grows before a training becomes unstable, on a few held-out sequences.

        Raises:
            Diverged: if the loss is not finite.
        """
        few = max(1, self.recipe.batch // 8)
        rows_BT = self.corpus.held_out(few, self.settings.context)[:, :-1].to(self.world.device)
        self.probes.look(self.step, loss, self.model, rows_BT, self.optimizers)
        self._require(math.isfinite(loss), f"the loss is {loss:.3g}")

    def _require(self, well: bool, said: str) -> None:
        if not well:
            raise Diverged(f"{said} after step {self.step} at learning rate {self.recipe.lr:g}")

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write a checkpoint, see `checkpoint.save`; that of the least held-out loss is kept."""
        state = {
            "step": self.step,
            "begun": self.begun,
            "about": about,
            "marks": [asdict(mark) for mark in self.marks],
            "probes": asdict(self.probes),
            "backends": self.backends,
        }
        best = min(self.marks, key=lambda mark: mark.held_out).step if self.marks else None
        checkpoint.save(folder, self.model, self.optimizers, state, self.world, best)

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on from a checkpoint that `checkpoint.latest` found."""
        checkpoint.restore(folder, self.model, self.optimizers)
        self.step, self.begun = state["step"], state.get("begun")
        self.marks = [Mark(**mark) for mark in state["marks"]]
        self.probes = Probes(**state["probes"])
        self.backends = dict(state.get("backends", {}))
        for schedule in self._schedules:
            schedule.last_epoch = self.step
            for group, lr, factor in zip(
                schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = lr * factor(self.step)


def train(
    training: Pretraining,
    on_step: Callable[[Step], None] = lambda step: None,
    on_mark: Callable[[Mark], None] = lambda mark: None,
) -> None:
    """Train to the end of the recipe, with an evaluation at each of its stops.

    Raises:
        Diverged: if a loss is not finite, or on held-out text above the first one and twice that of
            guessing.
    """
    recipe = training.recipe
    every = math.ceil(recipe.steps / LOOKS)
    for stop in (stop for stop in recipe.stops if stop > training.step):
        losses: list[Tensor] = []
        seconds, looked = 0.0, 0
        while training.step < stop:
            began = time.perf_counter()
            with recorded() as used:
                step = training.descend()
            training.backends = merged(training.backends, used)
            losses.append(step.loss)
            on_step(step)
            seconds += time.perf_counter() - began
            if training.step % every == 0 or training.step == stop:
                training.look(float(torch.stack(losses[looked:]).mean()))
                looked = len(losses)
        on_mark(training.mark(float(torch.stack(losses).mean()), seconds))

"""The one training loop.

Shapes: B batch, T time, V vocabulary, N rows drawn at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from archsearch.errors import Diverged
from archsearch.model import Extras
from archsearch.mup import EPS
from archsearch.seeds import seed

if TYPE_CHECKING:
    from archsearch.model import Model
    from archsearch.sections import Recipe

CHUNK = 2048
"""Training rows drawn at once: enough to spread the fixed cost of a draw over many steps."""
EVAL_BATCH = 128
"""Held-out rows that are evaluated at once."""


class Task(Protocol):
    """What a task must offer; see `mad_tasks` for examples.

    It may have `harder()` too: a task with the same vocabulary and readout that asks for more, or
    None; where it reads rows instead of making them up, `digest()`: a text that tells when they are
    others, and `about()`: one line on them; where rows are text, `tokenizer`: what makes ids of it,
    see `scale.tokens`.
    """

    name: str
    vocab: int
    readout: Any

    @property
    def length(self) -> int: ...  # noqa: D102

    @property
    def chance(self) -> float: ...  # noqa: D102

    def sample(  # noqa: D102
        self, n: int, rng: Generator, *, train: bool = False
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation on held-out rows."""

    step: int
    loss: float
    """Mean cross-entropy of the training batches since the last point, in nats per scored token."""
    accuracy: float
    """Share of scored tokens answered right."""
    error: float
    """Standard error of `accuracy` over rows."""
    solved: bool = False


def generator(*names: object) -> Generator:
    """A CPU random stream by name."""
    return Generator().manual_seed(seed(*names))


class Training:
    """One model on fresh rows of one task: an iterator over the points of its curve.

    Ends after `recipe.steps` steps, or earlier once the task is solved. Between two points it can
    be put down with `state_dict` and taken up again, to the same curve. Rows and noise are drawn on
    the CPU, so they are the same on every device.

    Args:
        model: What is trained.
        task: Where rows come from.
        recipe: How.
        data: Draws the rows.
        held_out: Rows that are evaluated.
        noise: Draws what is random in training, router noise and layer dropout.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        recipe: Recipe,
        data: Generator,
        held_out: tuple[Tensor, Tensor],
        noise: Generator | None = None,
    ) -> None:
        self.model, self.task, self.recipe = model, task, recipe
        self.step, self.ended = 0, False
        inputs_NT, targets_NT = held_out
        self._held_out = inputs_NT.to(model.device), targets_NT.to(model.device)
        self._noise, self._rows = noise, Rows(task, recipe, data, model.device)
        self._optimizers, self._parameters = optimizers(model, recipe), list(model.parameters())
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(recipe, i))
            for optimizer in self._optimizers
        ]
        self._stops = recipe.stops
        model.train()

    def __iter__(self) -> Training:
        return self

    def __next__(self) -> Point:
        """Train up to the next evaluation.

        Raises:
            Diverged: if the loss or a logit is not finite.
        """
        stop = next((stop for stop in self._stops if stop > self.step), None)
        if self.ended or stop is None:
            raise StopIteration
        losses = [self._descend() for _ in range(stop - self.step)]
        self.step = stop
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise Diverged(f"the loss on {self.task.name} is {mean} before step {stop}")
        accuracy, error = evaluate(self.model, self._held_out)
        if math.isnan(accuracy):
            raise Diverged(f"the logits on {self.task.name} are not finite after step {stop}")
        solved = accuracy >= self.recipe.solved
        self.ended = solved or stop == self.recipe.steps
        return Point(stop, mean, accuracy, error, solved)

    def _descend(self) -> Tensor:
        """One optimizer step; the loss before it."""
        recipe = self.recipe
        inputs_BT, targets_BT = next(self._rows)
        extras = Extras(self._noise)
        logits_BTV = self.model(inputs_BT, extras)
        loss = cross_entropy(logits_BTV, targets_BT)
        self.model.zero_grad(set_to_none=True)
        objective(loss, logits_BTV, targets_BT, extras, recipe.z_loss).backward()
        if recipe.clip:
            clip(self._parameters, recipe.clip)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; of a training that ended, the model alone."""
        state: dict[str, Any] = {
            "step": self.step, "ended": self.ended, "model": self.model.state_dict()
        }  # fmt: skip
        if self.ended:
            return state
        return state | {
            "rows": self._rows.state_dict(),
            "noise": None if self._noise is None else self._noise.get_state(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "schedules": [schedule.state_dict() for schedule in self._schedules],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a training of the same model, task and recipe where it was put down."""
        self.step, self.ended = state["step"], state["ended"]
        self.model.load_state_dict(state["model"])
        if self.ended:
            return
        self._rows.load_state_dict(state["rows"])
        if self._noise is not None:
            self._noise.set_state(state["noise"])
        for optimizer, known in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        for schedule, known in zip(self._schedules, state["schedules"], strict=True):
            schedule.load_state_dict(known)


class Rows:
    """Endless training batches, drawn many at a time."""

    def __init__(self, task: Task, recipe: Recipe, data: Generator, device: torch.device) -> None:
        self._task, self._data, self._batch, self._device = task, data, recipe.batch, device
        self._batches = batches_drawn(recipe)
        self._before, self._used = data.get_state(), 0
        self._drawn: list[tuple[Tensor, Tensor]] = []

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self._used == len(self._drawn):
            self._draw()
        self._used += 1
        return self._drawn[self._used - 1]

    def _draw(self) -> None:
        self._before, self._used = self._data.get_state(), 0
        rows = self._task.sample(self._batches * self._batch, self._data, train=True)
        parts = (part.to(self._device).split(self._batch) for part in rows)
        self._drawn = list(zip(*parts, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The random stream before the present draw, and how many of its batches are used."""
        return {"before": self._before, "used": self._used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batches that were used."""
        self._data.set_state(state["before"])
        self._draw()
        self._used = state["used"]


def objective(
    loss: Tensor, logits_BTV: Tensor, targets_BT: Tensor, extras: Extras, z_loss: float
) -> Tensor:
    """What training minimises: the loss of the task, of early exits, of the blocks, and the z-loss.

    The losses of exits are averaged with that of the last layer by their weights. The z-loss is the
    mean of log(sum(exp(logits)))^2 over scored tokens (PaLM, arXiv 2204.02311, section 5).
    """
    total = loss
    for weight, exit_BTV in extras.exits:
        total = total + weight * cross_entropy(exit_BTV, targets_BT)
    total = total / (1 + sum(weight for weight, _ in extras.exits))
    if z_loss:
        scored_BT = targets_BT != -100
        z_BT = logits_BTV.float().logsumexp(-1) * scored_BT
        total = total + z_loss * z_BT.square().sum() / scored_BT.sum()
    return sum(extras.losses, total)


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean over scored tokens, in nats; targets of -100 are not scored."""
    return F.cross_entropy(logits_BTV.flatten(0, -2).float(), targets_BT.flatten())


@torch.no_grad()
def evaluate(
    model: Model, held_out: tuple[Tensor, Tensor], batch: int = EVAL_BATCH
) -> tuple[float, float]:
    """Token accuracy on held-out rows, and its standard error over rows.

    Both are NaN if a logit is not finite.
    """
    model.eval()
    right, scored, finite = [], [], True
    for inputs_BT, targets_BT in zip(*(t.split(batch) for t in held_out), strict=True):
        mask_BT = targets_BT != -100
        logits_BTV = model(inputs_BT)
        finite = finite and bool(logits_BTV.isfinite().all())
        hit_BT = (logits_BTV.argmax(-1) == targets_BT) & mask_BT
        right.append(hit_BT.sum(1))
        scored.append(mask_BT.sum(1))
    model.train()
    if not finite:
        return math.nan, math.nan
    right_N, scored_N = torch.cat(right).double(), torch.cat(scored).double()
    accuracy = right_N.sum() / scored_N.sum()
    residual_N = (right_N - accuracy * scored_N) / scored_N.mean()
    error = residual_N.square().sum().sqrt() / len(residual_N)
    return float(accuracy), float(error)


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate at a step, as a share of the peak."""
    warm = round(recipe.steps * recipe.warmup)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, recipe.steps - warm)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if recipe.schedule == "wsd":
        return min(1.0, max(0.0, (recipe.steps - step) / max(1.0, recipe.steps / 5)))
    if recipe.schedule == "multistep":
        return 1.0 if step < 0.8 * recipe.steps else 0.316 if step < 0.9 * recipe.steps else 0.1
    return 1.0


def batches_drawn(recipe: Recipe) -> int:
    """How many batches are drawn at once."""
    return max(1, min(recipe.steps, CHUNK // recipe.batch))


def optimizers(model: Model, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW that decays matrices only; Adam on the rows that were met, for tables with `sparse`.

    A table is an `nn.Embedding`; with `sparse` its gradient holds the rows of the batch alone, and
    so much of it is updated: other rows keep their value and their moments, and none decays.
    """
    embeddings = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    sparse = {id(embedding.weight) for embedding in embeddings if embedding.sparse}
    dense: dict[tuple[float, ...], list[Tensor]] = {}
    rows: dict[tuple[float, ...], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        scales = model.scales[name]
        decayed = model.role_of(name).kind in ("hidden", "readout")
        decay = recipe.weight_decay * scales.weight_decay * decayed
        if id(parameter) in sparse:
            rows.setdefault((recipe.lr * scales.lr, EPS * scales.eps), []).append(parameter)
        else:
            key = (recipe.lr * scales.lr, EPS * scales.eps, decay)
            dense.setdefault(key, []).append(parameter)
    adamw = torch.optim.AdamW(
        [
            {"params": group, "lr": lr, "eps": eps, "weight_decay": decay}
            for (lr, eps, decay), group in dense.items()
        ],
        betas=recipe.betas,
        fused=True,
    )
    if not rows:
        return [adamw]
    tables_of = [{"params": group, "lr": lr, "eps": eps} for (lr, eps), group in rows.items()]
    return [adamw, torch.optim.SparseAdam(tables_of, betas=recipe.betas)]


@torch.no_grad()
def clip(parameters: list[torch.nn.Parameter], most: float) -> Tensor:
    """Scale all gradients, sparse ones too, down to a total norm of at most `most`.

    Returns the norm before.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    torch._foreach_mul_(gradients, torch.clamp(most / (norm + 1e-6), max=1.0))
    return norm

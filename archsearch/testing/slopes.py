"""How far models of a block move in training, and how that grows with width and depth.

The stream is looked at, the input of the final norm, where the loss is scored: at the last tokens
of a text that can be learned. An update is aligned with the inputs that it comes from only as long
as fewer of them are added up than the stream is wide; random targets at every token give slopes of
-0.4 where 0 is right. For the same reason, whatever does not grow is kept narrow.

Shapes: B rows, T time, N scored tokens, D model width, V vocabulary, R numbers of one token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from statistics import fmean, linear_regression, stdev
from typing import Any

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from archsearch.block import Block
from archsearch.genome import Gene, Genome
from archsearch.model import Extras, Model, build
from archsearch.mup import Base, Scheme, widened
from archsearch.sections import Recipe
from archsearch.testing.cases import Case, cases, refusal, stream
from archsearch.train import Training, cross_entropy, objective

VOCAB, ROWS, TIME, SCORED = 16, 2, 48, 16
"""Of the text: letters, sequences in the batch, their length, and tokens scored at their ends."""
LR = 2.0**-7
NARROW = 16
"""Most channels of a head, states, keys ...: numbers that do not grow with the width."""
WIDE = 2
"""Width of the base model over that of the case: 64 beside 16."""
WARM = 2
"""Steps before movements are measured: what starts at 0 has left it by then."""
STEP = 2.0**-30
"""Size of the step that is measured, in float64: what moves is linear in it."""
STILL = 1e-5
"""Movement that is rounding alone, in units of `STEP`."""

Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Text:
    """A task whose every batch is the same piece of a text: each letter is followed by one of two.

    `start` names the piece.
    """

    start: int = 0
    name: str = "text"
    vocab: int = VOCAB
    readout: str = "token"
    length: int = TIME
    chance: float = 1 / VOCAB

    @property
    def rows(self) -> Rows:
        """inputs_BT and targets_BT, -100 where nothing is scored."""
        g = stream("text", self.start)
        next_V2 = torch.rand(VOCAB, VOCAB, generator=g).argsort(-1)[:, :2]
        text = [torch.randint(VOCAB, (ROWS,), generator=g)]
        for _ in range(TIME):
            rarer_B = (torch.rand(ROWS, generator=g) < 0.3).long()
            text.append(next_V2[text[-1], rarer_B])
        text_BT = torch.stack(text, 1)
        targets_BT = text_BT[:, 1:].clone()
        targets_BT[:, :-SCORED] = -100
        return text_BT[:, :-1], targets_BT

    def sample(self, n: int, rng: Generator, *, train: bool = False) -> Rows:
        """The rows, over and over."""
        inputs_BT, targets_BT = self.rows
        return inputs_BT.repeat(n // ROWS, 1), targets_BT.repeat(n // ROWS, 1)

    def training(self, model: Model, steps: int, evals: int = 1) -> Training:
        """Adam at a constant rate; each `next` takes a share of the steps."""
        recipe = Recipe(
            steps=steps, evals=evals, batch=ROWS, lr=LR, betas=(0.9, 0.95), warmup=0.0,
            schedule="constant", clip=0.0,
        )  # fmt: skip
        # one held-out token, which nothing answers right: training does not end early
        last_11 = self.rows[0][:1, -1:]
        task: Any = self
        return Training(
            model, task, recipe, stream("rows"), (last_11, torch.full_like(last_11, -1))
        )


@dataclass(frozen=True)
class Net:
    """Models of copies of one block, at any width and depth."""

    case: Case
    scheme: Scheme = "completep"
    wide: int = WIDE
    """Width of the base model over that of the case."""
    deep: int = 2
    """Copies in the base model."""
    shared: bool = False
    """Whether all copies are one set of weights."""

    def build(self, factor: int = 1, copies: int | None = None, start: int = 0) -> Model:
        """The model `factor` times as wide as the base, with so many copies of the block."""
        width = self.wide * self.case.width
        base = Base(width, len(self.genome(self.deep).genes), self.scheme)
        genome = widened(self.genome(copies or self.deep), factor * width)
        return build(genome, VOCAB, generator=stream("net", start), base=base)

    def genome(self, copies: int) -> Genome:
        """The architecture, as wide as the case.

        A block that is never normalised reads the embedding: a chain of such blocks is a power.
        """
        info, (share, other) = self.case.block.info, ("A", "B") if self.shared else (None, None)
        gene = Gene.of(info.name, share, self.case.inner, **dataclasses.asdict(self.case.config))
        if info.joins == "next":
            return Genome(self.case.width, (gene, Gene.of("swiglu", other)) * copies)
        if not info.prenorm and info.wraps is None:
            gene = dataclasses.replace(gene, inputs=(0,))
        return Genome(self.case.width, (gene,) * copies)


def settings(block: type[Block]) -> list[Case]:
    """The fewest cases that have every parameter of the block, with all that can be `NARROW`."""
    missing, found = set(block.roles), list[Case]()
    for case in cases(block, drawn=0):
        names = [name for name, _ in case.empty().named_parameters()]
        met = {role for role in missing if any(fnmatchcase(name, role) for name in names)}
        if met or not found:
            found.append(_narrow(case))
            missing -= met
    return found


def _narrow(case: Case) -> Case:
    for name, dim in case.block.info.dims.items():
        value, grows = getattr(case.config, name), name in case.block.grows
        if type(value) is int and value > NARROW and NARROW in dim and not grows:
            config = dataclasses.replace(case.config, **{name: NARROW})
            smaller = dataclasses.replace(case, config=config)
            case = case if refusal(smaller) else smaller
    return case


@dataclass(frozen=True)
class Seen:
    """What a forward pass of training leaves at the scored tokens."""

    loss: Tensor
    """What training minimises."""
    stream: Tensor
    """x_ND, before the final norm."""
    logits: Tensor
    """logits_NV."""
    branches: Tensor
    """y_NR, the outputs of all branches side by side, each as often as it is used."""
    added: Tensor
    """What blocks add to the loss, as one row."""


def observe(model: Model, text: Text) -> Seen:
    """A forward pass of training, without noise."""
    inputs_BT, targets_BT = text.rows
    scored_BT, last, outputs = targets_BT != -100, list[Tensor](), list[Tensor]()

    def before(module: object, given: tuple[Tensor]) -> None:
        last.append(given[0].detach()[scored_BT])

    def after(module: object, given: object, y_BTD: Tensor) -> None:
        outputs.append(y_BTD.detach()[scored_BT])

    hooks = [branch.register_forward_hook(after) for branch in model.stack.branches.values()]
    hooks.append(model.final_norm.register_forward_pre_hook(before))
    extras = Extras()
    logits_BTV = model.train()(inputs_BT, extras)
    for hook in hooks:
        hook.remove()
    loss = objective(cross_entropy(logits_BTV, targets_BT), logits_BTV, targets_BT, extras, 0.0)
    added = [loss.new_empty(0), *(one.detach().reshape(1) for one in extras.losses)]
    logits_NV = logits_BTV.detach()[scored_BT]
    return Seen(loss, last[-1], logits_NV, torch.cat(outputs, -1), torch.cat(added)[None])


class Frozen(TorchFunctionMode):
    """Whatever the first forward pass sorts, later ones sort alike: routing stands still.

    A step may be too small to change a choice and still decide a tie, as in routers that start
    at 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[Tensor] = []
        self.at: int | None = None
        """Place in `orders`; None while they are recorded."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        done = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in ("topk", "sort"):
            return done
        if self.at is None:
            self.orders.append(done.indices)
            return done
        order, axis = self.orders[self.at], (kwargs or {}).get("dim", -1)
        self.at += 1
        return type(done)((args[0].gather(axis, order), order))


BEHIND = ("final_norm.weight", "final_norm.bias", "readout.weight")
"""Parameters that move the logits alone."""


def group(name: str) -> str:
    """The group of a parameter: that of all copies of the block, or all that a wrapper holds."""
    if not name.startswith("stack.branches."):
        return name
    parts = ["*" if part.isdigit() else part for part in name.split(".")[3:]]
    return "inner" if parts[:2] == ["block", "inner"] else ".".join(parts).removeprefix("block.")


def movements(model: Model, text: Text) -> dict[str, float | None]:
    """log2 of how far a small step of Adam in one group of parameters alone moves the stream.

    The mean logarithm over tokens, for a normalisation of what is near 0 has heavy tails; a token
    that does not move, such as one that a router leaves out, does not count. A group that does not
    reach the stream moves an added loss; None if it moves nothing.
    """
    observe(model.double(), text).loss.backward()
    groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            step = -STEP * model.scales[name].lr * parameter.grad.to_dense().sign()
            groups.setdefault(group(name), []).append((parameter, step))
    found: dict[str, float | None] = {}
    with torch.no_grad():
        frozen = Frozen()
        with frozen:
            before = observe(model, text)
        for name, steps in groups.items():
            kept = [moved.clone() for moved, _ in steps]
            for moved, step in steps:
                moved.add_(step)
            frozen.at = 0
            with frozen:
                after = observe(model, text)
            for (moved, _), old in zip(steps, kept, strict=True):
                moved.copy_(old)
            found[name] = None
            for seen in ("logits",) if name in BEHIND else ("stream", "added"):
                change_NR = (getattr(after, seen) - getattr(before, seen)) / STEP
                rms_N = change_NR.square().mean(-1).sqrt()
                moved_N = rms_N[rms_N > STILL]
                if found[name] is None and len(moved_N):
                    found[name] = float(moved_N.log2().mean())
    return found


@dataclass(frozen=True)
class Slope:
    """log2 of something against log2 of a size."""

    slope: float
    error: float
    """Standard error over starts; NaN of one."""
    curve: tuple[float, ...]
    """The mean over starts at each size, less that at the first."""

    @classmethod
    def of(cls, sizes: Sequence[int], table: Sequence[Sequence[float | None]]) -> Slope | None:
        """From a row for each start, with a value for each size; None if a size has none."""
        columns = [[v for v in column if v is not None] for column in zip(*table, strict=True)]
        if not all(columns):
            return None
        x, means = [math.log2(size) for size in sizes], [fmean(column) for column in columns]
        whole = [[v for v in row if v is not None] for row in table]
        each = [linear_regression(x, row).slope for row in whole if len(row) == len(x)]
        error = stdev(each) / len(each) ** 0.5 if len(each) > 1 else math.nan
        curve = tuple(mean - means[0] for mean in means)
        return cls(linear_regression(x, means).slope, error, curve)


def measured(
    models: Mapping[int, Callable[[int], Model]],
    starts: Sequence[int],
    measure: Callable[[Model, Text], Mapping[str, float | None]],
) -> dict[str, Slope | None]:
    """Slopes of all that `measure` finds in the model of each size, averaged over starts."""
    rows = [[measure(models[size](start), Text(start)) for size in models] for start in starts]
    names = dict.fromkeys(name for row in rows for column in row for name in column)
    tables = {name: [[column.get(name) for column in row] for row in rows] for name in names}
    return {name: Slope.of(list(models), table) for name, table in tables.items()}


def widths(net: Net, factors: Sequence[int]) -> dict[int, Callable[[int], Model]]:
    """The models of a net that are so much wider than the base, for each start."""
    return {factor: partial(_wide, net, factor) for factor in factors}


def _wide(net: Net, factor: int, start: int) -> Model:
    return net.build(factor, start=start)


def depths(net: Net, copies: Sequence[int]) -> dict[int, Callable[[int], Model]]:
    """The models of a net with so many copies of the block, for each start."""
    return {count: partial(net.build, 1, count) for count in copies}


def warm_movements(model: Model, text: Text) -> dict[str, float | None]:
    """`movements` after some steps of training."""
    next(text.training(model, WARM))
    return movements(model, text)


def learned(model: Model, text: Text, times: Sequence[int] = (1, 5)) -> dict[str, float | None]:
    """log2 of how far stream, branches and logits are from their start after so many steps.

    By name and time, "stream 5"; at time 0 the size of the stream itself.
    """
    with torch.no_grad():
        before = observe(model, text)
    course, found = text.training(model, max(times), max(times)), {"stream 0": _size(before.stream)}
    for time in range(1, max(times) + 1):
        next(course)
        if time in times:
            with torch.no_grad():
                after = observe(model, text)
            for name in ("stream", "branches", "logits"):
                found[f"{name} {time}"] = _size(getattr(after, name) - getattr(before, name))
    return found


def learned_silently(model: Model, text: Text) -> dict[str, float | None]:
    """`learned` with a readout that starts at 0, whose first logits are its own update alone."""
    with torch.no_grad():
        model.readout.weight.zero_()
    return learned(model, text)


def _size(x: Tensor) -> float | None:
    rms = float(x.double().square().mean().sqrt())
    return math.log2(rms) if rms else None

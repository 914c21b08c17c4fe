"""Behind `archsearch scale`: the plan, the training and its end, as a person sees them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from archsearch.errors import Diverged, RunError
from archsearch.model import build
from archsearch.mup import Base
from archsearch.report.scale_plan import rounded, show_plans
from archsearch.scale import checkpoint, tokens
from archsearch.scale.corpus import Corpus
from archsearch.scale.parallel import join_world
from archsearch.scale.plan import ScalePlan, enlarged, rival
from archsearch.scale.pretrain import Pretraining, Settings, train
from archsearch.scale.speed import peak
from archsearch.scale.stability import Stability, judge
from archsearch.search.fresh import write
from archsearch.space_yaml import load_genome
from archsearch.train import generator
from archsearch.words import count, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from archsearch.genome import Genome
    from archsearch.mup import Scheme
    from archsearch.scale.parallel import World
    from archsearch.scale.pretrain import Mark, Step
    from archsearch.sections import Recipe

RESULT = "result.json"
WINNER, BASELINE = "winner", "baseline"
AS_MANY = 0.05
"""Share of the parameters by which winner and baseline may differ without a word."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """A model that was trained to the end."""

    plan: ScalePlan
    loss: float
    """On held-out text, in nats per token."""
    begun: float
    """Training loss before the first step."""
    bits_per_byte: float
    stability: Stability
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What was asked for."""

    genome: Genome
    recipe: Recipe
    width: int
    depth: int
    context: int
    scheme: Scheme
    text: tuple[str, ...]
    tokenizer: str
    baseline: str
    """The name of what is trained beside it; empty for nothing."""
    seed: int
    accumulate: int
    bf16: bool | None
    compile: bool | None
    shard: bool


def scale(wanted: Wanted, folder: Path, console: Console, *, dry_run: bool) -> None:
    """Show the plan and train it, beside a baseline with as many parameters.

    The same command goes on where it stopped.

    Args:
        wanted: What was asked for.
        folder: Where checkpoints and the result go; token files go to `text` beside it.
        console: Where the plan, the progress and the end are shown.
        dry_run: Whether to stop after the plan.

    Raises:
        SpaceError: if heads do not fit the width.
        CorpusError: if the text cannot be used.
        RunError: if the directory holds another training, or cannot be written.
        Diverged: if a loss is not finite or far above that of guessing, or a model ends worse than
            it began and than guessing.
    """
    base = Base(wanted.genome.d_model, len(wanted.genome.genes), wanted.scheme)
    other = load_genome(wanted.baseline) if wanted.baseline else None
    large = enlarged(wanted.genome, wanted.width, wanted.depth)
    with join_world() as world:
        if not world.first:
            console = Console(quiet=True)
        corpus = Corpus.open(wanted.text, wanted.tokenizer, folder.parent / "text")
        plan = ScalePlan(
            genome=large, base=base, recipe=wanted.recipe, context=wanted.context,
            vocab=corpus.vocab,
        )  # fmt: skip
        corpus.windows(plan.context)
        plans = {WINNER: plan} | ({BASELINE: rival(plan, other)} if other else {})
        gpu = world.device.type == "cuda"
        bf16, compiled = (
            gpu if asked is None else asked for asked in (wanted.bf16, wanted.compile)
        )
        settings = Settings(
            context=wanted.context, accumulate=wanted.accumulate, seed=wanted.seed,
            dtype="bfloat16" if bf16 else "float32", compile=compiled, shard=wanted.shard,
        )  # fmt: skip
        if world.first:
            show_plans(plans, corpus, settings, world, console)
            if rounding := rounded(wanted.genome, large, wanted.depth):
                console.print(rounding, soft_wrap=True)
        if not dry_run:
            if world.first:
                _make_room(folder, wanted.tokenizer)
            carry_out(plans, corpus, settings, folder, world, console)


def _make_room(folder: Path, tokenizer: str) -> None:
    """Make the directory, with the tokenizer in it, before anything is trained."""
    try:
        (folder / WINNER).mkdir(parents=True, exist_ok=True)
        if not any(folder.glob("*/step-*")):
            tokens.keep(tokenizer, folder)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error.strerror}; name another directory with --out"
        ) from None


def carry_out(
    plans: dict[str, ScalePlan],
    corpus: Corpus,
    settings: Settings,
    folder: Path,
    world: World,
    console: Console,
) -> None:
    """Train what was planned, and print how it ended."""
    best = peak(world.device)
    known = {
        name: _known(folder / name, _about(plan, corpus, settings)) for name, plan in plans.items()
    }
    done = {
        name: _trained(
            name, plan, corpus, settings, folder / name, known[name], world, best, console
        )
        for name, plan in plans.items()
    }
    if world.first:
        console.print()
        console.print(_outcome(done, corpus))
        for line in in_words(done):
            console.print(line, markup=False, soft_wrap=True)
        told = {name: _told(scaled) for name, scaled in done.items()}
        told["text"] = {"name": corpus.name, "order0": corpus.order0, "xz": corpus.xz}
        write(folder / RESULT, json.dumps(told, indent=1) + "\n")
        console.print(f"written to {folder}", markup=False, soft_wrap=True)
    for name, scaled in done.items():
        guessing = math.log(scaled.plan.vocab)
        if scaled.loss > max(scaled.begun, guessing):
            raise _diverged(
                name, f"its loss ends at {scaled.loss:.3g}, that of guessing is {guessing:.3g}",
                folder / name,
            )  # fmt: skip


def _diverged(name: str, why: str, folder: Path) -> Diverged:
    return Diverged(
        f"{name} diverged: {why}. Its best and its last checkpoints are kept in {folder}; try a "
        "lower learning rate with --lr, and another directory with --out"
    )


def _known(folder: Path, about: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint of a training; None if there is none.

    Raises:
        RunError: if there is one of another training.
    """
    known = checkpoint.latest(folder)
    if known and known[1]["about"] != about:
        changed = "; ".join(_changes(known[1]["about"], about))
        raise RunError(
            f"{folder} holds a training with another {changed}. Name another directory with --out, "
            "or remove it"
        )
    return known


def _changes(there: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    """What differs between two trainings: `recipe (lr: 0.003 -> 0.01)`; of long values the name."""
    for key, new in here.items():
        old = there.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names = [name for name in old | new if old.get(name) != new.get(name)]
            told = (f"{name}: {old.get(name)} -> {new.get(name)}" for name in names)
            yield f"{key} ({', '.join(told)})"
        else:
            yield key


def _trained(
    name: str,
    plan: ScalePlan,
    corpus: Corpus,
    settings: Settings,
    folder: Path,
    known: tuple[Path, dict[str, Any]] | None,
    world: World,
    best: float,
    console: Console,
) -> Scaled:
    """One model, from its last checkpoint or from the start, to the end."""
    about = _about(plan, corpus, settings)
    start = generator(settings.seed, "scale", "start")
    model = build(plan.genome, plan.vocab, generator=start, base=plan.base)
    training = Pretraining(model, corpus, plan.recipe, settings, world)
    if known:
        training.restore(*known)
        if world.first and training.step < plan.recipe.steps:
            console.print(f"{name}: goes on after step {training.step}")
    live = _Live(name, plan, corpus, training, best, console)

    def on_mark(mark: Mark) -> None:
        live.mark(mark)
        training.save(folder, about)

    try:
        with live:
            train(training, live.step, on_mark)
    except Diverged as error:
        raise _diverged(name, str(error), folder) from None
    except KeyboardInterrupt:
        kept = (
            f"checkpoints are kept. The same command continues after step {training.marks[-1].step}"
            if training.marks
            else "there is no checkpoint yet. The same command begins anew"
        )
        console.print(f"\n{name}: stopped at step {training.step}; {kept}.", soft_wrap=True)
        raise SystemExit(130) from None
    last = training.marks[-1]
    return Scaled(
        plan, last.held_out, training.begun or 0.0, corpus.bits_per_byte(last.held_out),
        judge(training.probes.log(), math.log(plan.vocab)),
        sum(mark.seconds for mark in training.marks),
    )  # fmt: skip


def _about(plan: ScalePlan, corpus: Corpus, settings: Settings) -> dict[str, Any]:
    """All that a training depends on, as plain data."""
    about = {
        "genome": plan.genome.to_json(),
        "base": asdict(plan.base),
        "recipe": plan.recipe.model_dump(),
        "settings": {k: v for k, v in asdict(settings).items() if k not in ("compile", "shard")},
        "text": corpus.key,
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


class _Live:
    """Progress of one training: a bar on a terminal, a line for each mark elsewhere."""

    def __init__(
        self,
        name: str,
        plan: ScalePlan,
        corpus: Corpus,
        training: Pretraining,
        best: float,
        console: Console,
    ) -> None:
        self.name, self.plan, self.corpus, self.training = name, plan, corpus, training
        self.best, self.console = best * training.world.size, console
        self.began, self.first = time.monotonic(), training.step
        self.held_out = training.marks[-1].held_out if training.marks else None
        self.shown = training.world.first and console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"),
            console=console, transient=True, disable=not self.shown,
        )  # fmt: skip
        self.task = self.progress.add_task(name, total=plan.recipe.steps, told="")

    def __enter__(self) -> _Live:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.__exit__(None, None, None)

    @property
    def speed(self) -> tuple[float, float, float]:
        """Tokens per second, share of the device's best, seconds that are left."""
        recipe, step = self.plan.recipe, self.training.step
        took = max(1e-9, time.monotonic() - self.began) / max(1, step - self.first)
        tokens = recipe.batch * self.plan.context / took
        return tokens, tokens * self.plan.flops / self.best, took * (recipe.steps - step)

    def step(self, step: Step) -> None:
        """One step is done."""
        if self.shown:
            tokens, share, left = self.speed
            told = (
                f"{step.number}/{self.plan.recipe.steps} loss {float(step.loss):.3f}  "
                f"{count(tokens)} tokens/s  MFU {share:.0%}  {span(left)} left"
            )
            self.progress.update(self.task, completed=step.number, told=told)

    def mark(self, mark: Mark) -> None:
        """The held-out text was read."""
        if not self.training.world.first:
            return
        tokens, share, left = self.speed
        self.console.print(
            f"{self.name} {mark.step}/{self.plan.recipe.steps}: loss {mark.loss:.3f}, held out "
            f"{mark.held_out:.3f} ({self.corpus.bits_per_byte(mark.held_out):.3f} bits per byte), "
            f"{count(tokens)} tokens/s, MFU {share:.0%}, {span(left)} left",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def _outcome(done: dict[str, Scaled], corpus: Corpus) -> Table:
    """Each model beside what bits per byte are without one."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("parameters", "tokens", "loss", "bits per byte", "time"):
        table.add_column(name, justify="right")
    table.add_column("")
    ranked = sorted(done.items(), key=lambda item: item[1].stability.rank(item[1].loss))
    for name, scaled in ranked:
        table.add_row(
            name, count(scaled.plan.params), count(scaled.plan.tokens), f"{scaled.loss:.3f}",
            f"{scaled.bits_per_byte:.3f}", span(scaled.seconds),
            "" if scaled.stability.stable else "unstable",
        )  # fmt: skip
    for name, bits in (("bytes by frequency", corpus.order0), ("xz", corpus.xz)):
        table.add_row(name, "", "", "", f"{bits:.3f}")
    return table


def in_words(done: dict[str, Scaled]) -> list[str]:
    """The verdict, and what to know beside it."""
    told = [
        f"{name}: {scaled.stability.why}"
        for name, scaled in done.items()
        if not scaled.stability.stable
    ]
    if {WINNER, BASELINE} <= done.keys():
        gap = done[BASELINE].bits_per_byte - done[WINNER].bits_per_byte
        which = "below" if gap >= 0 else "above"
        told.append(
            f"the winner is {abs(gap):.3f} bits per byte {which} the baseline; one seed of each, "
            "so differences of a few hundredths mean nothing"
        )
        more = done[BASELINE].plan.params / done[WINNER].plan.params - 1
        if abs(more) > AS_MANY:
            told.append(
                f"the baseline has {abs(more):.0%} {'more' if more > 0 else 'fewer'} parameters: "
                "none of its legal widths and depths is nearer"
            )
    return told


def _told(scaled: Scaled) -> dict[str, Any]:
    plan = scaled.plan
    return {
        "genome": plan.genome.to_json(), "base": asdict(plan.base), "params": plan.params,
        "tokens": plan.tokens, "flops": plan.flops * plan.tokens, "loss": scaled.loss,
        "bits_per_byte": scaled.bits_per_byte, "stability": scaled.stability.why,
        "seconds": scaled.seconds,
    }  # fmt: skip

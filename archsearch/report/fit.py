"""Behind `archsearch scale --fit`: genomes at several widths, and the laws of their losses.

FOLDER/trainings.jsonl   every training, see `scale.trainings`
FOLDER/fit.json          what came of it
FOLDER/fit.svg           loss over parameters
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from rich.text import Text

from archsearch.errors import RunError
from archsearch.mup import Base
from archsearch.report.bar import Bar
from archsearch.report.curves import Curve, Panel, draw_curves
from archsearch.report.scale_plan import rounded
from archsearch.scale.corpus import Corpus
from archsearch.scale.family import REACH, Family, fit
from archsearch.scale.plan import ScalePlan, enlarged, motif, rival
from archsearch.scale.speed import step_seconds
from archsearch.scale.trainings import recall, train_all
from archsearch.search.fresh import write
from archsearch.space_yaml import load_genome
from archsearch.words import count, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rich.console import Console

    from archsearch.genome import Genome
    from archsearch.mup import Scheme
    from archsearch.scale.estimate import Estimate
    from archsearch.scale.family import Fit, Fits, Size
    from archsearch.scale.pretrain import Settings
    from archsearch.scale.trainings import Ended, Training
    from archsearch.sections import Recipe

LEAST_SPREAD = 1e-6
"""Width of an interval below which all sizes had the same best value."""
TRAININGS, JSON, SVG = "trainings.jsonl", "fit.json", "fit.svg"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What was asked for."""

    genomes: Mapping[str, Genome]
    """By name, at their base width."""
    baseline: str
    """The name of what is trained beside the first of them; empty for nothing."""
    recipe: Recipe
    widths: tuple[int, ...]
    depth: int | None
    """In branches; None for as many as each has."""
    scheme: Scheme
    log2_lrs: tuple[float, ...]
    batches: tuple[int, ...]
    seeds: int
    settings: Settings
    text: tuple[str, ...]
    tokenizer: str

    def family(self, vocab: int) -> Family:
        """What is trained.

        Raises:
            SpaceError: if a genome cannot have a width.
        """

        def plan(genome: Genome, width: int) -> ScalePlan:
            depth = self.depth or len(genome.genes)
            return ScalePlan(
                genome=enlarged(genome, width, depth), recipe=self.recipe, vocab=vocab,
                base=Base(genome.d_model, len(genome.genes), self.scheme),
                context=self.settings.context,
            )  # fmt: skip

        plans = {
            name: tuple(plan(genome, width) for width in self.widths)
            for name, genome in self.genomes.items()
        }
        if self.baseline:
            other, first = load_genome(self.baseline), next(iter(plans.values()))
            plans[self.baseline] = tuple(rival(large, other) for large in first)
        return Family(
            plans=plans, log2_lrs=self.log2_lrs, batches=self.batches, seeds=self.seeds,
            settings=self.settings,
        )  # fmt: skip


def fit_family(
    wanted: Wanted, folder: Path, cache: Path, workers: int, console: Console, *, dry_run: bool
) -> None:
    """Train a family and print the laws of its losses; the same command goes on.

    Raises:
        SpaceError: if a genome cannot have a width.
        CorpusError: if the text cannot be used.
        RunError: if a file is damaged or cannot be written, or every training broke off.
    """
    corpus = Corpus.open(wanted.text, wanted.tokenizer, cache)
    corpus.windows(wanted.settings.context)
    family = wanted.family(corpus.vocab)
    trainings = family.trainings()
    known = recall(trainings, corpus, folder / TRAININGS)
    seconds = _seconds(family)
    works = {t: seconds[plan] for t, (_, plan) in trainings.items() if t not in known}
    _show_work(family, len(trainings), works, workers, console)
    for name, genome in wanted.genomes.items():
        large = family.plans[name][0].genome
        if rounding := rounded(genome, large, wanted.depth or len(genome.genes)):
            console.print(f"{name}: {rounding}", markup=False, soft_wrap=True)
    if dry_run:
        return
    with Bar("fit", list(works.values()), console) as bar:

        def on_trained(training: Training, ended: Ended) -> None:
            outcome = ended.why or f"loss {ended.loss:.3f}, {ended.stability.why}"
            name, plan = trainings[training]
            what = (
                f"{name}, width {plan.genome.d_model}, learning rate {training.recipe.lr:.3g}, "
                f"batch {training.recipe.batch}, seed {training.settings.seed}"
            )
            said = f"{outcome} ({span(ended.seconds)})"
            bar.end(what, said, works[training], ended.seconds, failed=bool(ended.why))

        try:
            ended = train_all(
                trainings, wanted.text, wanted.tokenizer, cache, folder / TRAININGS, workers,
                on_trained,
            )  # fmt: skip
        except KeyboardInterrupt:
            console.print("\nstopped; what was trained is kept. The same command continues.")
            raise SystemExit(130) from None
    if not any(math.isfinite(of.loss) for of in ended.values()):
        raise RunError(f"every training broke off; {next(iter(ended.values())).why}")
    fits = fit(family, ended, math.log(corpus.vocab))
    show(fits, console)
    write(folder / JSON, json.dumps(told(fits), indent=1) + "\n")
    write(folder / SVG, _picture(fits))
    console.print(f"written to {folder}: {JSON}, {SVG}", markup=False, soft_wrap=True)


def _seconds(family: Family) -> dict[ScalePlan, float]:
    """About how long a training of each plan takes on one core."""
    torch.set_num_threads(1)  # as a worker trains
    core = torch.device("cpu")
    return {
        plan: step_seconds(plan, core) * plan.recipe.steps
        for plans in family.plans.values()
        for plan in plans
    }


def _show_work(
    family: Family, total: int, works: Mapping[Training, float], workers: int, console: Console
) -> None:
    """Print what is trained, and how long the rest may take."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("genome", overflow="fold")
    for name in ("width", "parameters", "FLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, plans in family.plans.items():
        for i, plan in enumerate(plans):
            table.add_row(
                "" if i else name, "" if i else Text(motif(plan.genome).text()),
                str(plan.genome.d_model), count(plan.params), f"{plan.flops * plan.tokens:.1e}",
            )  # fmt: skip
    console.print(table)
    recipe = next(iter(family.plans.values()))[0].recipe
    cells, took, seeds = len(family.cells), sum(works.values()), family.seeds
    swept = f" at {cells} learning rates and batches" if cells > 1 else f", lr {recipe.lr:g}"
    more = f", {span(took / workers)} on {workers}" if workers > 1 else ""
    console.print(
        f"{recipe.steps * recipe.batch * family.settings.context} tokens each{swept}, "
        f"{seeds} seed{'s'[: seeds > 1]}; {len(works)} of {total} trainings to do, "
        f"about {span(took)} on one core as busy as now{more}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def show(fits: Fits, console: Console) -> None:
    """Print losses, laws, crossings and hyper-parameters."""

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    say("")
    console.print(_losses(fits))
    say("\nloss = floor + a * parameters^-exponent")
    console.print(_laws(fits))
    for line in (*_unknown(fits), "", *_crossings(fits)):
        say(line)
    for of in fits.of:
        for line in _hyper(of):
            say(f"{of.name}: {line}")


def _unknown(fits: Fits) -> Iterator[str]:
    """What losses leave open."""
    if any(len(size.losses(size.best)) == 1 for of in fits.of for size in of.sizes):
        yield "?: one seed shows no noise, so no error is known; --seeds 2 gives one"
    if any(of.law and len(of.sizes) == 2 for of in fits.of):
        yield "two sizes leave the floor open; it is taken to be 0"


def _crossings(fits: Fits) -> Iterator[str]:
    """Who changes places, on straight lines from the smallest size to the largest and on."""
    for crossing in fits.crossings:
        ahead, behind = crossing.ahead, crossing.behind
        said = (
            f"{ahead} is ahead at the smallest size, {behind} at the largest: their lines cross"
            if crossing.measured
            else f"{ahead} is ahead at the largest size, but its line crosses that of {behind}"
        )
        sure = "beyond" if crossing.clear else "within"
        yield f"{said} at {count(crossing.size)} parameters ({sure} the noise of seeds)"
    if len(fits.of) > 1 and not fits.crossings:
        yield (
            "no two lines from the smallest size to the largest cross, nor up to "
            f"{REACH:g} times the largest"
        )


def _losses(fits: Fits) -> Table:
    """Every genome at every width."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("width", "parameters", "loss", "+- s.e.", "learning rate", "batch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for of in fits.of:
        for i, size in enumerate(of.sizes):
            best, losses = size.best, size.losses(size.best)
            known = len(losses) > 1 and math.isfinite(size.mean(best))
            error = f"{statistics.stdev(losses) / len(losses) ** 0.5:.3f}" if known else "?"
            table.add_row(
                "" if i else of.name, str(size.plan.genome.d_model), count(size.plan.params),
                f"{size.mean(best):.3f}", error, f"{best.lr:.3g}", str(best.batch),
                "" if size.stable(best) else "unstable",
            )  # fmt: skip
    return table


def _laws(fits: Fits) -> Table:
    """The law of every genome: loss = floor + scale * parameters^-exponent."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("law")
    for name in ("floor", "exponent", "nats per doubling"):
        table.add_column(name, justify="right", no_wrap=True)
    for of in fits.of:
        if of.law is None or of.trend is None:
            table.add_row(of.name, "too few sizes ended well", "", "")
            continue
        table.add_row(
            of.name, _interval(of.law.floor), _interval(of.law.exponent),
            _interval(of.trend.slope, 3),
        )  # fmt: skip
    return table


def _interval(known: Estimate, digits: int = 2) -> str:
    if math.isinf(known.high):
        return f"{known.value:.{digits}f} [?]"
    return f"{known:.{digits}f}"


def _hyper(of: Fit) -> list[str]:
    """What is known of the best hyper-parameters."""
    lines = []
    if of.drift:
        lines.append(
            f"the best learning rate moves by {_interval(of.drift.slope)} powers of two per "
            "doubling of the width (0 transfers, -1 is the theory of SP)"
        )
    laws = of.hyper
    if laws is None:
        return lines
    for name, unit, law in (("learning rate", "", laws.lr), ("batch", " tokens", laws.batch)):
        if law is None:
            continue
        c, e = law.coefficient.value, law.exponent
        if e.high - e.low < LEAST_SPREAD:
            lines.append(f"best {name}: {c:.3g}{unit} at every size, as finely as it was swept")
        else:
            lines.append(f"best {name} = {c:.3g}{unit} * FLOPs^e, e = {_interval(e, 3)}")
    if laws.at_edge:
        more = f", and {len(laws.at_edge) - 1} more ends" if len(laws.at_edge) > 1 else ""
        lines.append(f"the sweep is too narrow: {laws.at_edge[0]}{more}")
    return lines


def told(fits: Fits) -> dict[str, Any]:
    """What came of it as plain data."""
    return {
        "genomes": {of.name: _told(of) for of in fits.of},
        "crossings": [asdict(crossing) for crossing in fits.crossings],
    }


def _told(of: Fit) -> dict[str, Any]:
    plain: dict[str, Any] = {"sizes": [_told_size(size) for size in of.sizes]}
    if of.law and of.trend:
        law = {name: asdict(getattr(of.law, name)) for name in ("floor", "scale", "exponent")}
        plain |= {"law": law, "nats_per_doubling": asdict(of.trend.slope)}
    if of.drift:
        plain["lr_powers_of_two_per_doubling"] = asdict(of.drift.slope)
    if of.hyper:
        plain["hyper"] = {
            name: asdict(law)
            for name, law in (("lr", of.hyper.lr), ("batch", of.hyper.batch))
            if law is not None
        }
    return plain


def _told_size(size: Size) -> dict[str, Any]:
    return {
        "genome": size.plan.genome.to_json(), "params": size.plan.params,
        "tokens": size.plan.tokens, "flops": size.plan.flops * size.plan.tokens,
        "trained": [
            {**cell._asdict(), "losses": [_finite(loss) for loss in size.losses(cell)],
             "stable": size.stable(cell)}
            for cell in size.ended
        ],
    }  # fmt: skip


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _picture(fits: Fits) -> str:
    """Loss over parameters: what was measured, and what the laws say of larger sizes."""
    curves = []
    for of in fits.of:
        kept = [size for size in of.sizes if math.isfinite(size.mean(size.best))]
        points = [(math.log2(size.plan.params), size.mean(size.best)) for size in kept]
        if points:
            curves.append(Curve(of.name, points))
    ends = [round(x) for curve in curves for x, _ in curve.points]
    places = range(min(ends), max(ends) + 1)
    return draw_curves(
        [Panel("", curves)], "loss of each genome over its size", "parameters",
        "loss on held-out text, nats", ticks=[(x, count(2.0**x)) for x in places],
    )  # fmt: skip

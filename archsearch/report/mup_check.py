"""Behind `archsearch mup-check`: what is swept, and what it says, as tables and pictures.

HOME/trainings.jsonl   every training, see `scale.trainings`
HOME/swept.jsonl       the same in short, see `scale.transfer`
HOME/width.svg         loss over learning rate
HOME/depth.svg         loss over depth
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from archsearch.errors import RunError
from archsearch.report.bar import Bar
from archsearch.report.curves import Curve, Panel, draw_curves
from archsearch.scale.corpus import Corpus
from archsearch.scale.plan import motif
from archsearch.scale.trainings import recall, train_all
from archsearch.scale.transfer import Row, Swept
from archsearch.scale.transferred import judge, transfers
from archsearch.words import count, span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console

    from archsearch.scale.sweep import Optimum
    from archsearch.scale.trainings import Ended, Training
    from archsearch.scale.transfer import Design
    from archsearch.scale.transferred import Check, Transfer

TRAININGS, SWEPT = "trainings.jsonl", "swept.jsonl"
NAMES = {"sp": "SP", "mup": "muP", "depth_mup": "depth-muP", "completep": "CompleteP"}
ABOVE = 1.0
"""Nats above the least loss up to which curves are drawn."""


def mup_check(
    design: Design,
    sources: Sequence[str],
    tokenizer: str,
    home: Path,
    cache: Path,
    workers: int,
    console: Console,
) -> None:
    """Sweep what was designed, and print what that says.

    What is trained is kept in HOME, so the same command goes on where it stopped.

    Args:
        design: What is trained.
        sources: Of the text, see `Corpus.open`.
        tokenizer: Of the text.
        home: Directory for all that is kept.
        cache: Where token files are kept.
        workers: Processes.
        console: Where the page goes.

    Raises:
        CorpusError: if the text cannot be used.
        RunError: if a file is damaged or cannot be written.
    """
    corpus = Corpus.open(sources, tokenizer, cache)
    corpus.windows(design.settings.context)
    trainings = design.trainings()
    known = recall(trainings, corpus, home / TRAININGS)
    works = {training: design.work(training, corpus.vocab) for training in trainings}
    missing = [training for training in trainings if training not in known]
    console.print(
        f"{design.genome.text()}: {len(missing)} of {len(trainings)} trainings to do",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    with Bar("sweep", [works[training] for training in missing], console) as bar:

        def on_trained(training: Training, ended: Ended) -> None:
            outcome = ended.why or f"loss {ended.loss:.3f}"
            said = f"{outcome} ({span(ended.seconds)})"
            work = works[training]
            bar.end(_what(training), said, work, ended.seconds, failed=bool(ended.why))

        try:
            done = train_all(
                trainings, sources, tokenizer, cache, home / TRAININGS, workers, on_trained
            )
        except KeyboardInterrupt:
            console.print("\nstopped; what was trained is kept. The same command continues.")
            raise SystemExit(130) from None
    swept = Swept(
        genome=design.genome, recipe=design.recipe, context=design.settings.context,
        text=corpus.name, guessing=math.log(corpus.vocab),
        rows=tuple(Row.of(training, done[training]) for training in trainings),
    )  # fmt: skip
    swept.write(home / SWEPT)
    show(swept, console)
    written = draw(swept, home)
    console.print(f"written to {home}: {', '.join([SWEPT, *written])}", markup=False,
                  soft_wrap=True)  # fmt: skip


def _what(training: Training) -> str:
    genome, recipe = training.genome, training.recipe
    decayed = f", decay {recipe.weight_decay:.3g}" if recipe.weight_decay else ""
    return (
        f"{NAMES[training.base.scheme]}, width {genome.d_model}, depth {len(genome.genes)}, "
        f"learning rate 2^{math.log2(recipe.lr):g}{decayed}, seed {training.settings.seed}"
    )


def show(swept: Swept, console: Console) -> None:
    """Print what sweeps say, as tables and checks.

    Raises:
        RunError: if a training is missing.
    """
    recipe, seeds = swept.recipe, len({row.seed for row in swept.rows})
    console.print(
        f"\n{motif(swept.genome).text()}; base: width {swept.genome.d_model}, depth "
        f"{len(swept.genome.genes)}; {recipe.steps} steps of {recipe.batch} x {swept.context} "
        f"tokens of {swept.text}; {count(seeds)} seed{'s'[: seeds > 1]}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    found = transfers(swept)
    for axis in dict.fromkeys(transfer.axis for transfer in found):
        console.print()
        console.print(_table([transfer for transfer in found if transfer.axis == axis]))
    for transfer in found:
        for size, best in zip(transfer.sizes, transfer.optima, strict=True):
            if best.why:
                where = f"{NAMES[transfer.scheme]}, {transfer.axis} {size}"
                console.print(f"{where}: {best.why}", markup=False, soft_wrap=True)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("check", "scheme", "measured", "limit", ""):
        table.add_column(title, no_wrap=True)
    checks = judge(swept)
    for check in checks:
        scheme = "fixed decay" if check.control and check.name == "decay" else NAMES[check.scheme]
        wanted = "as it must" if check.passed else "[bold]it must not[/bold]"
        outcome = f"{'holds' if check.held else 'fails'}, {wanted}"
        table.add_row(
            f"{check.axis} {check.name}", scheme, check.measured, check.limit,
            "cannot be told" if check.held is None else outcome,
        )  # fmt: skip
    console.print(table)
    console.print(f"\n{_verdict(checks)}", soft_wrap=True)


def _verdict(checks: Sequence[Check]) -> str:
    """One sentence on all checks."""

    def named(some: Iterable[Check]) -> str:
        return ", ".join(f"{NAMES[c.scheme]} {c.axis} {c.name}" for c in some)

    untold = [check for check in checks if check.held is None]
    wrong = [check for check in checks if check.held is check.control]
    if failed := [check for check in wrong if not check.control]:
        return f"hyper-parameters do not transfer here: {named(failed)}"
    if untold:
        asked = [check for check in untold if not check.control] or untold
        return (
            f"whether hyper-parameters transfer here cannot be told: {named(asked)}. A best "
            "learning rate is not within its sweep; widen it with --lrs"
        )
    if wrong:
        return (
            f"nothing failed, but these controls did not either, so little is shown: {named(wrong)}"
        )
    return "hyper-parameters transfer here, and every control failed as it must"


def _table(found: Sequence[Transfer]) -> Table:
    """Every size in every scheme over one axis."""
    first = found[0]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first.axis, justify="right")
    table.add_column("scheme", no_wrap=True)
    titles = ("best log2 LR", "shift", "gap", "best", f"at 2^{first.at:g}", "LR sens.")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for transfer in found:
        sensitivities = transfer.sensitivities
        for i, size in enumerate(transfer.sizes):
            if i == 0 and transfer is not first:
                continue
            best = transfer.optima[i]
            table.add_row(
                str(size),
                NAMES[transfer.scheme] if i else "base",
                f"{best.log2_lr:.2f} ?" if best.why else _optimum(best),
                f"{transfer.shift(i).value:+.2f}" if i else "",
                f"{transfer.gap(i):.3f}" if i else "",
                f"{transfer.sweeps[i].best:.3f}",
                f"{transfer.at_base[i]:.3f}",
                f"{sensitivities[i]:.3f}",
            )
    return table


def _optimum(best: Optimum) -> str:
    known = best.estimate
    return f"{known.value:.2f} [{known.low:.1f}, {known.high:.1f}]"


def draw(swept: Swept, home: Path) -> list[str]:
    """Draw the pictures into HOME; their names.

    Raises:
        RunError: if a file cannot be written.
    """
    found = transfers(swept)
    pictures = {}
    for axis, drawn in (("width", _over_rates), ("depth", _over_depth)):
        along = [transfer for transfer in found if transfer.axis == axis]
        if along:
            pictures[f"{axis}.svg"] = drawn(along, motif(swept.genome).text())
    try:
        for name, picture in pictures.items():
            (home / name).write_text(picture)
    except OSError as error:
        raise RunError(f"{home} cannot be written: {error.strerror}") from None
    return list(pictures)


def _over_rates(found: Sequence[Transfer], net: str) -> str:
    """Loss over learning rate, a panel a scheme and a curve a width; dots are optima."""
    panels = [
        Panel(
            NAMES[transfer.scheme],
            [
                Curve(
                    f"width {size}",
                    list(zip(sweep.log2_lrs, map(float, sweep.means), strict=True)),
                    None if best.why else (best.log2_lr, best.loss),
                )
                for size, sweep, best in zip(
                    transfer.sizes, transfer.sweeps, transfer.optima, strict=True
                )
            ],
        )
        for transfer in found
    ]
    least = min(sweep.best for transfer in found for sweep in transfer.sweeps)
    rates = range(
        math.ceil(found[0].sweeps[0].log2_lrs[0]), math.floor(found[0].sweeps[0].log2_lrs[-1]) + 1
    )
    return draw_curves(
        panels, net, "log2 of the base's learning rate", "loss on held-out text, nats",
        ticks=[(rate, f"{rate}") for rate in rates], top=least + ABOVE,
    )  # fmt: skip


def _over_depth(found: Sequence[Transfer], net: str) -> str:
    """Loss over depth, a curve a scheme."""
    titles = (f"at the base's best learning rate, 2^{found[0].at:g}", "at the best of each depth")
    panels = [
        Panel(
            title,
            [
                Curve(
                    NAMES[transfer.scheme] + " (a = 0)" * transfer.control,
                    [
                        (math.log2(size), at if own == 0 else sweep.best)
                        for size, at, sweep in zip(
                            transfer.sizes, transfer.at_base, transfer.sweeps, strict=True
                        )
                    ],
                )
                for transfer in found
            ],
        )
        for own, title in enumerate(titles)
    ]
    sizes = sorted({size for transfer in found for size in transfer.sizes})
    return draw_curves(
        panels, net, "depth in branches", "loss on held-out text, nats",
        ticks=[(math.log2(size), str(size)) for size in sizes],
    )  # fmt: skip

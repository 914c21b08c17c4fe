"""Behind `archsearch fidelity`: the panel, its trainings, and what they say of the proxy.

RUN/fidelity/panel.json       who is compared, written before anything is trained
RUN/fidelity/targets.jsonl    trainings on text
RUN/fidelity/fidelity.json    what came of it
RUN/fidelity/fidelity.svg     proxy against target

Trainings of the proxy are kept in RUN/fresh.json.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from rich.table import Table
from rich.text import Text

from archsearch.errors import RunError
from archsearch.report.agreement import print_report, write_report
from archsearch.report.bar import Bar
from archsearch.report.survey import trial_seconds
from archsearch.rules import cached_cost
from archsearch.scale.candidates import Chosen, choose, keep, kept
from archsearch.scale.corpus import Corpus
from archsearch.scale.fidelity import Design, enlarged, proxies, text_recipe, weigh
from archsearch.scale.speed import step_seconds
from archsearch.scale.trainings import recall as recall_trainings
from archsearch.scale.trainings import train_all
from archsearch.search.finals import merged
from archsearch.search.fresh import missing, recall, remember, train
from archsearch.words import count, span

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from rich.console import Console

    from archsearch.genome import Genome
    from archsearch.scale.trainings import Ended, Training
    from archsearch.scale.verdict import Verdict
    from archsearch.search.finals import Fresh, Known
    from archsearch.search.study import Study
    from archsearch.space_yaml import Experiment

PANEL, TARGETS = "panel.json", "targets.jsonl"
TEXT_TASK = "text"
FAILED = ("useless", "misleading", "poor pick")
"""What may be said of a proxy that another one should take the place of."""
TEXT = "scale/text"
"""Where `archsearch scale` keeps token files too, below the run directory."""
SIZE = 16
"""Genomes beside the anchors, unless a number is asked for."""

Thing = TypeVar("Thing")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What was asked for."""

    genomes: int | None
    """Beside the anchors; None for those of the panel that was kept, or 16."""
    width: int | None
    """Of the target; None for four times that of each genome."""
    steps: int | None
    """On text; None for those of the run."""
    seeds: int
    context: int
    batch: int
    text: tuple[str, ...]
    tokenizer: str

    def command(self, run: Path, panel: int) -> str:
        """The command that does the same."""
        given = {"genomes": panel, "width": self.width, "steps": self.steps, "seeds": self.seeds}
        given |= {"context": self.context, "batch": self.batch}
        options = [f"--{name} {value}" for name, value in given.items() if value is not None]
        options += [f"--text {text}" for text in self.text]
        options += [f"--tokenizer {self.tokenizer}"] if self.tokenizer != "byte" else []
        return " ".join(["archsearch fidelity", str(run), *options])


def fidelity(
    study: Study, folder: Path, wanted: Wanted, workers: int, console: Console, *, dry_run: bool
) -> None:
    """Train the panel of a run as its proxy and its targets, and print what that says.

    What is trained is kept, so the same command goes on where it stopped, and a second one trains
    nothing.

    Raises:
        RunError: if the run has too few trials or members, a file is damaged or cannot be written,
            or a panel of another size was kept.
        SpaceError: if the width fits no head or block.
        CorpusError: if the text cannot be used.
    """
    home = folder / "fidelity"
    chosen = _panel(study, home / PANEL, wanted.genomes)
    genomes = tuple(member.genome for member in chosen.members)
    experiment = study.experiment()
    study.check_data(experiment)
    large = enlarged(genomes, wanted.width)
    corpus = Corpus.open(wanted.text, wanted.tokenizer, folder / TEXT)
    corpus.windows(wanted.context)
    design = Design(
        genomes=genomes, large=large, context=wanted.context, seeds=wanted.seeds,
        recipe=text_recipe(experiment.recipe, wanted.steps, wanted.batch), vocab=corpus.vocab,
    )  # fmt: skip
    known = _whole(recall(folder, study), len(experiment.tasks))
    done = recall_trainings(design.trainings, corpus, home / TARGETS)
    _show_panel(study, chosen, design, console)
    dear = [training for training in design.trainings if training not in done]
    _show_work(experiment, design, corpus, known, dear, workers, console)
    if dry_run:
        return
    if not (home / PANEL).exists():
        keep(home / PANEL, chosen)
    try:
        _train_proxies(experiment, design, known, folder, study, workers, console)
        varying = experiment.space.varying
        ended = _train_targets(design, dear, wanted, home, workers, varying, console)
    except KeyboardInterrupt:
        console.print("\nstopped; what was trained is kept. The same command continues.")
        raise SystemExit(130) from None
    proxy, *alone = proxies(experiment, genomes, known, design.seeds)
    found = weigh(design, ended, proxy, alone, experiment.context)
    print_report(found, chosen, design, experiment.space.varying, console)
    about = {
        "run": study.name,
        "command": wanted.command(folder, chosen.size),
        "text": {"name": corpus.name, "key": corpus.key, "tokenizer": corpus.tokenizer},
        "seconds": sum(e.seconds for e in ended.values()),
    }
    write_report(found, chosen, design, about, home)
    said = f"written to {home}: fidelity.json, fidelity.svg"
    console.print(said, markup=False, soft_wrap=True)
    if advice := instead(found.agreement.verdict, experiment, folder):
        console.print(advice, markup=False, soft_wrap=True)


def instead(verdict: Verdict, experiment: Experiment, run: Path) -> str:
    """What to search on where the tasks of a run do not rank text; empty where they may."""
    if verdict.kind not in FAILED or TEXT_TASK in {task.name for task in experiment.tasks}:
        return ""
    return (
        f"next: archsearch run {run / 'space.yaml'} --set 'tasks.use=[{TEXT_TASK}]' "
        f"--name {run.name}-text    (searches on text itself)"
    )


def _panel(study: Study, file: Path, size: int | None) -> Chosen:
    """The panel that was kept, else a new one.

    Raises:
        RunError: if the kept one is of another size.
    """
    chosen = kept(file)
    if chosen is None:
        return choose(study, SIZE if size is None else size)
    if size is not None and size != chosen.size:
        raise RunError(
            f"{file} holds a panel of {chosen.size} genomes beside the anchors, not of {size}; "
            "leave out --genomes, or remove the file to draw another. What was trained is kept"
        )
    return chosen


def _whole(known: Known, tasks: int) -> Known:
    """The fresh trainings of which every task is known."""
    return {
        key: {k: fresh for k, fresh in of.items() if len(fresh.accuracies) == tasks}
        for key, of in known.items()
    }


def _show_panel(study: Study, chosen: Chosen, design: Design, console: Console) -> None:
    origins = [member.origin for member in chosen.members]
    console.print(
        f"panel of {study.name}, seed {chosen.number}: {origins.count('uniform')} of the space, "
        f"{origins.count('top')} of the best quarter of {chosen.trials} trials, "
        f"{origins.count('anchor')} anchors",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("drawn from")
    table.add_column("genome", overflow="fold")
    for name in ("width", "params", "target", "params"):
        table.add_column(name, justify="right")
    varying = study.experiment().space.varying
    of_targets = [of[0] for of in design.targets]
    for member, training in zip(chosen.members, of_targets, strict=True):
        genome, plan = member.genome, design.plan(training)
        table.add_row(
            member.origin, Text(genome.text(varying)), str(genome.d_model),
            count(cached_cost(genome, study.experiment().context).params),
            str(plan.genome.d_model), count(plan.params),
        )  # fmt: skip
    console.print(table)


def _show_work(
    experiment: Experiment,
    design: Design,
    corpus: Corpus,
    known: Known,
    dear: Sequence[Training],
    workers: int,
    console: Console,
) -> None:
    """Print what is trained, what of it is known, and how long the rest may take."""

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    genomes, recipe = design.genomes, design.recipe
    cheap = missing(genomes, design.seeds, known)
    tasks = ", ".join(task.name for task in experiment.tasks)
    say(
        f"proxy: {experiment.goals[0].name} as in the run ({tasks}), {design.seeds} fresh seeds; "
        f"{len(cheap)} of {len(genomes) * design.seeds} trainings to do"
    )
    beside = ", and at the width of the run" if design.small else ""
    say(
        f"target: loss on held-out text after {recipe.steps} steps of {recipe.batch} x "
        f"{design.context} tokens, {design.seeds} seeds{beside}; {len(dear)} of "
        f"{len(design.trainings)} trainings to do"
    )
    say(
        f"learning rate {recipe.lr:g} of the run, carried over by muP; schedule {recipe.schedule}; "
        f"text {corpus.name}, {corpus.epochs(recipe.steps, recipe.batch, design.context):.2f} "
        "epochs"
    )
    if cheap or dear:
        seconds = _seconds(experiment, design, [g for g, _ in cheap], dear)
        more = f", {span(seconds / workers)} on {workers}" if workers > 1 else ""
        say(f"time: about {span(seconds)} on one core as busy as now{more}")


def _seconds(
    experiment: Experiment,
    design: Design,
    cheap: Sequence[Genome],
    dear: Sequence[Training],
) -> float:
    """About how long trainings take on one core: a few steps of the smaller and larger are timed.

    Args:
        experiment: Of the run.
        design: What is trained on text.
        cheap: Genomes that are trained as the proxy is, as often as they are named.
        dear: Trainings on text.
    """
    torch.set_num_threads(1)  # as a worker trains
    core, recipe, total = torch.device("cpu"), experiment.recipe, 0.0
    if cheap:
        few = _few(cheap, lambda genome: cached_cost(genome, experiment.context).flops)
        each = statistics.mean(trial_seconds(experiment, genome) for genome in few)
        total += each / recipe.seeds * len(cheap)
    large = set(design.large)
    for group in ([t for t in dear if (t.genome in large) is which] for which in (False, True)):
        plans = [design.plan(training) for training in group]
        if plans:
            few_plans = _few(plans, lambda plan: plan.flops)
            step = statistics.mean(step_seconds(plan, core) for plan in few_plans)
            total += step * design.recipe.steps * len(plans)
    return total


def _few(things: Sequence[Thing], size: Callable[[Thing], float]) -> list[Thing]:
    """The smallest, the middle one and the largest."""
    ranked = sorted(things, key=size)
    return [ranked[0], ranked[len(ranked) // 2], ranked[-1]]


def _train_proxies(
    experiment: Experiment,
    design: Design,
    known: Known,
    folder: Path,
    study: Study,
    workers: int,
    console: Console,
) -> None:
    """Train the panel as the run does, into `known` and the memory of the run."""
    before, varying = recall(folder, study), experiment.space.varying

    def work(genome: Genome) -> float:
        return float(cached_cost(genome, experiment.context).flops)

    wanted = missing(design.genomes, design.seeds, known)
    with Bar("proxy", [work(genome) for genome, _ in wanted], console) as bar:

        def on_trained(genome: Genome, k: int, fresh: Fresh, seconds: float) -> None:
            remember(folder, experiment, merged(before, known))
            what = f"{genome.text(varying)}, fresh seed {k + 1}"
            outcome = fresh.why or f"score {fresh.score:.3f}"
            said = f"{outcome} ({span(seconds)})"
            bar.end(what, said, work(genome), seconds, failed=bool(fresh.why))

        train(experiment, design.genomes, design.seeds, workers, known, on_trained)


def _train_targets(
    design: Design,
    dear: Sequence[Training],
    wanted: Wanted,
    home: Path,
    workers: int,
    varying: Collection[tuple[str, str]],
    console: Console,
) -> dict[Training, Ended]:
    """Train the panel on text; `dear` is what the memory does not know."""
    works = {training: design.plan(training).flops for training in dear}
    with Bar("text", list(works.values()), console) as bar:

        def on_trained(training: Training, ended: Ended) -> None:
            genome, seed = training.genome, training.settings.seed + 1
            what = f"{genome.text(varying)}, width {genome.d_model}, seed {seed}"
            outcome = ended.why or f"loss {ended.loss:.3f}"
            if not ended.stability.stable:
                outcome += f", {ended.stability.why}"
            failed = bool(ended.why) or not ended.stability.stable
            said = f"{outcome} ({span(ended.seconds)})"
            bar.end(what, said, works[training], ended.seconds, failed=failed)

        return train_all(
            design.trainings, wanted.text, wanted.tokenizer, home.parent / TEXT, home / TARGETS,
            workers, on_trained,
        )  # fmt: skip

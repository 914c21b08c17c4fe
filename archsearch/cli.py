"""The command line: one verb, one thin function. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import json
import os
import sys
import threading
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from archsearch import cli_model
from archsearch.errors import ArchsearchError, RunError, SpaceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from archsearch.genome import Genome
    from archsearch.search.study import Study
    from archsearch.sections import Recipe
    from archsearch.space_yaml import Experiment

app = typer.Typer(
    help="Find the best hybrid sequence model that your blocks can make.",
    epilog="Begin with:  archsearch run quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_model.app)
console = Console(highlight=False)

SpaceArg = Annotated[str, typer.Argument(help="A space file, or the name of a shipped space.")]
RunArg = Annotated[str, typer.Argument(help="A run directory, e.g. runs/quickstart.")]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one value, e.g. --set recipe.steps=100. Repeatable."),
]
TextOpt = Annotated[
    list[str] | None,
    typer.Option(
        help="A file, a directory, or hf:NAME of a Hugging Face dataset; by default the standard "
        "library of this Python. Repeatable."
    ),
]
TokenizerOpt = Annotated[
    str, typer.Option(help="byte, a tokenizer.json, or a Hugging Face tokenizer.")
]


class Parametrisation(Enum):
    """How hyper-parameters follow the size of a model."""

    completep = "completep"
    depth_mup = "depth_mup"
    mup = "mup"
    sp = "sp"


class Format(Enum):
    """How a model is written."""

    auto = "auto"
    yaml = "yaml"
    hf = "hf"
    native = "native"
    gguf = "gguf"
    pattern = "pattern"
    torch = "torch"


class Control(Enum):
    """What a search may be compared with."""

    random = "random"


def main() -> None:
    """Run the command line; every known error ends in a sentence and an exit code."""
    try:
        app()
    except ArchsearchError as error:
        Console(stderr=True, highlight=False).print(str(error), markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        Console(stderr=True, highlight=False).print(f"{where}{error.strerror}", markup=False)
        sys.exit(3)


@app.command()
def run(
    space: SpaceArg,
    trials: Annotated[
        int | None, typer.Option(help="Trials in all, finished ones included.", min=1)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; by default one per core.", min=1)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run, instead of the space's.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Where runs are kept.")] = Path("runs"),
    storage: Annotated[
        str,
        typer.Option(
            envvar="ARCHSEARCH_STORAGE", help="Optuna storage URL instead of a journal file."
        ),
    ] = "",
    control: Annotated[
        Control | None,
        typer.Option(help="Search at random too, with the same budget, and compare the winners."),
    ] = None,
    override: SetOpt = None,
) -> None:
    """Search a space. The same command continues a run that was stopped.

    Results go to DIR/NAME: the study, a drawing of every trial, and the best model in best/.
    """
    overrides = [*(override or ())]
    overrides += [f"search.trials={trials}"] if trials else []
    overrides += [f"name={name}"] if name else []
    experiment = _with_tasks(space, overrides)
    from archsearch.fits import check_fits

    for warning in (*experiment.warnings, *check_fits(experiment)):
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)

    from archsearch.report.session import search
    from archsearch.search.run import Run

    place = Run(folder / experiment.space.name, storage)
    search(experiment, place, workers or _cores(), console, control=control is not None)


@app.command(hidden=True)
def worker(
    place: str,
    study: Annotated[str, typer.Option(help="Name of the study.")],
    folder: Annotated[Path, typer.Option("--dir", help="Where artifacts and weights go.")],
    trials: Annotated[int | None, typer.Option(help="Trials in all.", min=1)] = None,
    until: Annotated[float | None, typer.Option(help="No trial starts after this time.")] = None,
    events: Annotated[
        bool, typer.Option(help="Tell what happens on stdout, as JSON lines.")
    ] = False,
) -> None:
    """Work on a study until its trials are done; any number may work on one."""
    if events:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
    import torch

    from archsearch.search.worker import Worker

    torch.set_num_threads(1)

    def emit(event: dict[str, Any]) -> None:
        if events:
            print(json.dumps(event), flush=True)  # noqa: T201

    Worker(place, study, folder, trials, emit).work(until)


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone and its pipe is closed."""
    sys.stdin.read()
    os._exit(1)


@app.command()
def show(
    run: RunArg,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Show what a run has found so far."""
    from archsearch.report.session import summary

    console.print(summary(_study(run, storage), Path(run)))


@app.command()
def report(
    run: RunArg,
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default RUN/report.html.")
    ] = None,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Write what a run found as one HTML file: front, winner, why, costs, how to reproduce it.

    It needs no network, so it can be kept or sent as it is.
    """
    from archsearch.report.html import FILE
    from archsearch.report.html import report as write

    write(_study(run, storage), Path(run), run, out or Path(run) / FILE, console)


@app.command()
def explain(
    run: RunArg,
    trial: Annotated[str, typer.Option(help="Index of a trial, or best.")] = "best",
    seeds: Annotated[int, typer.Option(help="Fresh seeds of each training.", min=2, max=10)] = 3,
    workers: Annotated[
        int | None, typer.Option(help="Processes; by default one per core.", min=1)
    ] = None,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Say why a trial won: what each edit of it costs, which choices and motifs paid.

    Trains every one-edit neighbour on fresh seeds; writes the page to RUN/explain.md.
    """
    from archsearch.report.explain import explain as write
    from archsearch.report.session import pick

    study = _study(run, storage)
    write(study, pick(study, trial), Path(run), seeds, workers or _cores(), console)


@app.command()
def compare_samplers(
    space: SpaceArg,
    strategies: Annotated[
        list[str] | None,
        typer.Option(help="Strategies, e.g. evolution,graphgp; by default all. Repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Paired searches of each strategy.")] = 15,
    trials: Annotated[int, typer.Option(help="Trials of each search.", min=1)] = 100,
    table: Annotated[
        Path | None,
        typer.Option(help="Table of the members; by default the shipped one, or DIR/NAME."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for all curves, as JSON and as a picture.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Where runs are kept.")] = Path("runs"),
    override: SetOpt = None,
) -> None:
    """Compare search strategies on a space whose members are trained only once.

    A table keeps what each member scored. That of hybridbench is shipped, complete; for another
    space DIR/NAME/table.jsonl is filled as the searches go.
    """
    experiment = _with_tasks(space, override or ())
    from archsearch.report.compare import compare_samplers as compare
    from archsearch.search.proposals import NAMES
    from archsearch.search.table import Table

    names = [name for given in strategies or NAMES for name in given.split(",") if name]
    kept = folder / experiment.space.name / "table.jsonl"
    known = Table(experiment, table) if table else Table.of(experiment, space, kept)
    compare(space, known, names, seeds, trials, out, console)


@app.command("scale")
def scale_up(
    source: Annotated[
        str, typer.Argument(help="A run directory, or a space of one member: a file or a name.")
    ],
    width: Annotated[int, typer.Option(help="Model width.", min=1)] = 256,
    depth: Annotated[
        int | None, typer.Option(help="Branches, about; by default as many as it has.", min=1)
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of a sequence.", min=2)] = 256,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps; by default those of the run.", min=1)
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences of a step.", min=1)] = 8,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of the base model; by default that of the run."),
    ] = None,
    scheme: Annotated[
        Parametrisation, typer.Option(help="How hyper-parameters follow the size.")
    ] = Parametrisation.completep,
    text: TextOpt = None,
    tokenizer: TokenizerOpt = "byte",
    baseline: Annotated[
        str,
        typer.Option(help="What is trained beside it with as many parameters, or none."),
    ] = "transformer_pp",
    trial: Annotated[str, typer.Option(help="Index of a trial of the run, or best.")] = "best",
    seed: Annotated[int, typer.Option(help="Of starts and order of the text.")] = 0,
    accumulate: Annotated[
        int, typer.Option(help="Parts that a step is cut into, to save memory.", min=1)
    ] = 1,
    bf16: Annotated[
        bool | None, typer.Option(help="Activations in bfloat16; by default on a GPU.")
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="By default on a GPU.")
    ] = None,
    shard: Annotated[
        bool, typer.Option(help="Under torchrun: share weights among processes (FSDP2).")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda; by default what is there.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Directory; by default below that of the run.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Show the plan and stop.")] = False,
    fit: Annotated[
        bool, typer.Option(help="Train at several widths instead, and fit the laws of the losses.")
    ] = False,
    widths: Annotated[
        str, typer.Option(help="With --fit: e.g. 64,128,256; by default 1, 2 and 4 times its own.")
    ] = "",
    lrs: Annotated[
        str, typer.Option(help="With --fit: learning rates, FROM:TO or FROM:TO:STEP as log2.")
    ] = "",
    batches: Annotated[str, typer.Option(help="With --fit: sequences of a step, e.g. 4,8.")] = "",
    finalists: Annotated[
        int, typer.Option(help="With --fit: how many of the best of a run.", min=1, max=20)
    ] = 1,
    seeds: Annotated[int, typer.Option(help="With --fit: of each training.", min=1, max=10)] = 2,
    workers: Annotated[
        int | None, typer.Option(help="With --fit: processes; by default one per core.", min=1)
    ] = None,
    override: SetOpt = None,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Train a winner at a larger size on text, with the hyper-parameters of its search.

    Shows the plan first. The same command continues a training that was stopped. On several GPUs:
    torchrun --nproc-per-node 8 -m archsearch scale RUN ...
    """
    from archsearch.report.scale import Wanted, scale

    given = {"steps": steps, "lr": lr, "batch": batch}
    named = {f"recipe.{k}={v}" for k, v in given.items() if v is not None}
    genome, recipe, folder = _to_scale(source, trial, storage, [*(override or ()), *sorted(named)])
    if not fit and (widths or lrs or batches or finalists > 1):
        raise RunError("--widths, --lrs, --batches and --finalists go with --fit")
    if fit:
        from archsearch.report import fit as laws
        from archsearch.scale.pretrain import Settings
        from archsearch.scale.sweep import powers

        width = genome.d_model
        laws.fit_family(
            laws.Wanted(
                genomes={"winner": genome} | _others(source, storage, genome, finalists),
                baseline="" if baseline == "none" else baseline, recipe=recipe, depth=depth,
                widths=tuple(sorted({*_whole(widths)})) or (width, 2 * width, 4 * width),
                scheme=scheme.value,
                log2_lrs=powers(lrs) if lrs else (), batches=_whole(batches), seeds=seeds,
                settings=Settings(context=context, seed=seed), text=tuple(text or ()),
                tokenizer=tokenizer,
            ),
            out or folder / "scale" / "fit", folder / "scale" / "text", workers or _cores(),
            console, dry_run=dry_run,
        )  # fmt: skip
        return
    scale(
        Wanted(
            genome=genome, recipe=recipe, width=width, depth=depth or len(genome.genes),
            context=context, scheme=scheme.value, text=tuple(text or ()), tokenizer=tokenizer,
            baseline="" if baseline == "none" else baseline, seed=seed, accumulate=accumulate,
            bf16=bf16, compile=compiled, shard=shard, device=device,
        ),
        out or folder / "scale" / f"w{width}-d{depth or len(genome.genes)}",
        console,
        dry_run=dry_run,
    )  # fmt: skip


@app.command()
def fidelity(
    run: RunArg,
    genomes: Annotated[
        int | None,
        typer.Option(help="Genomes of the panel beside two anchors; by default 16.", min=3),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Width of the targets; by default four times that of each.", min=1),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps on text; by default those of the run.", min=1)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each training.", min=2, max=10)] = 2,
    context: Annotated[int, typer.Option(help="Tokens of a sequence.", min=2)] = 128,
    batch: Annotated[int, typer.Option(help="Sequences of a step.", min=1)] = 8,
    text: TextOpt = None,
    tokenizer: TokenizerOpt = "byte",
    workers: Annotated[
        int | None, typer.Option(help="Processes; by default one per core.", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Show the plan and stop.")] = False,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Say whether the scores of a run rank its candidates as training at a larger size does.

    Trains a panel of its space on fresh seeds and, wider, on text. The same command continues;
    results go to RUN/fidelity.
    """
    from archsearch.report.fidelity import Wanted
    from archsearch.report.fidelity import fidelity as measure

    wanted = Wanted(
        genomes=genomes, width=width, steps=steps, seeds=seeds, context=context, batch=batch,
        text=tuple(text or ()), tokenizer=tokenizer,
    )  # fmt: skip
    folder = Path(run)
    measure(_study(run, storage), folder, wanted, workers or _cores(), console, dry_run=dry_run)


@app.command()
def mup_check(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A run directory, a space of one member, or a swept.jsonl to judge anew; by "
            "default a net of attention and one of Mamba-2."
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option(help="The net of attention alone: 8 times as wide, 8 times as deep.")
    ] = False,
    widths: Annotated[
        str, typer.Option(help="E.g. 32,64,128, the base first; by default its own and 4 times it.")
    ] = "",
    depths: Annotated[
        str, typer.Option(help="In branches, the base first; by default its own and 4 times it.")
    ] = "",
    schemes: Annotated[
        str, typer.Option(help="sp and mup over width; mup, depth_mup and completep over depth.")
    ] = "sp,mup,completep",
    lrs: Annotated[
        str, typer.Option(help="Learning rates as powers of two, FROM:TO or FROM:TO:STEP.")
    ] = "-9.5:-3.5",
    seeds: Annotated[
        int | None, typer.Option(help="Of each training; by default 2.", min=1, max=10)
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of a sequence.", min=2)] = 64,
    text: TextOpt = None,
    tokenizer: TokenizerOpt = "byte",
    trial: Annotated[str, typer.Option(help="Index of a trial of the run, or best.")] = "best",
    workers: Annotated[
        int | None, typer.Option(help="Processes; by default one per core.", min=1)
    ] = None,
    override: SetOpt = None,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Check that hyper-parameters transfer: learning rates swept over widths and depths.

    Each scheme stands beside the one that must fail: SP over width, a = 0 over depth. The same
    command continues; results go to RUN/mup-check or runs/NAME/mup-check.
    """
    from archsearch.report.mup_check import mup_check as sweep
    from archsearch.report.mup_check import show
    from archsearch.scale.pretrain import Settings
    from archsearch.scale.sweep import powers
    from archsearch.scale.transfer import NETS, SET_UP, Design, Swept

    if source and source.endswith(".jsonl"):
        show(Swept.read(Path(source)), console)
        return
    for name in [source] if source else NETS[:1] if demo else NETS:
        genome, recipe, home = _to_scale(name, trial, storage, [*SET_UP, *(override or ())])
        width, depth, far = genome.d_model, len(genome.genes), 8 if demo else 4
        design = Design.of(
            genome, _whole(widths) or (width, far * width), _whole(depths) or (depth, far * depth),
            schemes=tuple(schemes.split(",")), log2_lrs=powers(lrs), recipe=recipe,
            seeds=seeds or (1 if demo else 2), settings=Settings(context=context, held_out=128),
        )  # fmt: skip
        sweep(design, tuple(text or ()), tokenizer, home / "mup-check", home / "scale" / "text",
              workers or _cores(), console)  # fmt: skip


@app.command()
def check(space: SpaceArg, override: SetOpt = None) -> None:
    """Check a space: its size, what its rules reject, and how long a search would take."""
    from archsearch.space_yaml import load

    experiment = load(space, tuple(override or ()))
    from archsearch.report.survey import check_report

    check_report(experiment, space, _cores(), console)


@app.command()
def spaces() -> None:
    """List the spaces that can be run by name."""
    from archsearch.report.lists import space_table

    console.print(space_table())


@app.command()
def blocks(
    name: Annotated[str | None, typer.Argument(help="One block, with its parameters.")] = None,
) -> None:
    """List the blocks that a space may use, or describe one."""
    from archsearch.report.lists import block_page, block_table

    console.print(block_page(name) if name else block_table())


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="One task, with its parameters.")] = None,
) -> None:
    """List the tasks, with the score of guessing, or describe one."""
    from archsearch.report.lists import task_page, task_table

    console.print(task_page(name) if name else task_table())


@app.command()
def schema() -> None:
    """Print the JSON Schema of space files, for completion in editors."""
    from archsearch.schema import json_schema

    print(json.dumps(json_schema(), indent=2))  # noqa: T201


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A run, a directory of `archsearch scale`, or a space of one member: a file or a "
            "name."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Directory to write.")],
    kind: Annotated[
        Format, typer.Option("--format", help="By default yaml for a run, hf for models of text.")
    ] = Format.auto,
    trial: Annotated[
        str, typer.Option(help="Of a run: index of a trial, best, or front for all of it.")
    ] = "best",
    task: Annotated[
        str | None, typer.Option(help="Of a run: whose weights; those of the first by default.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="Of a model of text: byte, or its tokenizer.json.")
    ] = "byte",
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Write a model for other tools; what is written is loaded and compared before it counts.

    yaml: the genome, and weights per task. hf: a directory for transformers. torch: one Python
    file. native, gguf, pattern: what other programs know, where the architecture fits.
    """
    from archsearch.report.export import Asked, export_other, export_run

    asked = Asked(format=kind.value, task=task, tokenizer=tokenizer, force=force)
    if (Path(source) / "space.yaml").is_file():
        export_run(_study(source, storage), Path(source), trial, target, asked, console)
    else:
        export_other(source, target, asked, console)


@app.command()
def dashboard(
    run: RunArg,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8080,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Serve Optuna's dashboard for a run, with a drawing and a note for every trial."""
    from archsearch.report.dashboard import serve

    serve(_study(run, storage), Path(run), port, console)


def _with_tasks(space: str, overrides: Iterable[str]) -> Experiment:
    """What a space file says.

    Raises:
        SpaceError: if it is wrong, or names nothing to train on.
    """
    from archsearch.space_yaml import load

    experiment = load(space, tuple(overrides))
    if not experiment.tasks:
        raise SpaceError(f"{space} names no tasks; add e.g. `tasks: {{use: [mad/*]}}`")
    return experiment


def _to_scale(
    source: str, trial: str, storage: str, overrides: list[str]
) -> tuple[Genome, Recipe, Path]:
    """What is scaled up, how it was trained, and where results of it go.

    Raises:
        RunError: if the run has no such trial.
        SpaceError: if there is neither a run nor a space of one member, or an override is wrong.
    """
    from archsearch.space_yaml import load, load_genome, parse

    if not (Path(source) / "space.yaml").is_file():
        genome = load_genome(source)
        return genome, load(source, tuple(overrides)).recipe, Path("runs") / Path(source).stem
    from archsearch.report.session import pick

    study = _study(source, storage)
    known = (*study.about["overrides"], "search.start_from=[]", "search.rungs=[]")
    experiment = parse(study.about["space"], f"{study.name}.yaml", (*known, *overrides))
    return pick(study, trial).genome, experiment.recipe, Path(source)


def _others(source: str, storage: str, winner: Genome, count: int) -> dict[str, Genome]:
    """The best of a run beside its winner, `count` with it, by their indexes.

    Raises:
        RunError: if there is no run.
    """
    if count == 1:
        return {}
    best = _study(source, storage).finalists(count)
    others = {f"#{record.index}": record.genome for record in best if record.genome != winner}
    return dict(list(others.items())[: count - 1])


def _study(run: str, storage: str) -> Study:
    """The study of a run directory.

    Raises:
        RunError: if there is no run there.
    """
    from archsearch.search.storage import JOURNAL, open_storage
    from archsearch.search.study import Study

    folder = Path(run).resolve()
    if not (folder / "space.yaml").is_file():
        here = sorted(str(p.parent) for p in Path().glob("runs/*/space.yaml"))
        raise RunError(f"{run} is no run directory; runs here: {', '.join(here) or 'none'}")
    if storage:
        return Study(open_storage(storage), folder.name)
    if not (folder / JOURNAL).is_file():
        raise RunError(
            f"the study of {run} is not kept there; name its storage with --storage, or in the "
            "environment as ARCHSEARCH_STORAGE"
        )
    return Study.only(open_storage(folder))


def _whole(said: str) -> tuple[int, ...]:
    """Whole numbers with commas between them; none of an empty text.

    Raises:
        RunError: if that is no such text.
    """
    try:
        return tuple(int(number) for number in said.split(",") if said)
    except ValueError:
        raise RunError(f"'{said}' is no list of whole numbers, e.g. 32,64,128") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

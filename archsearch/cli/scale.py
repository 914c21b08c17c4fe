"""Verbs of what comes after a search: larger models, and whether they may be trusted."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archsearch.cli.common import (
    DeviceOpt,
    RunArg,
    SetOpt,
    TextOpt,
    TokenizerOpt,
    WorkersOpt,
    console,
    study_of,
    whole_numbers,
    workers_on,
)
from archsearch.errors import RunError, SpaceError

if TYPE_CHECKING:
    from archsearch.genome import Genome
    from archsearch.sections import Recipe

app = typer.Typer()


class Parametrisation(Enum):
    """How hyper-parameters follow the size of a model."""

    completep = "completep"
    depth_mup = "depth_mup"
    mup = "mup"
    sp = "sp"


@app.command("scale")
def scale_up(
    source: Annotated[
        str, typer.Argument(help="A run directory, or a space of one member: a file or a name.")
    ],
    width: Annotated[int | None, typer.Option(help="Model width; by default 256.", min=1)] = None,
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
        int | None, typer.Option(help="Parts that a step is cut into, to save memory.", min=1)
    ] = None,
    bf16: Annotated[
        bool | None, typer.Option(help="Activations in bfloat16; by default on a GPU.")
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="By default on a GPU.")
    ] = None,
    shard: Annotated[
        bool, typer.Option(help="Under torchrun: share weights among processes (FSDP2).")
    ] = False,
    device: DeviceOpt = None,
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
        int | None,
        typer.Option(
            help="With --fit: processes; by default one per core, on GPUs 4 for each.", min=1
        ),
    ] = None,
    override: SetOpt = None,
    storage: Annotated[str, typer.Option(envvar="ARCHSEARCH_STORAGE", help="Storage URL.")] = "",
) -> None:
    """Train a winner at a larger size on text, with the hyper-parameters of its search.

    Shows the plan first. The same command continues a training that was stopped. On several GPUs:
    torchrun --nproc-per-node 8 -m archsearch scale RUN ...
    """
    if not fit and (widths or lrs or batches or finalists > 1):
        raise RunError("--widths, --lrs, --batches and --finalists go with --fit")
    single = (width, accumulate, bf16, compiled, shard or None)
    if fit and any(option is not None for option in single):
        raise RunError(
            "--fit trains small models at several --widths, each in a process of its own; "
            "--width, --accumulate, --bf16, --compile and --shard are for one large one"
        )
    from archsearch.report.scale import Wanted, scale

    processes = workers_on(device, workers)
    given = {"steps": steps, "lr": lr, "batch": batch}
    named = {f"recipe.{k}={v}" for k, v in given.items() if v is not None}
    genome, recipe, folder = _to_scale(source, trial, storage, [*(override or ()), *sorted(named)])
    if fit:
        from archsearch.report import fit as laws
        from archsearch.scale.pretrain import Settings
        from archsearch.scale.sweep import powers

        own = genome.d_model
        laws.fit_family(
            laws.Wanted(
                genomes={"winner": genome} | _others(source, storage, genome, finalists),
                baseline="" if baseline == "none" else baseline, recipe=recipe, depth=depth,
                widths=tuple(sorted({*whole_numbers(widths)})) or (own, 2 * own, 4 * own),
                scheme=scheme.value,
                log2_lrs=powers(lrs) if lrs else (), batches=whole_numbers(batches), seeds=seeds,
                settings=Settings(context=context, seed=seed), text=tuple(text or ()),
                tokenizer=tokenizer,
            ),
            out or folder / "scale" / "fit", folder / "scale" / "text", processes,
            console, dry_run=dry_run,
        )  # fmt: skip
        return
    width = width or 256
    scale(
        Wanted(
            genome=genome, recipe=recipe, width=width, depth=depth or len(genome.genes),
            context=context, scheme=scheme.value, text=tuple(text or ()), tokenizer=tokenizer,
            baseline="" if baseline == "none" else baseline, seed=seed, accumulate=accumulate or 1,
            bf16=bf16, compile=compiled, shard=shard,
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
    workers: WorkersOpt = None,
    device: DeviceOpt = None,
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
    processes = workers_on(device, workers)
    measure(study_of(run, storage), folder, wanted, processes, console, dry_run=dry_run)


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
    workers: WorkersOpt = None,
    device: DeviceOpt = None,
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
    processes = workers_on(device, workers)
    for name in [source] if source else NETS[:1] if demo else NETS:
        genome, recipe, home = _to_scale(name, trial, storage, [*SET_UP, *(override or ())])
        width, depth, far = genome.d_model, len(genome.genes), 8 if demo else 4
        design = Design.of(
            genome,
            whole_numbers(widths) or (width, far * width),
            whole_numbers(depths) or (depth, far * depth),
            schemes=tuple(schemes.split(",")), log2_lrs=powers(lrs), recipe=recipe,
            seeds=seeds or (1 if demo else 2), settings=Settings(context=context, held_out=128),
        )  # fmt: skip
        sweep(design, tuple(text or ()), tokenizer, home / "mup-check", home / "scale" / "text",
              processes, console)  # fmt: skip


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
        try:
            genome = load_genome(source)
        except SpaceError as error:
            run = Path("runs") / Path(source).stem
            if not (run / "space.yaml").is_file():
                raise
            raise SpaceError(f"{error}; did you mean {run}?") from None
        return genome, load(source, tuple(overrides)).recipe, Path("runs") / Path(source).stem
    from archsearch.report.session import pick

    study = study_of(source, storage)
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
    best = study_of(source, storage).finalists(count)
    others = {f"#{record.index}": record.genome for record in best if record.genome != winner}
    return dict(list(others.items())[: count - 1])

"""The verbs for a model that was trained: one verb, one thin function."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from archsearch.cli.common import DeviceOpt, console, place, study_of
from archsearch.errors import ModelError

app = typer.Typer()

ModelArg = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="What `archsearch export` or `archsearch scale` wrote, or a run for its best model.",
    ),
]
TaskOpt = Annotated[
    str, typer.Option(help="Whose weights, where DIR has several; by default the first.")
]
TokenizerOpt = Annotated[
    str,
    typer.Option(
        help="byte, a tokenizer.json, or a Hugging Face tokenizer; by default that of the training."
    ),
]


class Format(Enum):
    """How a model is written."""

    auto = "auto"
    yaml = "yaml"
    hf = "hf"
    native = "native"
    gguf = "gguf"
    pattern = "pattern"
    torch = "torch"


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
        str,
        typer.Option(
            help="Of a model of text: byte, or its tokenizer.json; by default that of the training."
        ),
    ] = "",
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
        export_run(study_of(source, storage), Path(source), trial, target, asked, console)
    else:
        export_other(source, target, asked, console)


@app.command()
def generate(
    folder: ModelArg,
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on from; ids for a model of a task.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Most tokens that follow.", min=1)] = 256,
    temperature: Annotated[
        float | None, typer.Option(help="0, the default, is greedy; higher is more random.", min=0)
    ] = None,
    top_p: Annotated[
        float,
        typer.Option(help="Draw among the likeliest tokens of this share.", min=1e-6, max=1),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    context: Annotated[
        int | None,
        typer.Option(help="Room for prompt and answer; by default what they need.", min=1),
    ] = None,
    speculate: Annotated[
        int,
        typer.Option(help="Guess so many tokens and verify them: the same text, greedy.", min=0),
    ] = 0,
    exit_layer: Annotated[
        int | None,
        typer.Option(
            help="Guess by the first branches of the model, so many; by default from the text.",
            min=1,
        ),
    ] = None,
    best_of: Annotated[
        int, typer.Option(help="Instead of a prompt: answers to each row of a task.", min=0)
    ] = 0,
    rows: Annotated[int, typer.Option(help="Rows of the task.", min=1)] = 256,
    task: TaskOpt = "",
    tokenizer: TokenizerOpt = "",
    device: DeviceOpt = None,
) -> None:
    """Go on from a prompt, or answer the rows of a task several times and verify.

    The text goes to stdout as it comes, figures to stderr.
    """
    from archsearch.inference import load
    from archsearch.report.generate import Asked, answer, go_on

    loaded = load(folder, task, tokenizer, place(device))
    asked = Asked(
        tokens=tokens, temperature=temperature or 0.0, top_p=top_p, seed=seed,
        speculate=speculate, exit_layer=exit_layer, context=context,
    )  # fmt: skip
    if best_of:
        if prompt is not None or temperature == 0:
            what = "a prompt" if prompt is not None else "temperature 0"
            raise ModelError(f"--best-of asks rows of the task, drawn at random; leave {what} out")
        answer(loaded, best_of, rows, asked, console)
    elif prompt is None:
        raise ModelError("give a prompt to go on from, or --best-of for a model of a task")
    else:
        go_on(loaded, prompt, asked, console, Console(stderr=True, highlight=False))


@app.command("eval")
def evaluate(
    folder: ModelArg,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="A file, a directory, or hf:NAME of a Hugging Face dataset; by default the "
            "standard library of this Python. Repeatable."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, e.g. mad/compression,mad/memorization; by default all of DIR."),
    ] = None,
    harness: Annotated[
        str, typer.Option(help="Tasks of lm-evaluation-harness, e.g. piqa,arc_easy.")
    ] = "",
    harness_tasks: Annotated[
        Path | None, typer.Option(help="A directory with more tasks for the harness, as YAML.")
    ] = None,
    contexts: Annotated[
        str,
        typer.Option(
            help="Tokens of a window of text, e.g. 256,1K; by default 1, 2 and 4 times those of "
            "training."
        ),
    ] = "",
    windows: Annotated[
        int,
        typer.Option(
            help="Most windows of the longest context; shorter ones are cut from them.", min=2
        ),
    ] = 128,
    rows: Annotated[int, typer.Option(help="Rows of a task at each difficulty.", min=2)] = 256,
    seed: Annotated[int, typer.Option(help="Of the rows.")] = 0,
    tokenizer: TokenizerOpt = "",
    device: DeviceOpt = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where token files are kept; by default beside the model.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of eval.json and eval.svg; by default DIR.")
    ] = None,
) -> None:
    """Score a model: bits per byte on held-out text, or its task at every difficulty.

    A model of text is read text; a model of tasks is asked their rows, also longer ones than it was
    trained on; a model of the task `text`, both, and by default on the text of its training.
    """
    from archsearch.inference import load
    from archsearch.report.bench import contexts_of
    from archsearch.report.evaluate import on_harness, on_task, on_text, write_scores

    loaded = load(folder, tokenizer=tokenizer, device=place(device))
    named = [name for name in (tasks or "").split(",") if name]
    by_default = not (named or text or harness)
    if by_default:
        named = [*loaded.labels]
    by_task, read, harnessed = {}, [], []
    for name in named:
        by_task[name] = on_task(load(folder, name, device=place(device)), rows, seed, console)
    if harness:
        names = [name for name in harness.split(",") if name]
        harnessed = on_harness(loaded, names, harness_tasks, console)
    others = (load(folder, name, device=place(device)) for name in loaded.labels)
    reader = loaded
    if text or by_default:
        reader = next((other for other in others if other.vocabulary.tokenizer), loaded)
    if text or (by_default and (reader.vocabulary.tokenizer or not named)):
        lengths = contexts_of(contexts) if contexts else []
        known = [reader.task.source] if getattr(reader.task, "source", "") else []
        read = on_text(reader, text or known, lengths, windows, cache or reader.cache, console)
    write_scores(out or folder, read, by_task, harnessed, console)


@app.command()
def bench(
    folder: ModelArg,
    contexts: Annotated[
        str, typer.Option(help="Lengths of context in tokens.")
    ] = "1K,2K,4K,8K,16K,32K,64K",
    baseline: Annotated[
        str, typer.Option(help="What is timed beside it with as many parameters, or none.")
    ] = "transformer_pp",
    seconds: Annotated[
        float, typer.Option(help="Most that one cell of the table may take.", min=0.01)
    ] = 10.0,
    task: TaskOpt = "",
    tokenizer: TokenizerOpt = "",
    device: DeviceOpt = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of bench.json and bench.svg; by default DIR.")
    ] = None,
) -> None:
    """Time a model by length of context: reading a prompt, decoding, and the state it keeps."""
    from archsearch.inference import load
    from archsearch.report.bench import bench as run
    from archsearch.report.bench import contexts_of

    lengths = contexts_of(contexts)
    loaded = load(folder, task, tokenizer, place(device))
    other = "" if baseline == "none" else baseline
    run(loaded, lengths, other, seconds, out or folder, console)


@app.command()
def attend(
    folder: ModelArg,
    text: Annotated[str, typer.Option(help="What the model reads; ids for a model of a task.")],
    task: TaskOpt = "",
    tokenizer: TokenizerOpt = "",
    out: Annotated[
        Path | None, typer.Option(help="The page, an SVG file; by default DIR/attend.svg.")
    ] = None,
) -> None:
    """Draw what every mixer looks at: attention, and the hidden attention of recurrent mixers."""
    from archsearch.inference import load
    from archsearch.report.attend import attend as draw

    loaded = load(folder, task, tokenizer)
    draw(loaded, text, out or folder / "attend.svg", console)

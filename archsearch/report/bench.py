"""Behind `archsearch bench`: speed and memory by context, as a table, a picture and JSON."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from archsearch.errors import ModelError
from archsearch.inference.timing import TOKENS, Figure, measure, opponent
from archsearch.model import build
from archsearch.report.panels import Curve, Panel, draw_panels
from archsearch.search.fresh import write
from archsearch.search.study import versions
from archsearch.space_yaml import load_genome
from archsearch.train import generator
from archsearch.words import count, short, size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.console import Console

    from archsearch.inference.loading import Loaded

JSON, SVG = "bench.json", "bench.svg"
THIS, OTHER = "this", "baseline"
NEVER = "-"


def bench(
    loaded: Loaded,
    contexts: Sequence[int],
    baseline: str,
    seconds: float,
    out: Path,
    console: Console,
) -> None:
    """Time a model beside a baseline of its size.

    Args:
        loaded: The model.
        contexts: In tokens.
        baseline: A space of one member; empty for none.
        seconds: See `timing.measure`.
        out: Directory of JSON and picture.
        console: Where the table goes.

    Raises:
        ModelError: if the model cannot decode.
        SpaceError: if there is no such baseline.
    """
    models = {THIS: loaded.model}
    if baseline:
        genome = opponent(loaded, load_genome(baseline))
        other = build(genome, loaded.model.vocab, generator=generator("bench", "start"))
        models[OTHER] = other.to(loaded.device).eval()
    contexts = sorted(set(contexts))
    for name, model in models.items():
        params = count(sum(p.numel() for p in model.parameters()))
        known_as = f" ({baseline})" if name == OTHER else ""
        console.print(
            f"{name}{known_as}: {model.genome.text()}, {params} parameters with embeddings",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    figures = measure(models, contexts, seconds)
    threads = torch.get_num_threads()
    where = f"{loaded.device}, {threads} thread" + ("s" if threads > 1 else "")
    console.print(f"one sequence on {where}; tokens per second\n", markup=False)
    console.print(_table(figures))
    if any(f.prefill is None or not f.decode for of in figures.values() for f in of):
        console.print(f"\n{NEVER} would take more than {seconds:g} s, or too much memory")
    console.print(_growth(figures[THIS]), markup=False, soft_wrap=True)
    told = {"device": where, "versions": versions(), "models": _told(models, figures)}
    out.mkdir(parents=True, exist_ok=True)
    write(out / JSON, json.dumps(told, indent=1) + "\n")
    write(out / SVG, draw_panels(_panels(figures)))
    console.print(f"written to {out}: {JSON}, {SVG}", markup=False, soft_wrap=True)


def _table(figures: dict[str, list[Figure]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("context", justify="right")
    for what in ("prefill", "decode", "state"):
        for name in figures:
            table.add_column(f"{what}\n{name}", justify="right", overflow="fold")
    for place, first in enumerate(next(iter(figures.values()))):
        row = [figures_of[place] for figures_of in figures.values()]
        table.add_row(
            short_context(first.context),
            *(_rate(figure.prefill_rate) for figure in row),
            *(_rate(figure.decode_rate) for figure in row),
            *(size(figure.state_bytes) for figure in row),
        )
    return table


def _rate(rate: float | None) -> str:
    return NEVER if rate is None else short(rate) if rate >= 100 else f"{rate:.3g}"


def short_context(tokens: float) -> str:
    """1024 as `1K`."""
    return f"{tokens / 1024:g}K" if tokens % 1024 == 0 else f"{tokens:g}"


def _growth(figures: Sequence[Figure]) -> str:
    """How much longer a token takes at the last context than at the first; empty for one alone."""
    timed = [figure for figure in figures if figure.decode]
    if len(timed) < 2:
        return ""
    first, last = timed[0], timed[-1]
    ratios = [b / a for a, b in zip(first.decode, last.decode, strict=True)]
    return (
        f"\na token at {short_context(last.context)} takes {statistics.median(ratios):.2f} times "
        f"as long as one at {short_context(first.context)} ({min(ratios):.2f} to "
        f"{max(ratios):.2f} over {len(ratios)} turns of {TOKENS} tokens at most)"
    )


def _panels(figures: dict[str, list[Figure]]) -> list[Panel]:
    kinds: tuple[tuple[str, Callable[[Figure], float | None], int], ...] = (
        ("reading a prompt, tokens per second", lambda f: f.prefill_rate, 10),
        ("decoding, tokens per second", lambda f: f.decode_rate, 10),
        ("state of a sequence", lambda f: f.state_bytes or None, 2),
    )
    panels = []
    for title, value, base in kinds:
        curves = []
        for name, of in figures.items():
            points = [(float(f.context), v, 0.0) for f in of if (v := value(f)) is not None]
            curves += [Curve(name, points)] if points else []
        if curves:
            panels.append(
                Panel(
                    title,
                    "context",
                    curves,
                    log=base,
                    label=size if base == 2 else short,
                    label_across=short_context,
                )
            )
    return panels


def _told(models: dict[str, Any], figures: dict[str, list[Figure]]) -> dict[str, Any]:
    return {
        name: {
            "genome": model.genome.to_json(),
            "params": sum(p.numel() for p in model.parameters()),
            "contexts": [
                {
                    "context": f.context, "prefill_s": f.prefill, "decode_s": f.decode,
                    "state_bytes": f.state_bytes,
                }
                for f in figures[name]
            ],
        }
        for name, model in models.items()
    }  # fmt: skip


def contexts_of(text: str) -> list[int]:
    """`1K,4K,300` as numbers.

    Raises:
        ModelError: if one of them is none.
    """
    found = []
    for word in text.split(","):
        number, unit = word.strip().upper().removesuffix("K"), word.strip().upper().endswith("K")
        if not number.isdecimal() or not 0 < int(number) * (1024 if unit else 1) <= 1 << 24:
            raise ModelError(
                f"'{word.strip()}' is no context; legal: whole numbers of tokens from 1 to 16384K, "
                "e.g. 1K,4K,16K"
            )
        found.append(int(number) * (1024 if unit else 1))
    return found

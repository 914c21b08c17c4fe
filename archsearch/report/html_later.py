"""The report on what came after the search: larger models on text, and whether proxies rank them.

What other commands wrote may be missing, unfinished or of another version; then less is said.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from archsearch.errors import SpaceError
from archsearch.genome import Genome
from archsearch.report.html_parts import (
    MINUS,
    Html,
    code,
    join,
    mark,
    paragraph,
    section,
    table,
    tag,
    track,
    whisker,
)
from archsearch.report.html_plot import Axis, Dot, scatter
from archsearch.words import count, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from archsearch.report.html_sheet import Sheet

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, SpaceError)
"""What a file of another version raises."""
REFERENCES = {"order0": "bytes by frequency", "xz": "xz"}
"""What bits per byte are without a model, as `archsearch scale` calls them."""


def scaled_up(sheet: Sheet) -> Html:
    """Each training of the winner at a larger size, beside its baseline."""
    files = sorted((sheet.folder / "scale").glob("*/result.json"))
    return section("scale", "Scaled up", *(_read(_scaled, file) for file in files))


def fidelity(sheet: Sheet) -> Html:
    """Whether the proxy tasks rank the candidates as text does."""
    file = sheet.folder / "fidelity" / "fidelity.json"
    if not file.is_file():
        return Html()
    return section("fidelity", "May the proxy be trusted?", _read(_agreement, file))


def _read(draw: Any, file: Path) -> Html:
    """What a file says, drawn; a sentence where that cannot be read."""
    try:
        return join(draw(json.loads(file.read_text()), file))
    except UNREADABLE:
        where = f"{file.parent.name}/{file.name}"
        return paragraph(code(where), " cannot be read by this version.", kind="note")


def _scaled(data: Mapping[str, Any], file: Path) -> Iterator[Html]:
    text = data["text"]
    models = {name: told for name, told in data.items() if name != "text"}
    winner = Genome.from_json(models["winner"]["genome"])
    references = {REFERENCES[k]: float(text[k]) for k in REFERENCES if text.get(k) is not None}
    bits = {name: float(told["bits_per_byte"]) for name, told in models.items()}
    most = max([*bits.values(), *references.values()])
    yield tag("h3", f"Width {winner.d_model}, {len(winner.genes)} branches")
    rows = list[tuple[str, ...]]()
    for name, told in sorted(models.items(), key=lambda item: bits[item[0]]):
        genome = code(Genome.from_json(told["genome"]).text())
        rows.append((
            name, genome, track(mark("bar", 0.0, bits[name] / most), name), f"{bits[name]:.3f}",
            f"{told['loss']:.3f}", count(told["params"]), count(told["tokens"]),
            span(told["seconds"]), str(told["stability"]),
        ))  # fmt: skip
    for name, value in references.items():
        bar = track(mark("bar", 0.0, value / most), "reference")
        rows.append((name, "", bar, f"{value:.3f}", "", "", "", "", ""))
    header = (
        "model", "genome", "fewer is better", "bits per byte", "loss", "parameters", "tokens",
        "time", "training",
    )  # fmt: skip
    yield table(header, rows, numbers=header[3:8], lines=header[1:3])
    if {"winner", "baseline"} <= bits.keys():
        gap = bits["baseline"] - bits["winner"]
        where = "below" if gap >= 0 else "above"
        yield paragraph(
            f"On held-out text of {text['name']} the winner is {abs(gap):.3f} bits per byte "
            f"{where} the baseline. One seed of each, so a few hundredths mean nothing.",
            kind="note",
        )


def _agreement(data: Mapping[str, Any], file: Path) -> Iterator[Html]:
    proxy = data["proxy"]
    yield paragraph(tag("b", str(proxy["name"])), f": {data['verdict']['text']}.")
    if dots := list(_panel(data["panel"], str(proxy["name"]))):
        x = Axis.of(f"{proxy['name']} in the run", [dot.x for dot in dots])
        y = Axis.of("loss", [dot.y for dot in dots], " on text, in nats")
        yield scatter(dots, x, y, "loss on text at the larger size against the proxy")
    rows = []
    for standing in (proxy, *data["baselines"]):
        value, low, high = map(float, standing["tau"])
        interval = whisker(value, (low, high), (-1.0, 1.0), "tau")
        told = f"{value:.2f}", f"{low:.2f} to {high:.2f}"
        rows.append((str(standing["name"]), interval, *(t.replace("-", MINUS) for t in told)))
    header = ("ranked by", "from -1 to 1", "tau", "95 %")
    yield table(header, rows, numbers=header[2:], lines=header[:2], strong=0)
    yield paragraph(
        f"Rank correlation (Kendall's tau-b) with the loss on text of {int(data['genomes'])} "
        f"genomes, {int(data['seeds'])} seeds each, trained at a larger size. 1: the same order, "
        "0: none.", kind="note",
    )  # fmt: skip


def _panel(panel: Any, proxy: str) -> Iterator[Dot]:
    for member in panel:
        x, y = statistics.mean(member["scores"][proxy]), statistics.mean(member["target"])
        anchor = member["origin"] == "anchor"
        kind = "early" if member["unstable"] else "outside" if anchor else "other"
        told = f"{member['genome']}: {proxy} {x:.3f}, loss on text {y:.3f}"
        yield Dot(float(x), float(y), kind, told)

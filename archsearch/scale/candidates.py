"""The panel of a run: drawn from its space and its trials, and kept before a target is trained.

RUN/fidelity/panel.json

A panel that was kept is never drawn anew, so nothing that is learned of its genomes can change who
is in it.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from archsearch.errors import RunError, SpaceError
from archsearch.genome import Genome
from archsearch.mup import legal_widths, widened
from archsearch.rules import draw, members
from archsearch.scale import panel
from archsearch.scale.agreement import PICKS
from archsearch.scale.plan import deepened
from archsearch.search.fresh import write
from archsearch.seeds import seed
from archsearch.space_yaml import load_genome

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from archsearch.search.study import Record, Study
    from archsearch.space_yaml import Experiment

MIXERS = ("attention", "mamba2")
"""What the two anchors are made of, beside SwiGLU."""
FEED_FORWARD = "swiglu"
FEWEST = max(PICKS)
"""Genomes beside the anchors."""
FEWEST_TRIALS = 4
"""Trials that have a best quarter."""


@dataclass(frozen=True, slots=True)
class Member:
    """One genome of a panel, at the size of the run."""

    genome: Genome
    origin: Literal["uniform", "top", "anchor"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A panel, and what it was drawn with."""

    number: int
    """The seed of the run."""
    trials: int
    """Finished trials whose best quarter it was drawn from."""
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Genomes beside the anchors."""
        return sum(member.origin != "anchor" for member in self.members)


def choose(study: Study, size: int) -> Chosen:
    """Draw the panel of a run.

    Args:
        study: Its trials.
        size: Genomes beside the anchors.

    Raises:
        RunError: if the run has too few finished trials, or the space too few members.
    """
    experiment = study.experiment()
    trials = [r for r in study.latest() if _finished(r)]
    if len(trials) < FEWEST_TRIALS:
        raise RunError(
            f"{study.name} has {len(trials)} finished trials, too few for a best quarter to draw "
            f"from; {FEWEST_TRIALS} or more are needed, so continue the run first"
        )
    number = experiment.search.seed
    sampled = _sampled(experiment, number, size)
    known = {genome.key: genome for genome in (*sampled, *(r.genome for r in trials))}
    anchors = [_anchor(mixer, known.values(), trials) for mixer in MIXERS]
    known |= {genome.key: genome for genome in anchors}
    picks = panel.draw(
        [genome.key for genome in sampled],
        {r.genome.key: r.values[0] for r in trials},
        [genome.key for genome in anchors],
        size=size, number=number, maximize=study.maximize[0],
    )  # fmt: skip
    chosen = Chosen(number, len(trials), tuple(Member(known[p.key], p.origin) for p in picks))
    if chosen.size < size:
        legal = f"--genomes {FEWEST} to {chosen.size}" if chosen.size >= FEWEST else "none"
        raise RunError(
            f"{study.name} has {chosen.size} members beside the anchors, too few for a panel of "
            f"{size}; legal here: {legal}"
        )
    return chosen


def _finished(record: Record) -> bool:
    ended = record.status == "ok" and bool(record.values) and not record.attrs.get("outside")
    return ended and math.isfinite(record.values[0])


def _sampled(experiment: Experiment, number: int, size: int) -> list[Genome]:
    """Every member of a space that can be listed, else members as its sampler draws them."""
    space, context = experiment.space, experiment.context
    listed = members(space, context)
    if listed is not None:
        return [candidate.genome for candidate in listed]
    rng = random.Random(seed("panel", number, "sample"))
    return [
        draw(space, rng, context, lambda genome: True, uniform=True).genome for _ in range(2 * size)
    ]


def _anchor(mixer: str, known: Iterable[Genome], trials: list[Record]) -> Genome:
    """The deepest and plainest known genome of one mixer and SwiGLU, else one that is made."""
    pure = [g for g in known if _pure(g, mixer)]
    if not pure:
        return _made(mixer, [r.genome for r in trials])
    return min(pure, key=lambda g: (-len(g.genes), sum(len(x.changed) for x in g.genes), g.key))


def _pure(genome: Genome, mixer: str) -> bool:
    blocks = [gene.block for gene in genome.genes]
    return blocks == [mixer, FEED_FORWARD] * (len(blocks) // 2)


def _made(mixer: str, like: list[Genome]) -> Genome:
    """A shipped baseline of one mixer and SwiGLU, about as wide and as deep as some genomes."""
    plain = load_genome("transformer_pp")
    attention, feed_forward = plain.genes[:2]
    first = attention if mixer == "attention" else load_genome(mixer).genes[0]
    pair = replace(plain, genes=(first, feed_forward))
    depth = statistics.median_low(len(genome.genes) for genome in like)
    deep = deepened(pair, max(1, round(depth / 2)))
    width = statistics.median_low(genome.d_model for genome in like)
    near = sorted(legal_widths(deep, width), key=lambda legal: abs(legal - width))
    return widened(deep, near[0] if near else width)


def keep(file: Path, chosen: Chosen) -> None:
    """Write a panel down.

    Raises:
        RunError: if it cannot be written.
    """
    file.parent.mkdir(exist_ok=True)
    rows = [
        {"key": m.genome.key, "origin": m.origin, "genome": m.genome.to_json()}
        for m in chosen.members
    ]
    about = {"seed": chosen.number, "trials": chosen.trials, "members": rows}
    write(file, json.dumps(about, indent=1) + "\n")


def kept(file: Path) -> Chosen | None:
    """The panel that was written down; None if there is none.

    Raises:
        RunError: if the file is damaged.
    """
    if not file.exists():
        return None
    try:
        about = json.loads(file.read_text())
        drawn = tuple(
            Member(Genome.from_json(row["genome"]), row["origin"]) for row in about["members"]
        )
        return Chosen(about["seed"], about["trials"], drawn)
    except (ValueError, KeyError, TypeError, SpaceError) as error:
        raise RunError(
            f"{file} is damaged ({type(error).__name__}: {error}); remove it, and a panel is drawn "
            "anew"
        ) from None

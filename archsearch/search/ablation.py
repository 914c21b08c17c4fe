"""One-edit ablations: which part of a genome earns its place?

The genome and each of its edits are trained anew on the same tasks with seeds that the search has
not used. Starts and rows depend on the seed alone, so the differences are paired.
"""

from __future__ import annotations

import signal
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

from archsearch.catalogue import block_info
from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome
from archsearch.rules import cached_cost
from archsearch.seeds import seed
from archsearch.trial import run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence

    from archsearch.space_yaml import Experiment

STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Student's t at 97.5 % for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A genome that differs in one thing from another."""

    what: str
    """e.g. `3: mamba2 removed`; places count from 1."""
    genome: Genome


def edits(genome: Genome, others: Iterable[Genome] = ()) -> list[Edit]:
    """Every slot removed, replaced, moved, opened and unshared; equal results once.

    Args:
        genome: What is edited.
        others: Genomes, best first. A branch is replaced by the first branch of each other block
            of its kind that stands in one of them.
    """
    seen, found = {genome.key}, list[Edit]()
    for what, genes in _edited(genome, _known(others)):
        try:
            edited = replace(genome, genes=tuple(genes))
        except SpaceError:  # nothing is left, or what it reads is gone
            continue
        if edited.key not in seen:
            seen.add(edited.key)
            found.append(Edit(what, edited))
    return found


def _known(others: Iterable[Genome]) -> dict[str, Gene]:
    known: dict[str, Gene] = {}
    for other in others:
        for gene in other.genes:
            known.setdefault(gene.block, replace(gene, share=None, inputs=(), combine="add"))
    return known


def _edited(genome: Genome, known: dict[str, Gene]) -> Iterator[tuple[str, list[Gene]]]:
    genes = list(genome.genes)
    for i, gene in enumerate(genes):
        here, before, after = f"{i + 1}: {gene.block}", genes[:i], genes[i + 1 :]
        wired = partial(replace, inputs=gene.inputs, combine=gene.combine)
        if not any(later.inputs for later in after):  # they count the streams before them
            yield f"{here} removed", [*before, *after]
        kind = block_info(gene.block).kind
        for block, other in known.items():
            if block != gene.block and block_info(block).kind == kind:
                yield f"{here} replaced by {block}", [*before, wired(other), *after]
        if len(gene.inner) == 1:
            yield f"{here} replaced by what it holds", [*before, wired(gene.inner[0]), *after]
        if after and not gene.inputs and not after[0].inputs:
            moved = [*before, after[0], gene, *after[1:]]
            yield f"{here} moved behind {after[0].block}", moved
    for share in dict.fromkeys(gene.share for gene in genes if gene.share):
        blocks = next(gene.block for gene in genes if gene.share == share)
        alone = [replace(g, share=None) if g.share == share else g for g in genes]
        yield f"*{share}: {blocks} unshared", alone


@dataclass(frozen=True, slots=True)
class Change:
    """What an edit does to the score."""

    edit: Edit
    params: int
    """Parameters more than the genome has."""
    mean: float
    """Change of the score, the mean over seeds."""
    spread: float
    """Half of the 95 % interval (Student) of the mean."""

    @property
    def verdict(self) -> str:
        """What can be said of it."""
        if self.mean + self.spread < 0:
            return "worse"
        return "better" if self.mean - self.spread > 0 else "not distinguishable"


def changes(
    genome: Genome,
    edited: Sequence[Edit],
    scores: MutableMapping[str, tuple[float, ...]],
    context: int,
) -> list[Change]:
    """The changes of the score, most harmful first, from the scores of each genome by key."""
    usual = scores[genome.key]
    found = []
    for edit in edited:
        pairs = zip(scores[edit.genome.key], usual, strict=True)
        differences = [one - other for one, other in pairs]
        n = len(differences)
        spread = STUDENT[n - 2] * statistics.stdev(differences) / n**0.5
        more = cached_cost(edit.genome, context).params - cached_cost(genome, context).params
        found.append(Change(edit, more, statistics.mean(differences), spread))
    return sorted(found, key=lambda change: change.mean)


def score(
    experiment: Experiment,
    genomes: Sequence[Genome],
    seeds: int,
    workers: int,
    scores: MutableMapping[str, tuple[float, ...]],
    on_scored: Callable[[], None] = lambda: None,
) -> None:
    """Train genomes on fresh seeds, side by side.

    Args:
        experiment: Tasks and recipe.
        genomes: What to train; those that `scores` has already are left alone.
        seeds: Fresh seeds of each.
        workers: Processes.
        scores: Receives by key the accuracy of each seed, the mean over tasks; 0 for a training
            that failed.
        on_scored: Called after each genome.
    """
    waiting = [genome for genome in genomes if genome.key not in scores]
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet)
    try:
        asked = {pool.submit(_scores, experiment, genome, seeds): genome for genome in waiting}
        for answer in as_completed(asked):
            scores[asked[answer].key] = answer.result()
            on_scored()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _scores(experiment: Experiment, genome: Genome, seeds: int) -> tuple[float, ...]:
    recipe = experiment.recipe.model_copy(update={"seeds": seeds})
    fresh = seed(experiment.search.seed, "fresh")
    result = run_trial(genome, experiment.tasks, recipe, fresh)
    if result.status != "ok":
        return (0.0,) * seeds
    return tuple(
        statistics.mean(run.accuracy for run in result.runs if run.seed == k) for k in range(seeds)
    )


def _quiet() -> None:
    """One thread a process; Ctrl-C is for the process that started it."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

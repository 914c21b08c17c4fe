"""Which genome comes next.

The proposal for place n is a function of the study's seed, of n and of the trials up to n - lag
alone. Who finished first, how many processes worked and how often they were killed changes nothing:
the same seed gives the same genomes. The price is that n waits until trial n - lag has ended.
"""

from __future__ import annotations

import dataclasses
import random
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from archsearch.errors import SpaceError
from archsearch.rules import Candidate, draw, measure, members, settle
from archsearch.search import evolution, graphgp, local, mixing, stock
from archsearch.search.evolution import Child, Tried, fitness
from archsearch.search.moves import MOVES, mutate
from archsearch.search.rungs import Schedule
from archsearch.seeds import seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from archsearch.dims import Value
    from archsearch.genome import Genome
    from archsearch.search.rungs import Place
    from archsearch.search.study import Record
    from archsearch.space import Decisions
    from archsearch.space_yaml import Experiment

ASKS = 50
"""How often a strategy is asked before a random draw takes its place."""
WARMUP = 10
"""Trials before one of Optuna's samplers is asked at all."""
SMALL = 150
"""Trials up to which `auto` takes the Gaussian process."""
NAMES = {
    "evolution": "evolution of genomes",
    "graphgp": "Gaussian process over genome graphs",
    "local": "local search",
    "random": "random without repeats",
    "tpe": "TPE",
    "nsga2": "NSGA-II",
}


class Proposals:
    """The sequence of genomes that a study tries.

    Args:
        experiment: What is searched, and how.
        lag: How far a proposal looks back: it learns from trials up to its index less this.
        carried: What was tried before the space changed, by index: given, not proposed again.
    """

    def __init__(
        self,
        experiment: Experiment,
        lag: int,
        carried: Mapping[int, Candidate] = MappingProxyType({}),
    ) -> None:
        self.experiment, self.lag = experiment, lag
        space, context, search = experiment.space, experiment.context, experiment.search
        self._first = seed_candidates(experiment)
        self._listed = members(space, context)
        random.Random(seed(search.seed, "order")).shuffle(self._listed or [])
        most = search.trials if self._listed is None else len(self._listed)
        self._everything = search.trials >= most and self._listed is not None
        self.genomes = min(search.trials, most)
        self.strategy = search.strategy
        if search.strategy == "auto":
            self.strategy = "graphgp" if self.genomes <= SMALL else "evolution"
        if self._everything:
            self.strategy = "random"
        self._stock = stock.Stock(self.strategy, space, len(experiment.goals))
        self._hinted = space.has_prior or any(not c.outside for c in self._first)
        self._made = dict(carried)
        self._tries: dict[tuple[int, int], Tried] = {}
        begun = self.genomes + sum(candidate.outside for candidate in self._first)
        self.schedule = Schedule(
            begun, lag, len(experiment.waits), search.keep, self._reached, len(self._first)
        )

    @property
    def total(self) -> int:
        """How many trials there will be, as far as it is certain."""
        return self.schedule.total

    @property
    def why(self) -> str:
        """The strategy, and why this one."""
        count = None if self._listed is None else len(self._listed)
        if self._everything:
            return f"all {count} distinct members of the space, in random order"
        size = (
            f"{self.experiment.space.size:.3g} combinations"
            if count is None
            else f"{count} members"
        )
        first, name = self.first, NAMES[self.strategy]
        if self.genomes <= first and self.strategy != "random":
            return f"{self.genomes} random members of {size}; {name} would begin after {first}"
        chosen = "chosen" if self.experiment.search.strategy == self.strategy else "auto"
        after = f" after {first} random trials" if self.strategy != "random" else ""
        return f"{name}{after} ({chosen}: {self.genomes} trials in {size})"

    @property
    def by_chance(self) -> bool:
        """Whether every proposal is a random draw."""
        return self.strategy == "random" or self.genomes <= self.first

    @property
    def first(self) -> int:
        """Trials before the strategy has what it needs."""
        needs = {
            "evolution": evolution.population(self.genomes),
            "graphgp": graphgp.START,
            "local": local.START,
            "tpe": WARMUP,
            "nsga2": stock.POPULATION,
        }
        return needs.get(self.strategy, 0) + self.lag

    def ready(
        self, index: int, records: Mapping[int, Record], begun: Mapping[int, Place] | None = None
    ) -> bool:
        """Whether it is known what place `index` is for: what it learns from has ended."""
        self.schedule.extend(records, begun or {})
        return index < len(self.schedule.places)

    def propose(
        self, index: int, records: Mapping[int, Record], begun: Mapping[int, Genome]
    ) -> Candidate:
        """The candidate with this index; that of the trial that goes on, if one does.

        Args:
            index: Its place in the sequence.
            records: The trials that ended, by index.
            begun: The genomes tried or in work, by index. As later proposals avoid earlier ones
                and not the other way round, those beyond `index` change nothing, unless another
                strategy made them.

        Raises:
            SpaceError: if no member is left that may be trained.
        """
        if index not in self._made:
            self._made[index] = self._propose(index, records, begun)
        return self._made[index]

    def _propose(
        self, index: int, records: Mapping[int, Record], begun: Mapping[int, Genome]
    ) -> Candidate:
        self.ready(index, records)
        places = self.schedule.places
        if index < len(places) and (before := places[index].continues) is not None:
            record = records[before]
            return known(record.params, record.genome, record.attrs)
        others = (i for i in begun if i != index and self.schedule.is_new(i))
        taken = {begun[i] for i in others}
        taken |= {self.propose(i, records, begun).genome for i in range(index) if i not in begun}
        ordinal = self.schedule.ordinal(index)
        if ordinal < len(self._first) and self._first[ordinal].genome not in taken:
            return self._first[ordinal]
        left = [c for c in self._listed or () if c.genome not in taken]
        if self._everything:
            return left[0]
        rng = random.Random(seed(self.experiment.search.seed, "proposal", index))
        arm = self._arm(index, ordinal, records)
        if arm == "prior" and (child := self._near_seeds(rng, taken)):
            return child
        if arm == "strategy" and (child := self._from_history(index, records, taken)):
            return child
        try:
            return self._drawn(rng, taken, uniform=arm == "random")
        except SpaceError:
            if not left:
                raise
            return left[0]

    def _arm(self, index: int, ordinal: int, records: Mapping[int, Record]) -> mixing.Arm | None:
        """Who makes a proposal; None for a random draw, by the prior where there is one."""
        if self.strategy == "random":
            return None
        if not self._hinted:
            return "strategy" if ordinal >= self.first else None
        history = self._history(index, records)
        valued = {i: tried.values for i, tried in enumerate(history) if tried.values}
        ranks = dict(zip(valued, fitness(list(valued.values())), strict=True)) if valued else {}
        origins = [
            records[i].attrs.get("origin", "") for i in sorted(valued, key=ranks.__getitem__)
        ]
        rng = random.Random(seed(self.experiment.search.seed, "arm", index))
        arm = mixing.pick(origins, self.first, rng)
        return None if arm == "strategy" and ordinal < self.first else arm

    def _near_seeds(self, rng: random.Random, taken: set[Genome]) -> Candidate | None:
        """A draw by the prior, or one edit away from a genome of `start_from`."""
        space = self.experiment.space
        seeds = [dict(c.decisions) for c in self._first if not c.outside]
        weights = {name: share for name, (share, _) in MOVES.items()}
        for _ in range(ASKS):
            if space.has_prior and (not seeds or rng.random() < 0.5):
                child = Child(space.sample(rng), "prior")
            else:
                child = Child(*mutate(space, rng.choice(seeds), rng, weights))
            if found := self._settled(child, taken):
                return dataclasses.replace(found, origin="prior")
        return None

    def _drawn(self, rng: random.Random, taken: set[Genome], *, uniform: bool) -> Candidate:
        space, context = self.experiment.space, self.experiment.context
        return draw(space, rng, context, lambda g: g not in taken, uniform=uniform)

    def _settled(self, child: Child, taken: set[Genome]) -> Candidate | None:
        """A child as a candidate; None if it may not be trained or was before."""
        space = self.experiment.space
        try:
            genome = settle(space, space.replay(child.decisions), self.experiment.context)
        except SpaceError:
            return None
        if genome in taken:
            return None
        decisions = tuple(child.decisions.items())
        return Candidate(decisions, genome, child.move, child.parent, self.strategy)

    def _from_history(
        self, index: int, records: Mapping[int, Record], taken: set[Genome]
    ) -> Candidate | None:
        """Ask the strategy, with a memory that ends at `index - lag`."""
        space, search = self.experiment.space, self.experiment.search
        history = self._history(index, records)
        rng = random.Random(seed(search.seed, self.strategy, index))

        def wanted(decisions: Decisions) -> bool:
            return self._settled(Child(decisions), taken) is not None

        def first(children: Iterator[Child]) -> Candidate | None:
            candidates = (self._settled(child, taken) for child in islice(children, ASKS))
            return next(filter(None, candidates), None)

        if self.strategy in stock.SAMPLERS:
            asked = self._stock.ask(history, seed(search.seed, self.strategy, index) % 2**32)
            return first(Child(decisions, self.strategy) for decisions in asked)
        if self.strategy == "evolution":
            return first(evolution.children(space, history, rng, self.genomes))
        child: Child | None
        if self.strategy == "local":
            child = local.child(space, history, rng, wanted)
        else:
            new = [i for i in range(len(history), index) if self.schedule.is_new(i)]
            working = [dict(self.propose(i, records, {}).decisions) for i in new]
            child = graphgp.child(space, graphgp.genome_graph, history, working, rng, wanted)
        return self._settled(child, taken) if child else None

    def _history(self, index: int, records: Mapping[int, Record]) -> list[Tried]:
        """What the proposal for place `index` may know, by place.

        A genome stands at the place where it began; places where trials went on are empty. Where
        trials wait at rungs, the score of each is taken to gain as much on the rest of its way as
        those gained, on the mean, that went on. One of Optuna's samplers, which cannot be told
        anew, knows the first rung alone.
        """
        view = range(index - self.lag + 1)
        latest = {i: i for i in view if self.schedule.is_new(i)}
        gains: dict[int, list[tuple[float, float]]] = {}
        for i in view:
            if self.schedule.is_new(i):
                continue
            place = self.schedule.places[i]
            assert place.continues is not None
            latest[self.schedule.origin(i)] = i
            here, before = records[i], records[place.continues]
            gain = here.score - before.score, here.loss - before.loss
            gains.setdefault(place.rung, []).append(gain)
        if self.strategy in stock.SAMPLERS:
            latest, gains = {i: i for i in latest}, {}
        return [
            self._tried(records[i], records[latest[i]], gains) if i in latest else Tried({}, ())
            for i in view
        ]

    def _tried(
        self, began: Record, record: Record, gains: Mapping[int, Sequence[tuple[float, float]]]
    ) -> Tried:
        which = began.index, record.index
        if which in self._tries:
            return self._tries[which]
        attrs = began.attrs
        values = () if attrs.get("outside") else self._reached(record)
        if record.status == "paused" and values:
            rung = self.schedule.places[record.index].rung
            ahead = [gains.get(r, ()) for r in range(rung + 1, len(self.experiment.waits) + 1)]
            means = [[sum(g) / len(g) for g in zip(*gain, strict=True)] for gain in ahead if gain]
            score = record.score + sum(mean[0] for mean in means)
            values = self._signed(record.genome, score, record.loss + sum(m[1] for m in means))
        tried = Tried(dict(began.params), values, attrs.get("move", ""), attrs.get("parent"))
        if record.status != "paused":
            self._tries[which] = tried
        return tried

    def _reached(self, record: Record) -> tuple[float, ...]:
        """The objectives where a trial ended or waits, smaller is better; empty if it failed."""
        if record.status == "paused":
            return self._signed(record.genome, record.score, record.loss)
        return self._turned(record.values)

    def _signed(self, genome: Genome, score: float, loss: float) -> tuple[float, ...]:
        trained = {"score": score, "loss": loss}
        goals, context = self.experiment.goals, self.experiment.context
        return self._turned([measure(goal.expr, genome, context, trained) for goal in goals])

    def _turned(self, values: Sequence[float]) -> tuple[float, ...]:
        return tuple(
            -value if goal.maximize else value
            for value, goal in zip(values, self.experiment.goals, strict=False)
        )


def known(params: Mapping[str, Value], genome: Genome, attrs: Mapping[str, Any]) -> Candidate:
    """The candidate of a trial that began before, from its parameters and attributes."""
    return Candidate(
        tuple(params.items()), genome, attrs.get("move", "random"), attrs.get("parent"),
        attrs.get("origin", "random"), attrs.get("outside", False),
    )  # fmt: skip


def strangers(experiment: Experiment) -> list[str]:
    """What `start_from` names that is not in the space."""
    named = zip(experiment.search.start_from, experiment.seeds, strict=True)
    return [name for name, genome in named if experiment.space.locate(genome) is None]


def seed_candidates(experiment: Experiment) -> list[Candidate]:
    """`start_from` as candidates; a genome that is not in the space as a reference.

    A reference is trained beside the search, at the width of the space: solved where the space
    says `match`, else the nearest legal one.

    Raises:
        SpaceError: if one may not be trained.
    """
    space, context = experiment.space, experiment.context
    candidates: list[Candidate] = []
    for genome in experiment.seeds:
        decisions = space.locate(genome)
        if decisions is None:
            width = min(space.widths, key=lambda w: abs(w - genome.d_model))
            fitted = settle(space, dataclasses.replace(genome, d_model=width), context)
            candidate = Candidate((), fitted, origin="start_from", outside=True)
        else:
            settled = settle(space, space.replay(decisions), context)
            candidate = Candidate(tuple(decisions.items()), settled, origin="start_from")
        if candidate.genome not in {c.genome for c in candidates}:
            candidates.append(candidate)
    return candidates

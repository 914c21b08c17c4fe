"""Which genome comes next.

The proposal with index n is a function of the study's seed, of n and of the trials up to n - lag
alone. Who finished first, how many processes worked and how often they were killed changes nothing:
the same seed gives the same genomes. The price is that n waits until trial n - lag has ended.
"""

from __future__ import annotations

import random
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from archsearch.errors import SpaceError
from archsearch.rules import Candidate, draw, members, settle
from archsearch.search import evolution, graphgp, local
from archsearch.search.evolution import Child, Tried
from archsearch.seeds import seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial

    from archsearch.dims import Dim, Value
    from archsearch.genome import Genome
    from archsearch.search.study import Record
    from archsearch.space import Decisions, SearchSpace
    from archsearch.space_yaml import Experiment

ASKS = 50
"""How often a strategy is asked before a random draw takes its place."""
WARMUP = 10
"""Trials before TPE is asked at all."""
SMALL = 150
"""Trials up to which `auto` takes the Gaussian process."""
NAMES = {
    "evolution": "evolution of genomes",
    "graphgp": "Gaussian process over genome graphs",
    "local": "local search",
    "random": "random without repeats",
    "tpe": "TPE",
}


def distribution(dim: Dim) -> BaseDistribution:
    """A dimension as Optuna sees it."""
    if dim.options or dim.optional:
        return CategoricalDistribution(dim.values or ())
    assert dim.low is not None and dim.high is not None  # noqa: PT018
    if dim.real:
        return FloatDistribution(float(dim.low), float(dim.high), log=dim.log, step=dim.step)
    step = 1 if dim.log else int(dim.step or 1)
    return IntDistribution(int(dim.low), int(dim.high), log=dim.log, step=step)


def distributions(space: SearchSpace, decisions: Decisions) -> dict[str, BaseDistribution]:
    """Every question that these decisions answer, as Optuna sees it."""
    found: dict[str, BaseDistribution] = {}

    def answer(path: str, dim: Dim) -> Value:
        found[path] = distribution(dim)
        return decisions[path]

    space.resolve(answer)
    return found


class Proposals:
    """The sequence of genomes that a study tries.

    Args:
        experiment: What is searched, and how.
        directions: Direction of each objective.
        lag: How far a proposal looks back: it learns from trials up to its index less this.
        carried: What was tried before the space changed, by index: given, not proposed again.
    """

    def __init__(
        self,
        experiment: Experiment,
        directions: Sequence[StudyDirection],
        lag: int,
        carried: Mapping[int, Candidate] = MappingProxyType({}),
    ) -> None:
        self.experiment, self.lag = experiment, lag
        space, context, search = experiment.space, experiment.context, experiment.search
        self._first = seed_candidates(experiment)
        self._listed = members(space, context)
        random.Random(seed(search.seed, "order")).shuffle(self._listed or [])
        self._everything = self._listed is not None and search.trials >= len(self._listed)
        self.strategy = search.strategy
        if search.strategy == "auto":
            self.strategy = "graphgp" if self.total <= SMALL else "evolution"
        if self._everything:
            self.strategy = "random"
        self._directions = directions
        self._replay, self._replayed = optuna.create_study(directions=directions), 0
        self._made = dict(carried)

    @property
    def total(self) -> int:
        """How many trials there will be: the budget, or the whole space if it is smaller."""
        budget = self.experiment.search.trials
        return budget if self._listed is None else min(budget, len(self._listed))

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
        if self.total <= first and self.strategy != "random":
            return f"{self.total} random members of {size}; {name} would begin after {first}"
        chosen = "chosen" if self.experiment.search.strategy == self.strategy else "auto"
        after = f" after {first} random trials" if self.strategy != "random" else ""
        return f"{name}{after} ({chosen}: {self.total} trials in {size})"

    @property
    def first(self) -> int:
        """Trials before the strategy has what it needs."""
        needs = {
            "evolution": evolution.population(self.total),
            "graphgp": graphgp.START,
            "local": local.START,
            "tpe": WARMUP,
        }
        return needs.get(self.strategy, 0) + self.lag

    def ready(self, index: int, records: Mapping[int, Record]) -> bool:
        """Whether every trial that proposal `index` learns from has ended."""
        return all(i in records for i in range(index - self.lag + 1))

    def propose(
        self, index: int, records: Mapping[int, Record], begun: Mapping[int, Genome]
    ) -> Candidate:
        """The candidate with this index.

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
        taken = {genome for i, genome in begun.items() if i != index}
        taken |= {self.propose(i, records, begun).genome for i in range(index) if i not in begun}
        if index < len(self._first) and self._first[index].genome not in taken:
            return self._first[index]
        left = [c for c in self._listed or () if c.genome not in taken]
        if self._everything:
            return left[0]
        if self.strategy != "random" and index >= self.first:
            asked = self._from_tpe if self.strategy == "tpe" else self._from_history
            candidate = asked(index, records, taken)
            if candidate:
                return candidate
        experiment = self.experiment
        rng = random.Random(seed(experiment.search.seed, "proposal", index))
        try:
            return draw(experiment.space, rng, experiment.context, lambda g: g not in taken)
        except SpaceError:
            if not left:
                raise
            return left[0]

    def _from_history(
        self, index: int, records: Mapping[int, Record], taken: set[Genome]
    ) -> Candidate | None:
        """Ask a strategy of ours, with a memory that ends at `index - lag`."""
        space, search = self.experiment.space, self.experiment.search
        history = [self._tried(records[i]) for i in range(index - self.lag + 1)]
        rng = random.Random(seed(search.seed, self.strategy, index))

        def candidate(child: Child) -> Candidate | None:
            try:
                genome = settle(space, space.replay(child.decisions), self.experiment.context)
            except SpaceError:
                return None
            if genome in taken:
                return None
            return Candidate(tuple(child.decisions.items()), genome, child.move, child.parent)

        def wanted(decisions: dict[str, Any]) -> bool:
            return candidate(Child(decisions)) is not None

        if self.strategy == "evolution":
            children = islice(evolution.children(space, history, rng, self.total), ASKS)
            return next(filter(None, map(candidate, children)), None)
        child: Child | None
        if self.strategy == "local":
            child = local.child(space, history, rng, wanted)
        else:
            begun = range(len(history), index)
            working = [dict(self.propose(i, records, {}).decisions) for i in begun]
            child = graphgp.child(space, graphgp.genome_graph, history, working, rng, wanted)
        return candidate(child) if child else None

    def _tried(self, record: Record) -> Tried:
        values = tuple(
            -value if direction is StudyDirection.MAXIMIZE else value
            for value, direction in zip(record.values, self._directions, strict=False)
        )
        attrs = record.attrs
        return Tried(dict(record.params), values, attrs.get("move", ""), attrs.get("parent"))

    def _from_tpe(
        self, index: int, records: Mapping[int, Record], taken: set[Genome]
    ) -> Candidate | None:
        """Ask TPE, with a memory that ends at `index - lag`."""
        space, context = self.experiment.space, self.experiment.context
        if self._replayed > index - self.lag + 1:  # a repeat of an early trial
            self._replay, self._replayed = optuna.create_study(directions=self._directions), 0
        while self._replayed <= index - self.lag:
            self._learn(records[self._replayed])
            self._replayed += 1
        self._replay.sampler = TPESampler(
            seed=seed(self.experiment.search.seed, "tpe", index) % 2**32,
            n_startup_trials=0, multivariate=True, constant_liar=False,
        )  # fmt: skip
        for _ in range(ASKS):
            trial = self._replay.ask()
            decisions: dict[str, Any] = {}
            try:
                genome = settle(space, space.resolve(_asking(trial, decisions)), context)
            except SpaceError:
                continue
            finally:
                self._replay.tell(trial, state=TrialState.FAIL)
            if genome not in taken:
                return Candidate(tuple(decisions.items()), genome)
        return None

    def _learn(self, record: Record) -> None:
        if not record.values:
            return
        asked = distributions(self.experiment.space, dict(record.params))
        params = {path: record.params[path] for path in asked}
        self._replay.add_trial(
            create_trial(values=list(record.values), params=params, distributions=asked)
        )


class GenomeSampler(BaseSampler):
    """Hands the proposals to an ordinary Optuna study, every decision of a genome at once."""

    def __init__(
        self, experiment: Experiment, candidate: Callable[[FrozenTrial], Candidate]
    ) -> None:
        self._experiment, self._candidate = experiment, candidate

    def infer_relative_search_space(
        self, study: OptunaStudy, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The decisions that this trial's genome rests on."""
        return distributions(self._experiment.space, dict(self._candidate(trial).decisions))

    def sample_relative(
        self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The answers."""
        answers = dict(self._candidate(trial).decisions)
        return {path: answers[path] for path in search_space}

    def sample_independent(self, *args: Any, **kwargs: Any) -> Any:
        """Never asked: the relative space is the whole genome."""
        raise NotImplementedError


def suggested(experiment: Experiment, trial: optuna.Trial) -> Genome:
    """The genome of a trial, its decisions set as ordinary Optuna parameters."""
    drafted = experiment.space.resolve(_asking(trial, {}))
    return settle(experiment.space, drafted, experiment.context)


def _asking(trial: optuna.Trial, decisions: dict[str, Any]) -> Callable[[str, Dim], Any]:
    def ask(path: str, dim: Dim) -> Any:
        kind = distribution(dim)
        if isinstance(kind, CategoricalDistribution):
            decisions[path] = trial.suggest_categorical(path, kind.choices)
        elif isinstance(kind, FloatDistribution):
            decisions[path] = trial.suggest_float(
                path, kind.low, kind.high, step=kind.step, log=kind.log
            )
        elif isinstance(kind, IntDistribution):
            decisions[path] = trial.suggest_int(
                path, kind.low, kind.high, step=kind.step, log=kind.log
            )
        return decisions[path]

    return ask


def seed_candidates(experiment: Experiment) -> list[Candidate]:
    """`start_from` as candidates.

    Raises:
        SpaceError: if one is not in the space, or may not be trained.
    """
    space = experiment.space
    candidates: list[Candidate] = []
    for genome in experiment.seeds:
        decisions = space.locate(genome)
        if decisions is None:
            raise SpaceError(
                f"start_from: {genome.text()} (d_model {genome.d_model}) is not in the space "
                f"'{space.name}'; widen the space, or drop it from start_from"
            )
        settled = settle(space, space.replay(decisions), experiment.context)
        if settled not in {c.genome for c in candidates}:
            candidates.append(Candidate(tuple(decisions.items()), settled))
    return candidates

"""Optuna's samplers as strategies: TPE and NSGA-II on a private replay of what has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState, create_trial

from archsearch.errors import SpaceError
from archsearch.search.sampler import asking, distributions

if TYPE_CHECKING:
    from archsearch.search.evolution import Tried
    from archsearch.space import Decisions, SearchSpace

POPULATION = 20
"""Trials in a generation of NSGA-II; Optuna's 50 are random for the first 50 trials."""
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(
        seed=seed, n_startup_trials=0, multivariate=True, constant_liar=False
    ),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
}
"""Each by its name, from a seed."""


class Stock:
    """One of Optuna's samplers, told a history and asked for decisions.

    Args:
        name: Which, see `SAMPLERS`.
        space: What is searched.
        objectives: How many; their values come with smaller is better.
    """

    def __init__(self, name: str, space: SearchSpace, objectives: int) -> None:
        self._name, self._space, self._objectives = name, space, objectives
        self._begin()

    def _begin(self) -> None:
        self._replay = optuna.create_study(directions=["minimize"] * self._objectives)
        self._told = self._valued = 0

    def ask(self, history: Sequence[Tried], seed: int) -> Iterator[Decisions]:
        """Decisions without end; those that lead to no member are left out."""
        if self._told > len(history):
            self._begin()
        for tried in history[self._told :]:
            if tried.values:
                self._tell(tried)
        self._told = len(history)
        self._replay.sampler = SAMPLERS[self._name](seed)
        while True:
            trial, decisions = self._replay.ask(), dict[str, Any]()
            try:
                self._space.resolve(asking(trial, decisions))
            except SpaceError:
                continue
            finally:
                self._replay.tell(trial, state=TrialState.FAIL)
            yield decisions

    def _tell(self, tried: Tried) -> None:
        generation = self._valued // POPULATION
        self._replay.add_trial(
            create_trial(
                values=list(tried.values), params=tried.decisions,
                distributions=distributions(self._space, tried.decisions),
                system_attrs={"NSGAIISampler:generation": generation},
            )
        )  # fmt: skip
        self._valued += 1
        if self._valued % POPULATION == 0:  # or the first who asks would see another order
            sampler = NSGAIISampler(population_size=POPULATION)
            sampler.get_parent_population(self._replay, generation + 1)

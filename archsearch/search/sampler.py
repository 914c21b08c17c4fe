"""Genomes as Optuna parameters: every decision of a proposal is an ordinary parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler

from archsearch.rules import settle

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna
    from optuna.trial import FrozenTrial

    from archsearch.dims import Dim
    from archsearch.genome import Genome
    from archsearch.rules import Candidate
    from archsearch.space import SearchSpace
    from archsearch.space_yaml import Experiment


def distribution(dim: Dim) -> BaseDistribution:
    """A dimension as Optuna sees it."""
    if dim.options or dim.optional:
        return CategoricalDistribution(dim.values or ())
    assert dim.low is not None and dim.high is not None  # noqa: PT018
    if dim.real:
        return FloatDistribution(float(dim.low), float(dim.high), log=dim.log, step=dim.step)
    step = 1 if dim.log else int(dim.step or 1)
    return IntDistribution(int(dim.low), int(dim.high), log=dim.log, step=step)


def distributions(space: SearchSpace, answers: dict[str, Any]) -> dict[str, BaseDistribution]:
    """The questions on the way to a member, as Optuna sees them."""
    asked: dict[str, BaseDistribution] = {}

    def answer(path: str, dim: Dim) -> Any:
        asked[path] = distribution(dim)
        return answers[path]

    space.ask(answer)
    return asked


def asking(trial: optuna.Trial, decisions: dict[str, Any]) -> Callable[[str, Dim], Any]:
    """Answers of a trial to the questions of a space; each is noted in `decisions`."""

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


class GenomeSampler(BaseSampler):
    """Hands the proposals to an ordinary Optuna study, every decision of a genome at once."""

    def __init__(self, space: SearchSpace, candidate: Callable[[FrozenTrial], Candidate]) -> None:
        self._space, self._candidate = space, candidate

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The decisions that this trial's genome rests on."""
        return distributions(self._space, dict(self._candidate(trial).decisions))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The answers."""
        answers = dict(self._candidate(trial).decisions)
        return {path: answers[path] for path in search_space}

    def sample_independent(self, *args: Any, **kwargs: Any) -> Any:
        """Never asked: the relative space is the whole genome."""
        raise NotImplementedError


def suggested(experiment: Experiment, trial: optuna.Trial) -> Genome:
    """The genome of a trial, its decisions set as ordinary Optuna parameters."""
    drafted = experiment.space.resolve(asking(trial, {}))
    return settle(experiment.space, drafted, experiment.context)

"""The study: a handle on an Optuna study. It holds no result itself; resume means open it again."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from archsearch.errors import RunError
from archsearch.genome import Genome
from archsearch.identity import differences
from archsearch.search.finals import Finals, Known, from_plain, judge, merged, to_plain
from archsearch.search.revisions import newest, split
from archsearch.search.rungs import Place
from archsearch.space_yaml import Experiment, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from optuna.storages import BaseStorage


FAILED = ("oom", "invalid")
"""How a trial ends that is told as failed and has a result nevertheless."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What the study knows of one trial that has come to an end."""

    index: int
    """Its place in the order of proposals; a repeated trial keeps it."""
    number: int
    """Optuna's number."""
    genome: Genome
    params: Mapping[str, Any]
    status: str
    why: str
    values: tuple[float, ...]
    """One per objective; empty for a trial that was pruned or failed."""
    scores: tuple[float, ...]
    attrs: Mapping[str, Any]

    @property
    def score(self) -> float:
        """Token accuracy, mean over tasks and seeds."""
        return float(self.attrs["score"])

    @property
    def loss(self) -> float:
        """Training loss of the last stretch, mean over tasks and seeds."""
        return float(self.attrs["loss"])

    @property
    def error(self) -> float:
        """Standard error of the score."""
        return float(self.attrs["error"])


class Study:
    """The trials of one search, in any Optuna storage.

    Args:
        storage: Where it is kept.
        name: Name of the run, for its newest revision, or of one revision.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        try:
            self.optuna = optuna.load_study(study_name=newest(storage, name), storage=storage)
        except KeyError:
            known = optuna.get_all_study_names(storage)
            raise RunError(f"no study '{name}' here; known: {', '.join(known) or 'none'}") from None
        self.storage = storage
        self._ended: dict[int, Record] = {}
        self._begun: dict[int, tuple[int, Genome, Place]] = {}
        self._parsed: tuple[tuple[dict[str, Any], int | None], Experiment] | None = None

    @classmethod
    def only(cls, storage: BaseStorage) -> Study:
        """The study of a storage that holds one run.

        Raises:
            RunError: if it holds none, or several.
        """
        runs = sorted({split(name)[0] for name in optuna.get_all_study_names(storage)})
        if len(runs) != 1:
            raise RunError(f"expected one study here; found: {', '.join(runs) or 'none'}")
        return cls(storage, runs[0])

    @classmethod
    def create(cls, storage: BaseStorage, experiment: Experiment, lag: int) -> Study:
        """Open the study of an experiment, or begin it.

        What may change between two commands (budget, strategy, hints) is taken from the newer.

        Raises:
            RunError: if a study of that name belongs to another space.
        """
        name = experiment.space.name
        directions = [
            StudyDirection.MAXIMIZE if goal.maximize else StudyDirection.MINIMIZE
            for goal in experiment.goals
        ]
        if name not in optuna.get_all_study_names(storage):
            optuna.create_study(
                study_name=name, storage=storage, directions=directions, load_if_exists=True
            )
        opened = cls(storage, name)
        study = opened.optuna
        before = study.user_attrs.get("experiment", {})
        if before or opened.trials() or study.directions != directions:
            opened.check(experiment)
            opened.check_data(experiment)
        else:
            study.set_metric_names([goal.name for goal in experiment.goals])
        now = {"lag": lag, "versions": versions()} | before | described(experiment)
        if now != before:
            study.set_user_attr("experiment", now)
        return opened

    def check(self, experiment: Experiment, why: str = "") -> None:
        """Refuse to mix two spaces in one study.

        Args:
            experiment: The space that it should have.
            why: What stands in the way of carrying its trials over.

        Raises:
            RunError: showing what differs.
        """
        before = self.about.get("identity", "")
        if before == experiment.identity:
            return
        lines = [f"    {line}" for line in differences(before, experiment.identity)]
        changed = "\n".join(lines[:12] + ["    ..."] * (len(lines) > 12))
        raise RunError(
            f"the run '{self.name}' was made with another space. What differs (run -> file):\n"
            f"{changed}\n{why}"
            "Nothing was changed. Give the new space another name with --name, or restore the file."
        )

    def check_data(self, experiment: Experiment) -> None:
        """Refuse to go on with other data behind the same tasks.

        Raises:
            RunError: naming the tasks.
        """
        before = self.about.get("data", {})
        other = [task for task, now in data(experiment).items() if before.get(task, now) != now]
        if other:
            raise RunError(
                f"the run '{self.name}' was made with other data behind {', '.join(other)}. "
                "Nothing was changed. Give the new run another name with --name, or restore the "
                "data."
            )

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.optuna.study_name

    @property
    def about(self) -> dict[str, Any]:
        """What was written down when the study began."""
        about = self.optuna.user_attrs.get("experiment")
        if about is None:
            raise RunError(f"the study '{self.name}' was not made by archsearch")
        return dict(about)

    def experiment(self, trials: int | None = None) -> Experiment:
        """The experiment of this study, with another number of trials if one is given.

        The genomes of `start_from` come from the study: the files may be elsewhere by now.
        """
        about = self.about
        if self._parsed is None or self._parsed[0] != (about, trials):
            more = (f"search.trials={trials}",) if trials is not None else ()
            overrides = (*about["overrides"], "search.start_from=[]", *more)
            experiment = parse(about["space"], f"{self.name}.yaml", overrides)
            seeds = tuple(Genome.from_json(seed) for seed in about["seeds"])
            named = {"start_from": about.get("start_from", [])}
            search = experiment.search.model_copy(update=named)
            experiment = dataclasses.replace(experiment, seeds=seeds, search=search)
            self._parsed = (about, trials), experiment
        return self._parsed[1]

    @property
    def maximize(self) -> tuple[bool, ...]:
        """Whether each objective is to be large."""
        return tuple(d is StudyDirection.MAXIMIZE for d in self.optuna.directions)

    def trials(self) -> list[FrozenTrial]:
        """Every trial as Optuna sees it."""
        return self.optuna.get_trials(deepcopy=False)

    def records(self) -> dict[int, Record]:
        """Every trial that came to an end, by index."""
        for trial, index in indexed(self.trials()):
            if trial.number not in self._ended and (record := record_of(trial, index)):
                self._ended[trial.number] = record
        return {record.index: record for record in self._ended.values()}

    def latest(self) -> list[Record]:
        """The record of every genome, where it went on the last one."""
        records = self.records()
        went_on = {record.attrs.get("continues") for record in records.values()}
        return [record for index, record in records.items() if index not in went_on]

    def genomes(self) -> dict[int, Genome]:
        """What was tried or is being tried, by index."""
        return {index: genome for index, genome, _ in self._described()}

    def places(self) -> dict[int, Place]:
        """What each index is for whose trial has begun."""
        return {index: place for index, _, place in self._described()}

    def _described(self) -> Iterable[tuple[int, Genome, Place]]:
        for trial, index in indexed(self.trials()):
            if trial.number not in self._begun and (genome := genome_of(trial)):
                attrs = trial.user_attrs
                place = Place(attrs.get("rung", 0), attrs.get("continues"))
                self._begun[trial.number] = index, genome, place
        return self._begun.values()

    def front(self, records: Iterable[Record] | None = None) -> list[Record]:
        """The members that no other dominates, best first; of all of them unless `records` says."""
        done = self._done(records)
        front = [r for r in done if not any(self.dominates(o.values, r.values) for o in done)]
        return sorted(front, key=lambda r: (self._signed(r.values), r.index))

    def _done(self, records: Iterable[Record] | None = None) -> list[Record]:
        """The members that were trained to their end."""
        among = self.records().values() if records is None else records
        ended = (r for r in among if r.values and r.status == "ok")
        return [r for r in ended if not r.attrs.get("outside")]

    def dominates(self, one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        """Whether `one` is at least as good everywhere and better somewhere."""
        a, b = self._signed(one), self._signed(other)
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    def best(self, records: Iterable[Record] | None = None) -> Record | None:
        """The winner: that of the finals, where they are over; else as the search scored.

        Then it is the cheapest of the front members that the best one does not clearly beat, which
        is by more than the two standard errors of the difference when the first objective is the
        score; otherwise it is by anything at all.
        """
        if records is None and (finals := self.finals()):
            return finals.winner.record
        front = self.front(records)
        tied = (record for record in front if self._tied(front[0], record))
        return min(tied, key=lambda r: (self._signed(r.values)[1:], r.index), default=None)

    def _tied(self, one: Record, other: Record) -> bool:
        """Whether two trials cannot be told apart by the first objective."""
        scored = (self.optuna.metric_names or [""])[0] == "score"
        spread = 2 * (one.error**2 + other.error**2) ** 0.5 if scored else 0.0
        return abs(one.values[0] - other.values[0]) <= spread

    def finalists(self, count: int) -> list[Record]:
        """The trials to run on fresh seeds: the best of the front and of the others by turns."""
        done = self._done()
        front = self.front(done)
        places = {record.index for record in front}
        others = [r for r in done if r.index not in places]
        others.sort(key=lambda r: (self._signed(r.values)[0], r.index))
        turns = [r for pair in zip_longest(front, others) for r in pair if r]
        return turns[:count]

    @property
    def fresh(self) -> Known:
        """The trainings on fresh seeds that this study keeps."""
        return from_plain(self.optuna.user_attrs.get("finals", {}).get("fresh", {}))

    def keep_finals(self, count: int, seeds: int, known: Known) -> None:
        """Keep the fresh trainings of `count` finalists on `seeds` seeds; one process writes."""
        finalists = {record.genome.key for record in self.finalists(count)}
        fresh = merged(self.fresh, {key: of for key, of in known.items() if key in finalists})
        now = {"count": count, "seeds": seeds, "fresh": to_plain(fresh)}
        if now != self.optuna.user_attrs.get("finals"):
            self.optuna.set_user_attr("finals", now)

    def finals(self) -> Finals | None:
        """The outcome of the finals; None unless they were held among the present finalists."""
        held = self.optuna.user_attrs.get("finals")
        if held is None:
            return None
        experiment, finalists = self.experiment(), self.finalists(held["count"])
        goals, context = experiment.goals, experiment.context
        return judge(finalists, self.fresh, held["seeds"], goals, context)

    def _signed(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """Values turned so that smaller is better."""
        return tuple(-v if up else v for v, up in zip(values, self.maximize, strict=True))


def indexed(trials: list[FrozenTrial]) -> list[tuple[FrozenTrial, int]]:
    """Each trial with its place in the order of proposals.

    A repeated trial says whose place it takes. The others count on: the place of a trial is its
    number less the repeats before it, so no two processes can take the same.
    """
    repeats, pairs = 0, []
    for trial in trials:
        if "index" in trial.user_attrs:
            repeats += 1
            pairs.append((trial, int(trial.user_attrs["index"])))
        else:
            pairs.append((trial, trial.number - repeats))
    return pairs


def genome_of(trial: FrozenTrial) -> Genome | None:
    """The genome of a trial, None before its worker has written it down."""
    text = trial.user_attrs.get("genome_json")
    return Genome.from_json(json.loads(text)) if text else None


def record_of(trial: FrozenTrial, index: int) -> Record | None:
    """The record of a trial that ended with a result, else None.

    A worker that died while it handed its result over leaves a failed trial with some of it.
    """
    attrs, genome = trial.user_attrs, genome_of(trial)
    status = attrs.get("status")
    ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (
        trial.state is TrialState.FAIL and status in FAILED
    )
    if not ended or status is None or genome is None:
        return None
    return Record(
        index=index,
        number=trial.number,
        genome=genome,
        params=dict(trial.params),
        status=status,
        why=attrs.get("why", ""),
        values=tuple(trial.values) if trial.state is TrialState.COMPLETE and trial.values else (),
        scores=tuple(attrs.get("scores", ())),
        attrs=attrs,
    )


def described(experiment: Experiment) -> dict[str, Any]:
    """What a study writes down of its experiment."""
    return {
        "space": experiment.text,
        "overrides": list(experiment.overrides),
        "start_from": experiment.search.start_from,
        "seeds": [genome.to_json() for genome in experiment.seeds],
        "identity": experiment.identity,
        "context": experiment.context,
        "data": data(experiment),
    }


def data(experiment: Experiment) -> dict[str, str]:
    """The digest of what lies behind each task that reads rows instead of making them up."""
    return {repr(task): task.digest() for task in experiment.tasks if hasattr(task, "digest")}


def versions() -> dict[str, str]:
    """What a result depends on."""
    packages = {name: version(name) for name in ("archsearch", "torch", "optuna")}
    return packages | {"python": platform.python_version(), "machine": platform.machine()}

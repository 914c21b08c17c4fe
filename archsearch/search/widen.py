"""A run goes on in a changed space, as long as every trial that it holds is a member of it.

The trials are carried over into a new revision of the study, see `archsearch.search.revisions`: the
same numbers, results, notes and artifacts, with the decisions that lead to the same genomes in the
new space. The old revision stays as it is. Creating the name of a revision is atomic in every
storage, so one command writes it; what a killed command leaves behind is never written to again.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
import yaml
from optuna.exceptions import DuplicatedStudyError
from optuna.trial import FrozenTrial, TrialState

from archsearch.errors import SpaceError
from archsearch.identity import differences
from archsearch.rules import Candidate, settle
from archsearch.search.lease import ended, me
from archsearch.search.proposals import known
from archsearch.search.revisions import revisions, title
from archsearch.search.sampler import distributions
from archsearch.search.study import Study, described, genome_of, indexed, record_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.storages import BaseStorage

    from archsearch.genome import Genome
    from archsearch.space import Decisions
    from archsearch.space_yaml import Experiment

SPACE = ("define", "model", "match", "require")
"""The sections of a space file that say which architectures there are."""
CARRIED = "carried"
"""The study attribute that says where the first trials came from, and how many they are."""
PATIENCE = 90.0
"""Seconds without progress after which a writer on another machine counts as dead; more than a
database may keep it waiting."""
POLL = 0.5
"""Seconds between two looks at it."""
_OF_A_TRIAL = re.compile(r"dashboard:(artifacts:)?\d+:")


def widen(
    storage: BaseStorage, experiment: Experiment, *, alone: bool, say: Callable[[str], None]
) -> None:
    """Carry the run of an experiment over into its space, if that is not the run's own.

    Args:
        storage: Where the run is kept; nothing happens if it has not begun.
        experiment: What the run is to go on with.
        alone: Whether no other command works on this storage.
        say: Told in one line what was done.

    Raises:
        RunError: if a trial is no member of the space, or more than the space is another; nothing
            was changed then.
    """
    run = experiment.space.name
    while True:
        known = revisions(storage, run)
        complete = max((n for n, attrs in known.items() if "experiment" in attrs), default=0)
        about = known[complete]["experiment"] if complete else {}
        if about.get("identity", experiment.identity) == experiment.identity:
            return
        study = Study(storage, title(run, complete))
        trials = _moved(study, experiment)
        newest = max(known)
        if newest > complete and not alone and not _abandoned(storage, run, newest, say):
            continue
        try:
            name = title(run, newest + 1)
            directions = study.optuna.directions
            target = optuna.create_study(study_name=name, storage=storage, directions=directions)
        except DuplicatedStudyError:
            continue
        _copy(storage, study, trials, target, experiment)
        break
    for number, attrs in known.items():
        if number > complete and CARRIED in attrs:
            storage.delete_study(storage.get_study_id_from_name(title(run, number)))
    changes = differences(study.about["identity"], experiment.identity)
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    say(
        f"{run} goes on in a changed space as '{name}', {_finished(trials)} trials carried over: "
        f"{'; '.join(changes[:3])}{more}"
    )


def carried(study: Study) -> dict[int, Candidate]:
    """What the trials from earlier revisions tried, by index."""
    found: dict[int, Candidate] = {}
    count = study.optuna.user_attrs.get(CARRIED, {}).get("trials", 0)
    for trial, index in indexed(study.trials()[:count]):
        if genome := genome_of(trial):
            found[index] = known(trial.params, genome, trial.user_attrs)
    return found


def _moved(study: Study, experiment: Experiment) -> list[FrozenTrial]:
    """The trials of a study with the decisions of another space, all of them ended.

    A trial without a result stays as one that was lost, so that its place is queued again.

    Raises:
        RunError: if they cannot be carried over.
    """
    before, now = (
        {key: part for key, part in yaml.safe_load(text).items() if key not in SPACE}
        for text in (study.about["identity"], experiment.identity)
    )
    if before != now:
        study.check(experiment, f"Only {', '.join(SPACE)} may change while a run goes on. ")
    study.check_data(experiment)
    foreign: dict[int, str] = {}
    trials = study.optuna.get_trials()
    for trial, index in indexed(trials):
        if not trial.state.is_finished():
            trial.datetime_complete = datetime.now()
            trial.datetime_start = trial.datetime_start or trial.datetime_complete
            trial.state = TrialState.FAIL
            trial.user_attrs["given_back"] = True
        trial.params, trial.distributions = {}, {}
        if genome := genome_of(trial):
            try:
                trial.params = _located(genome, experiment)
                trial.distributions = distributions(experiment.space, trial.params)
                if trial.user_attrs.pop("outside", False):
                    _let_in(trial)
            except SpaceError as error:
                if trial.user_attrs.get("outside"):
                    continue
                if record_of(trial, index):
                    foreign[index] = str(error)
                del trial.user_attrs["genome_json"]
    if foreign:
        index, why = min(foreign.items())
        study.check(
            experiment,
            f"The space may change if it still holds every trial of the run; {len(foreign)} of "
            f"{len(foreign) + _finished(trials)} are outside, e.g. #{index}: {why}.\n",
        )
    return trials


def _let_in(trial: FrozenTrial) -> None:
    """Take back the constraint of a trial that was not in the space."""
    kept = {k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints")}
    trial.system_attrs = kept


def _finished(trials: list[FrozenTrial]) -> int:
    """How many places have a result."""
    return len({index for trial, index in indexed(trials) if record_of(trial, index)})


def _located(genome: Genome, experiment: Experiment) -> Decisions:
    """The decisions that give this genome, at its width.

    Raises:
        SpaceError: if it is no member that may be trained.
    """
    space = experiment.space
    decisions = space.locate(genome)
    if decisions is None:
        raise SpaceError(f"{genome.text()} (d_model {genome.d_model}) is not in the space")
    settled = settle(space, space.replay(decisions), experiment.context)
    if settled != genome:
        raise SpaceError(
            f"{genome.text()} would have d_model {settled.d_model}, not {genome.d_model}"
        )
    return decisions


def _abandoned(storage: BaseStorage, run: str, number: int, say: Callable[[str], None]) -> bool:
    """Wait for the command that writes a revision. False once it is done, True if it is dead."""
    name = title(run, number)
    say(f"another command carries {run} over to '{name}'; waiting until it is done")
    trials, seen, since = 0, -1, time.monotonic()
    while time.monotonic() - since < PATIENCE:
        attrs = revisions(storage, run).get(number)
        if attrs is None or "experiment" in attrs:
            return False
        if CARRIED in attrs and ended(attrs[CARRIED]["by"]):
            return True
        with suppress(KeyError):  # deleted this moment
            trials = storage.get_n_trials(storage.get_study_id_from_name(name))
        if trials != seen:
            seen, since = trials, time.monotonic()
        time.sleep(POLL)
    return True


def _copy(
    storage: BaseStorage,
    study: Study,
    trials: list[FrozenTrial],
    target: optuna.Study,
    experiment: Experiment,
) -> None:
    """Write a revision, first where it comes from and last what makes it complete."""
    target.set_user_attr(CARRIED, {"from": study.name, "trials": len(trials), "by": me()})
    if study.optuna.metric_names:
        target.set_metric_names(study.optuna.metric_names)
    for key, value in study.optuna.user_attrs.items():
        if key not in ("experiment", CARRIED):
            target.set_user_attr(key, value)
    old, new = map(storage.get_study_id_from_name, (study.name, target.study_name))
    shown = storage.get_study_system_attrs(old)
    for key, value in shown.items():
        if key.startswith(("dashboard:", "artifacts:")) and not _OF_A_TRIAL.match(key):
            storage.set_study_system_attr(new, key, value)
    for number, trial in enumerate(trials):
        target.add_trial(trial)
        ids = [storage.get_trial_id_from_study_id_trial_number(s, number) for s in (old, new)]
        for key, value in _note(shown, (old, ids[0]), (new, ids[1])).items():
            storage.set_study_system_attr(new, key, value)
    target.set_user_attr("experiment", study.about | described(experiment))


def _note(
    shown: dict[str, Any], source: tuple[int, int], target: tuple[int, int]
) -> dict[str, Any]:
    """The attributes that hold the note of a trial (study, trial), for another one.

    A note shows the trial's drawing by an address with both numbers.
    """
    from optuna_dashboard._note import get_note_from_system_attrs, note_ver_key, split_body

    note = get_note_from_system_attrs(shown, source[1])
    if not note["version"]:
        return {}
    before, after = (f"/artifacts/{study}/{trial}/" for study, trial in (source, target))
    body = note["body"].replace(before, after)
    return {note_ver_key(target[1]): note["version"]} | split_body(body, target[1])

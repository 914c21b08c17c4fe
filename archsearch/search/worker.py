"""One worker process: ask for a genome, train it, tell the study, again.

Any number of workers may join or leave a study at any time; a search is nothing but workers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from safetensors import SafetensorError

from archsearch.device import chosen
from archsearch.errors import RunError, SpaceError
from archsearch.expr import SCORES
from archsearch.rules import cached_cost, measure
from archsearch.search.lease import ATTEMPTS, give_back, hold, reap, surplus
from archsearch.search.proposals import Proposals
from archsearch.search.publish import publish
from archsearch.search.sampler import GenomeSampler, suggested
from archsearch.search.storage import TROUBLE, in_words, open_storage
from archsearch.search.study import Study, indexed
from archsearch.search.widen import carried
from archsearch.trial import Progress, TrialResult, run_trial
from archsearch.weights import save_weights

if TYPE_CHECKING:
    from archsearch.expr import Node
    from archsearch.genome import Genome
    from archsearch.rules import Candidate
    from archsearch.search.rungs import Place

Event = dict[str, Any]
POLL = 0.2
"""Seconds between two looks at a study that has nothing to do yet."""


class Worker:
    """Works on one study until its trials are done.

    Args:
        place: Run directory or storage URL.
        name: Name of the study.
        folder: Where artifacts and weights go.
        trials: Total number of trials, finished ones included; None for the space file's.
        emit: Told what happens, as plain data.
    """

    def __init__(
        self,
        place: str,
        name: str,
        folder: Path,
        trials: int | None = None,
        emit: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.place = place
        self.study = Study(open_storage(place), name)
        self.experiment = self.study.experiment(trials)
        self.proposals = Proposals(self.experiment, self.study.about["lag"], carried(self.study))
        self.folder, self.emit, self.device = folder, emit, chosen()
        self.artifacts = FileSystemArtifactStore(folder / "artifacts")
        self._numbers: dict[int, int] = {}
        self.study.optuna.sampler = GenomeSampler(self.experiment.space, self._candidate)

    def work(self, until: float | None = None) -> None:
        """Run trials until all have ended, or until a moment of `time.time()` has passed.

        Raises:
            RunError: if the study or the folder cannot be written; the trial is given back.
        """
        with in_words(self.place):
            while self._something_to_do(until) and self._one():
                pass

    def _something_to_do(self, until: float | None) -> bool:
        """Wait until the next trial may begin; False if there is none or the time is over."""
        while until is None or time.time() < until:
            reap(self.study, self.proposals.total)
            pairs = indexed(self.study.trials())
            if any(trial.state is TrialState.WAITING for trial, _ in pairs):
                return True
            if self._known(max((index for _, index in pairs), default=-1) + 1):
                return True
            if self.proposals.schedule.over:
                return False
            time.sleep(POLL)
        return False

    def _known(self, index: int) -> bool:
        """Whether it is known what the trial with this index is for."""
        return self.proposals.ready(index, self.study.records(), self.study.places())

    def _one(self) -> bool:
        """Run one trial. False if the space has no member left."""
        trial = self.study.optuna.ask()
        try:
            with hold(trial):
                return self._run(trial)
        except UpdateFinishedTrialError:
            return True  # this process was taken for dead, and another has the trial now
        except (KeyboardInterrupt, SystemExit, *TROUBLE):
            with suppress(*TROUBLE):
                give_back(self.study, trial)
            raise

    def _run(self, trial: optuna.Trial) -> bool:
        index = next(i for t, i in indexed(self.study.trials()) if t.number == trial.number)
        known = self._known(index)
        if surplus(self.study, trial, index, self.proposals.total) or not (
            known or self._ready(index)
        ):
            give_back(self.study, trial)
            return True
        self._numbers[trial.number] = index
        try:
            candidate = self._candidate(trial)
            beside = candidate.outside and not trial.params
            genome = candidate.genome if beside else suggested(self.experiment, trial)
        except SpaceError as error:
            give_back(self.study, trial)
            self.emit({"event": "exhausted", "index": index, "why": str(error)})
            return False
        self._describe(trial, index, genome, candidate)
        if trial.user_attrs.get("attempt", 1) > ATTEMPTS:
            result = _abandoned(genome)
        else:
            result = self._train(index, genome)
        result, values = self._judged(genome, result)
        self._keep(trial, genome, result)
        self._tell(trial, result, values)
        self._sweep()
        self.emit({"event": "end", "index": index, "status": result.status, "why": result.why,
                   "score": result.score, "seconds": result.seconds})  # fmt: skip
        return True

    def _ready(self, index: int) -> bool:
        """Wait for the trials that a proposal learns from.

        False if one of them has to be done again, when somebody must be free to do it, and if
        there is no such place after all.
        """
        while not self._known(index):
            reap(self.study, self.proposals.total)
            waiting = any(t.state is TrialState.WAITING for t in self.study.trials())
            if waiting or self.proposals.schedule.over:
                return False
            time.sleep(POLL)
        return True

    def _candidate(self, trial: FrozenTrial | optuna.Trial) -> Candidate:
        """The proposal for a trial that Optuna has just begun."""
        study, index = self.study, self._numbers[trial.number]
        return self.proposals.propose(index, study.records(), study.genomes())

    def _train(self, index: int, genome: Genome) -> TrialResult:
        experiment = self.experiment
        text = genome.text(experiment.space.varying)
        self.emit({"event": "begin", "index": index, "genome": text, "key": genome.key})

        def on_progress(progress: Progress) -> None:
            point = progress.point
            event = {"event": "step", "index": index, "task": progress.task, "step": point.step}
            figures = {"loss": point.loss, "accuracy": point.accuracy, "done": progress.done}
            self.emit(event | figures)

        rung, waits = self._place(index).rung, experiment.waits
        return run_trial(
            genome, experiment.tasks, experiment.recipe, experiment.search.seed,
            device=self.device, stretches=waits[rung] if rung < len(waits) else None,
            checkpoint=self._checkpoint(genome.key),
            on_progress=on_progress, hopeless=self._judge(index, genome),
        )  # fmt: skip

    def _place(self, index: int) -> Place:
        return self.proposals.schedule.places[index]

    def _checkpoint(self, key: str) -> Path:
        return self.folder / "checkpoints" / f"{key}.pt"

    def _judge(self, index: int, genome: Genome) -> Callable[[tuple[float, ...]], str]:
        """A rule that says why a trial is hopeless, or "" while it is not.

        From half of the training on, a trial is hopeless once more than half of the earlier ones
        (of at least five) scored higher at the same stretch and cost no more. Earlier are those
        that its proposal learned from, so the verdict does not depend on who finished first.
        """
        records, evals = self.study.records(), self.experiment.recipe.evals
        search, goals = self.experiment.search, self.experiment.goals
        judged = search.prune == "dominated" and not search.rungs
        judged = judged and any(goal.name == "score" for goal in goals)
        earlier = [records[i] for i in range(index - self.proposals.lag + 1) if i in records]
        costs = self._costs(genome)
        rivals = [
            r for r in earlier
            if r.scores and all(a <= b for a, b in zip(self._costs(r.genome), costs, strict=True))
        ]  # fmt: skip

        def hopeless(scores: tuple[float, ...]) -> str:
            stretch = len(scores)
            if not judged or stretch * 2 < evals or len(earlier) < 5:
                return ""
            higher = [r for r in rivals if r.scores[min(stretch, len(r.scores)) - 1] > scores[-1]]
            if len(higher) * 2 <= len(earlier):
                return ""
            return (
                f"after {stretch} of {evals} stretches {len(higher)} of {len(earlier)} earlier "
                "trials scored higher and cost no more"
            )

        return hopeless

    def _costs(self, genome: Genome) -> tuple[float, ...]:
        """The objectives known before training, turned so that smaller is better."""
        goals = [goal for goal in self.experiment.goals if not _trained(goal.expr.root)]
        values = [measure(goal.expr, genome, self.experiment.context) for goal in goals]
        return tuple(-v if g.maximize else v for v, g in zip(values, goals, strict=True))

    def _describe(
        self, trial: optuna.Trial, index: int, genome: Genome, proposed: Candidate
    ) -> None:
        """Write down what is tried, before it is; a trial with a genome is described whole."""
        cost = cached_cost(genome, self.experiment.context)
        attrs = {
            "genome": genome.text(), "key": genome.key, "origin": self.proposals.strategy,
            "params": cost.params, "active_params": cost.active_params,
            "flops_per_token": cost.flops, "state_bytes": cost.state_bytes,
            "d_model": genome.d_model,
        }  # fmt: skip
        place = self._place(index)
        if self.experiment.search.rungs:
            attrs["rung"] = place.rung
        if place.continues is not None:
            attrs["continues"] = place.continues
        if proposed.genome == genome:
            attrs["origin"] = proposed.origin
            if proposed.outside:
                attrs["outside"] = True
                trial.set_constraint("outside", 1.0)  # Optuna is not to call it a best trial
            if proposed.parent is not None:
                attrs |= {"move": proposed.move, "parent": proposed.parent}
        for name, value in (attrs | {"genome_json": json.dumps(genome.to_json())}).items():
            trial.set_user_attr(name, value)

    def _judged(self, genome: Genome, result: TrialResult) -> tuple[TrialResult, list[float]]:
        """A result with the values of its objectives; invalid if one of them is no number."""
        if result.status not in ("ok", "diverged"):
            return result, []
        known = {"score": result.score, "loss": result.loss}
        goals, context = self.experiment.goals, self.experiment.context
        values = [measure(goal.expr, genome, context, known) for goal in goals]
        wrong = [g.name for g, v in zip(goals, values, strict=True) if not math.isfinite(v)]
        if wrong:
            why = f"the objective {wrong[0]} has no value here"
            result, values = dataclasses.replace(result, status="invalid", why=why), []
        return result, values

    def _keep(self, trial: optuna.Trial, genome: Genome, result: TrialResult) -> None:
        """Write artifacts, note and weights.

        Raises:
            RunError: if the folder cannot be written.
        """
        try:
            cost = cached_cost(genome, self.experiment.context)
            export = f"archsearch export {self.folder} DIR --trial {self._numbers[trial.number]}"
            publish(trial, self.artifacts, genome, cost, result, export)
            if result.status == "ok":
                weights = self.folder / "weights" / genome.key
                save_weights(weights, result, self.experiment.tasks, "in the search, first seed")
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(
                f"{self.folder} cannot be written: {reason}. Finished trials are safe; the same "
                "command continues once it can be"
            ) from None

    def _tell(self, trial: optuna.Trial, result: TrialResult, values: list[float]) -> None:
        """Hand the result over. The study knows the trial as finished only after all else."""
        attrs: dict[str, Any] = {
            "score": result.score, "error": result.error, "loss": result.loss,
            "seconds": round(result.seconds, 2),
            "tokens_per_second": round(result.tokens / max(1e-9, result.seconds)),
            **{f"accuracy/{task}": value for task, value in result.accuracies.items()},
            "scores": list(result.scores), "why": result.why, "status": result.status,
            "memory_bytes": result.memory, "backends": result.backends,
        }  # fmt: skip
        for name, value in attrs.items():
            trial.set_user_attr(name, value)
        if len(self.experiment.goals) == 1 and self.experiment.goals[0].name == "score":
            for stretch, score in enumerate(result.scores, 1):
                trial.report(score, stretch)
        if values:
            self.study.optuna.tell(trial, values, skip_if_finished=True)
        else:
            unfinished = result.status in ("pruned", "paused")
            state = TrialState.PRUNED if unfinished else TrialState.FAIL
            self.study.optuna.tell(trial, state=state, skip_if_finished=True)

    def _sweep(self) -> None:
        """Keep the weights of front and finalists, the checkpoints of those that may go on."""
        front = {record.genome.key for record in self.study.front()} | {*self.study.fresh}
        stuck = self.proposals.schedule.stuck(self.study.records())
        for record in self.study.latest():
            key = record.genome.key
            if record.status == "ok" and key not in front:
                shutil.rmtree(self.folder / "weights" / key, ignore_errors=True)
            if record.status != "paused" or record.index in stuck:
                self._checkpoint(key).unlink(missing_ok=True)


def _trained(node: Node) -> bool:
    """Whether an expression needs what only training tells."""
    return node.name in SCORES or any(_trained(part) for part in node.parts)


def _abandoned(genome: Genome) -> TrialResult:
    why = (
        f"the process that trained it died {ATTEMPTS} times; it may need more memory than there is"
    )
    return TrialResult(
        key=genome.key, status="oom", why=why, runs=(), scores=(), seconds=0.0, tokens=0
    )

"""What does a proposal cost when many trials have finished?

Trials of the space `everything` with random scores, none of them trained; then the CPU time of the
next proposals on one core, with one objective and with two.

    python benchmarks/proposals.py --out benchmarks/results/proposals.json
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from archsearch.rules import measure
from archsearch.search.proposals import Proposals
from archsearch.search.study import Record
from archsearch.space_yaml import load

GOALS = {
    "one objective": "[{maximize: score}]",
    "two objectives": "[{maximize: score}, {minimize: params}]",
}
TIMED = 60
"""Proposals that are timed."""


def milliseconds(goals: str, strategy: str, finished: int) -> list[float]:
    """CPU time of each proposal behind `finished` trials."""
    overrides = (
        f"search.trials={finished + TIMED}", f"search.strategy={strategy}", f"objectives={goals}",
    )  # fmt: skip
    experiment = load("everything", overrides)
    proposals, rng = Proposals(experiment, lag=8), random.Random(0)
    records: dict[int, Record] = {}
    spent = []
    for index in range(finished + TIMED):
        begun = {i: record.genome for i, record in records.items()}
        began = time.process_time()
        candidate = proposals.propose(index, records, begun)
        spent.append(1e3 * (time.process_time() - began))
        score = rng.random()
        attrs: dict[str, Any] = {"origin": candidate.origin, "score": score, "loss": 1 - score}
        if candidate.parent is not None:
            attrs |= {"move": candidate.move, "parent": candidate.parent}
        trained = {"score": score, "loss": 1 - score}
        records[index] = Record(
            index=index, number=index, genome=candidate.genome, params=dict(candidate.decisions),
            status="ok", why="", scores=(score,), attrs=attrs,
            values=tuple(
                measure(goal.expr, candidate.genome, experiment.context, trained)
                for goal in experiment.goals
            ),
        )  # fmt: skip
    return spent[finished:]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--finished", type=int, default=1000)
    parser.add_argument("--strategy", default="evolution")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    figures: dict[str, Any] = {"strategy": given.strategy, "finished": given.finished}
    for name, goals in GOALS.items():
        spent = sorted(milliseconds(goals, given.strategy, given.finished))
        figures[name] = {"median_ms": round(statistics.median(spent), 2),
                         "most_ms": round(spent[-1], 2)}  # fmt: skip
        print(f"{given.strategy}, {given.finished} finished, {name}: median "
              f"{figures[name]['median_ms']} ms, most {figures[name]['most_ms']} ms")  # fmt: skip
    if given.out:
        machine = {"python": platform.python_version(), "system": platform.platform(),
                   "archsearch": version("archsearch")}  # fmt: skip
        given.out.write_text(json.dumps(figures | {"machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()

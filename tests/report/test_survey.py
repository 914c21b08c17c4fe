"""`archsearch check`: what a worker needs of memory, and warnings where there is less."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from archsearch import memory
from archsearch.memory import estimate, machine_bytes
from archsearch.report import survey
from archsearch.rules import cached_cost, members
from archsearch.space_yaml import parse
from archsearch.words import size
from tests.helpers import TINY

EXPERIMENT = parse(TINY.replace("heads: 2", "heads: 1").replace("repeat: 2", "repeat: 1"))
PARAMS = {
    candidate.genome: cached_cost(candidate.genome, EXPERIMENT.context).params
    for candidate in members(EXPERIMENT.space, EXPERIMENT.context)
}
NEEDS = [estimate(genome, EXPERIMENT.tasks, EXPERIMENT.recipe) for genome in PARAMS]
PROCESS = 200 * 2**20


@pytest.fixture
def check(monkeypatch):
    def report(there, workers=1):
        monkeypatch.setattr(survey, "process_bytes", lambda: PROCESS)
        for module in (survey, memory):
            monkeypatch.setattr(module, "machine_bytes", lambda: there)
        console = Console(file=StringIO(), width=200)
        survey.check_report(EXPERIMENT, "tiny.yaml", workers, console)
        return console.file.getvalue()

    return report


def test_the_memory_of_a_worker_is_that_of_the_program_and_of_the_largest_member(check):
    text = check(machine_bytes())
    each, training = re.search(
        r"memory: about (.+) a worker, (.+) of it for the train", text
    ).groups()
    assert training in {size(need) for need in NEEDS}
    assert any(each == size(PROCESS + need) for need in NEEDS if size(need) == training)
    assert "warning" not in text
    assert text.endswith("next: archsearch run tiny.yaml\n")


def test_too_many_workers_are_warned_of(check):
    text = check(3 * PROCESS + 3 * max(NEEDS), workers=40)
    assert "warning: 40 workers, one per core, may need 7" in text
    assert "try `archsearch run --workers 3`" in text
    assert "warning" not in check(3 * PROCESS + 3 * max(NEEDS), workers=3)


def test_members_that_do_not_fit_are_warned_of_and_not_timed(check):
    pairs = zip(NEEDS, PARAMS.values(), strict=True)
    there = min(need for need, params in pairs if params == max(PARAMS.values())) - 1
    text = check(there)
    assert f"warning: this machine has {size(there)}; the trials of members" in text
    assert "time: " in text
    text = check(10)
    assert "warning: this machine has 10 B; " in text
    assert "time: " not in text

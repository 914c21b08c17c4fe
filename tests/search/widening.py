"""A run and wider spaces for it."""

from __future__ import annotations

import functools

import pytest

from archsearch.search.lease import reap
from archsearch.search.run import Run, prepare
from archsearch.space_yaml import parse
from tests.search.helpers import LISTED, worker

WIDER = LISTED.replace("mult: [1, 2, 3, 4]", "mult: [1, 2, 3, 4, 5]")


on = functools.partial(pytest.mark.parametrize, "url", indirect=True)
"""Some of these storages."""


def run(folder, text, url="", trials=None, work=True):
    """What `archsearch run` does with one worker; what it says."""
    more = (f"search.trials={trials}",) if trials else ()
    said = []
    study, proposals = prepare(parse(text, overrides=more), Run(folder, url), 1, said.append)
    reap(study, proposals.total, alone=True)
    if work:
        worker(folder, place=url).work()
    return said


def everything(study):
    """All that is known of the trials that have ended, by index."""
    trials = study.trials()
    known = {}
    for index, r in study.records().items():
        trial = trials[r.number]
        known[index] = (
            r.number, r.genome, r.status, r.why, r.values, r.scores, dict(r.attrs), trial.state,
            trial.intermediate_values, trial.datetime_start, trial.datetime_complete,
            trial.constraints, {k: v for k, v in trial.system_attrs.items() if "fixed" not in k},
        )  # fmt: skip
    return known

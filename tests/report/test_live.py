import io

import pytest
from rich.console import Console

from archsearch.report.live import View
from archsearch.search.rungs import Schedule
from archsearch.search.storage import open_storage
from archsearch.search.study import Study


@pytest.fixture
def view(finished):
    study = Study(open_storage(finished / "runs" / "tiny"), "tiny")
    goals = tuple(goal.name for goal in study.experiment().goals)
    view = View("tiny", Schedule(6), goals, study.experiment().space.varying, workers=2)
    view.refresh(study)
    return view


def rendered(view):
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(view)
    return console.file.getvalue()


def test_it_fits_80_columns_and_shows_progress_best_and_front(view):
    text = rendered(view)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "6/6 trials" in text
    assert view.best is not None
    assert f"{view.best.score:.3f}" in text
    for record in view.front[:5]:
        assert f"{record.score:.3f}" in text


def test_a_running_trial_is_shown_with_task_step_loss_and_accuracy(view):
    view.finished = 4
    view.event({"event": "begin", "index": 4, "genome": "attention swiglu", "key": "k"})
    step = {"event": "step", "index": 4, "task": "mad/in-context-recall", "step": 6}
    view.event(step | {"loss": 1.25, "accuracy": 0.5, "done": 0.75})
    text = rendered(view)
    for words in ("#4 attention swiglu", "in-context-recall", "6", "1.250", "0.500", "4/6 trials"):
        assert words in text
    view.event(
        {"event": "end", "index": 4, "status": "ok", "why": "", "score": 0.5, "seconds": 2.0}
    )
    assert "#4" not in rendered(view)


def test_markup_in_a_genome_is_shown_as_it_is(view):
    view.event({"event": "begin", "index": 9, "genome": "attention[window=8]", "key": "k"})
    assert "attention[window=8]" in rendered(view)

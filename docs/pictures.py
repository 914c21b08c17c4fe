"""Draw the pictures of the README from a finished quickstart run.

    python docs/pictures.py [RUN]         RUN defaults to runs/quickstart

The live view is rebuilt as it stood when three fifths of the trials had ended: genomes, scores and
curves are those of the run.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

from rich.console import Console

from archsearch.drawing import draw_svg
from archsearch.report.live import Running, View
from archsearch.search.storage import open_storage
from archsearch.search.study import Record, Study

PICTURES = Path(__file__).parent / "pictures"
WIDTH = 80


def main() -> None:
    """Write live.svg and best.svg."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    study = Study(open_storage(folder), folder.name)
    records = study.records()
    PICTURES.mkdir(exist_ok=True)
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True)
    console.print(live_view(study, records))
    title = "archsearch run quickstart"
    (PICTURES / "live.svg").write_text(console.export_svg(title=title, unique_id="live"))
    best = study.best()
    if best:
        (PICTURES / "best.svg").write_text(draw_svg(best.genome))


def live_view(study: Study, records: dict[int, Record]) -> View:
    """The view with the first three fifths of the trials ended and the next two half way."""
    experiment = study.experiment()
    ended = len(records) * 3 // 5
    before = [records[i] for i in range(ended) if records[i].status == "ok"]
    view = View(
        study.name, len(records), tuple(g.name for g in experiment.goals),
        experiment.space.varying, workers=2,
    )  # fmt: skip
    view.finished = ended
    view.front = [r for r in before if not any(study.dominates(o.values, r.values) for o in before)]
    view.front = sorted(view.front, key=lambda r: -r.score)
    view.best = view.front[0]
    seconds = [float(records[i].attrs["seconds"]) for i in range(ended)]
    view.began = time.monotonic() - sum(seconds) / 2
    view.ended = dict(enumerate(seconds))
    for index, stretch in ((ended, 5), (ended + 1, 3)):
        record = records[index]
        running = Running(index, record.genome.text(experiment.space.varying), view.began)
        reached = min(stretch, len(record.scores))
        running.task = experiment.tasks[index % 2].name
        running.step = round(experiment.recipe.steps * reached / experiment.recipe.evals)
        running.accuracy = record.scores[reached - 1]
        running.loss = float(record.attrs["loss"])
        running.done = reached / experiment.recipe.evals
        view.running[index] = running
    return view


if __name__ == "__main__":
    main()

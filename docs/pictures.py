"""Draw the pictures of the README from a finished quickstart run.

    python docs/pictures.py [RUN]         RUN defaults to runs/quickstart

The live view is rebuilt as it stood when three fifths of the trials had ended: genomes, scores and
curves are those of the run.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path

from optuna.artifacts import get_all_artifact_meta
from rich.console import Console

from archsearch.drawing import draw_svg
from archsearch.report.live import Running, View
from archsearch.search.rungs import Schedule
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
    console.print(live_view(study, records, folder))
    title = "archsearch run quickstart"
    (PICTURES / "live.svg").write_text(console.export_svg(title=title, unique_id="live"))
    best = study.best()
    if best:
        (PICTURES / "best.svg").write_text(draw_svg(best.genome))


def live_view(study: Study, records: dict[int, Record], folder: Path) -> View:
    """The view with the first three fifths of the trials ended and the next two half way."""
    experiment = study.experiment()
    ended = len(records) * 3 // 5
    before = [records[i] for i in range(ended)]
    view = View(
        study.name, Schedule(len(records)), tuple(g.name for g in experiment.goals),
        experiment.space.varying, workers=2,
    )  # fmt: skip
    view.finished = ended
    view.front, view.best = study.front(before), study.best(before)
    seconds = [float(records[i].attrs["seconds"]) for i in range(ended)]
    view.began = time.monotonic() - sum(seconds) / 2
    view.ended = dict(enumerate(seconds))
    for index, share in ((ended, 0.6), (ended + 1, 0.3)):
        curve = curves(study, records[index], folder)
        task, step, loss, accuracy = curve[round(share * len(curve))]
        view.running[index] = Running(
            index, records[index].genome.text(experiment.space.varying), view.began,
            task, step, loss, accuracy, share,
        )  # fmt: skip
    return view


def curves(study: Study, record: Record, folder: Path) -> list[tuple[str, int, float, float]]:
    """Task, step, loss and accuracy at every evaluation of a trial, in order of step."""
    trial = study.trials()[record.number]
    metas = get_all_artifact_meta(trial, storage=study.storage)
    artifact = next(meta.artifact_id for meta in metas if meta.filename == "curves.csv")
    rows = csv.DictReader((folder / "artifacts" / artifact).read_text().splitlines())
    points = [(r["task"], int(r["step"]), float(r["loss"]), float(r["accuracy"])) for r in rows]
    return sorted(points, key=lambda point: point[1])


if __name__ == "__main__":
    main()

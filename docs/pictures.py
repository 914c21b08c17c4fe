"""Draw the pictures of the README from a finished quickstart run.

    python docs/pictures.py [RUN]         RUN defaults to runs/quickstart

The live view is rebuilt as it stood when three fifths of the trials had ended: genomes, scores and
curves are those of the run. The report and the gallery of the dashboard are photographed in a
headless Chromium; without one they stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import Browser, installed
from optuna.artifacts import get_all_artifact_meta
from rich.console import Console

from archsearch.drawing import draw_svg
from archsearch.report.html import page
from archsearch.report.html_sheet import Sheet
from archsearch.report.live import Running, View
from archsearch.search.rungs import Schedule
from archsearch.search.storage import open_storage
from archsearch.search.study import Record, Study

PICTURES = Path(__file__).parent / "pictures"
WIDTH = 80
ACROSS = 1280
"""Width of a browser's window in pixels."""


def main() -> None:
    """Write live.svg, best.svg, report.png and gallery.png."""
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
    if not installed():
        sys.stdout.write("no Chromium here, so report.png and gallery.png stay as they are\n")
        return
    with Browser() as browser:
        photograph_report(browser, study, folder)
        photograph_gallery(browser, len(records), folder)


def photograph_report(browser: Browser, study: Study, folder: Path) -> None:
    """The report down to the end of the section on the winner."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "report.html"
        file.write_text(page(Sheet(study, folder, str(folder))))
        browser.open(file.as_uri(), ACROSS)
        end = browser.run("document.querySelector('#winner').getBoundingClientRect().bottom")
        browser.picture(PICTURES / "report.png", (0, 0, ACROSS, end + 20))


def photograph_gallery(browser: Browser, trials: int, folder: Path) -> None:
    """The drawings of all trials in the dashboard, framed by their score."""
    command = [sys.executable, "-m", "archsearch", "dashboard", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        where = re.search(r"http://\S+", server.stdout.readline())
        assert where, "the dashboard did not start"
        browser.open(f"{where[0]}/studies/0/smartSelection", ACROSS)
        switch = "[...document.querySelectorAll('label')].find(e => /Artifacts/.test(e.innerText))"
        browser.until(f"{switch} !== undefined")
        browser.run(f"{switch}.querySelector('input').click()")
        drawings = "[...document.querySelectorAll('img')].filter(e => e.naturalWidth > 100)"
        browser.until(f"{drawings}.length === {trials}")
        title = "e => e.childElementCount === 0 && e.textContent === 'Artifacts'"
        browser.run(f"window.heading = [...document.querySelectorAll('h5, p')].find({title}); 0")
        top = browser.run("heading.getBoundingClientRect().top + scrollY")
        end = browser.run(f"{drawings}.at(-1).getBoundingClientRect().bottom + scrollY")
        browser.picture(PICTURES / "gallery.png", (60, top - 24, ACROSS - 60, end + 70))
    finally:
        server.kill()
        server.communicate()


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

"""What does archsearch cost on top of the training itself?

Three shares, on a member of the quickstart space, one thread:

    training   wall time of a trial over a bare hand-written PyTorch loop on the same model, data
               and steps, in interleaved pairs; at most 1.10
    data       drawing the rows over the whole step; less than 0.03
    search     Optuna, artifacts, progress and weights over the training of the trials of a real
               worker; less than 0.02

    python benchmarks/overhead.py            prints a table and writes results/overhead.json
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.search.run import Run, prepare
from archsearch.search.study import versions
from archsearch.search.worker import Worker
from archsearch.space_yaml import Experiment, load
from archsearch.train import CHUNK, generator
from archsearch.trial import run_trial

GENOME = Genome(
    64, (Gene.of("mamba2", d_state=16), Gene.of("attention", heads=2), Gene.of("swiglu"))
)
PAIRS, TRIALS = 5, 4


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    experiment = load("quickstart")
    never = experiment.recipe.model_copy(update={"solved": 2.0})  # both sides take every step
    experiment = replace(experiment, recipe=never)
    pairs = [(ours(experiment), bare(experiment)) for _ in range(PAIRS + 1)][1:]
    ratios = [a / b for a, b in pairs]
    data = [data_share(experiment, b) for _, b in pairs]
    search = search_share()
    figures = {
        "training": spread(ratios) | {"at most": 1.10},
        "data": spread(data) | {"at most": 0.03},
        "search": spread(search) | {"at most": 0.02},
    }
    for name, row in figures.items():
        print(name.ljust(10), "  ".join(f"{k} {v:.4f}" for k, v in row.items()))
    result = {"genome": GENOME.text(), "versions": versions(), "device": cpu(), "figures": figures}
    target = Path(__file__).parent / "results" / "overhead.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")


def ours(experiment: Experiment) -> float:
    """Seconds of a trial as the search runs it, evaluations included."""
    began = time.perf_counter()
    result = run_trial(GENOME, experiment.tasks, experiment.recipe, 0)
    seconds = time.perf_counter() - began
    assert result.status == "ok", result.why
    return seconds


def bare(experiment: Experiment) -> float:
    """Seconds of the loop that one would write by hand: no schedule object, no checks, no curve."""
    recipe = experiment.recipe
    began = time.perf_counter()
    for task in experiment.tasks:
        model = build(GENOME, task.vocab, task.readout, generator=generator("start"))
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, fused=True)
        data = generator("data")
        for step in range(recipe.steps):
            at = step % (CHUNK // recipe.batch)
            if at == 0:
                inputs, targets = task.sample(CHUNK, data, train=True)
            rows = slice(at * recipe.batch, (at + 1) * recipe.batch)
            logits = model(inputs[rows])
            loss = F.cross_entropy(logits.flatten(0, 1), targets[rows].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
        with torch.no_grad():
            inputs, targets = task.sample(recipe.eval_rows, data)
            _ = (model(inputs).argmax(-1) == targets)[targets != -100].float().mean()
    return time.perf_counter() - began


def data_share(experiment: Experiment, whole: float) -> float:
    """Seconds spent on drawing the rows of a trial, as a share of the bare loop."""
    recipe, data = experiment.recipe, generator("data")
    began = time.perf_counter()
    for task in experiment.tasks:
        for _ in range(-(-recipe.steps * recipe.batch // CHUNK)):
            task.sample(CHUNK, data, train=True)
    return (time.perf_counter() - began) / whole


def search_share() -> list[float]:
    """What a worker does besides training, as a share of the training, trial by trial."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "quickstart")
        experiment = load("quickstart", (f"search.trials={TRIALS}",))
        study, _ = prepare(experiment, run, workers=1)
        ends: list[tuple[float, float]] = []

        def emit(event: dict[str, object]) -> None:
            if event["event"] == "end":
                ends.append((time.perf_counter(), float(str(event["seconds"]))))

        worker = Worker(str(run.folder), study.name, run.folder, emit=emit)
        began = time.perf_counter()
        worker.work()
    starts = [began, *(moment for moment, _ in ends)]
    return [(end - start - s) / s for start, (end, s) in zip(starts, ends, strict=False)]


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "unknown"
    )


if __name__ == "__main__":
    main()

"""HybridBench: every member of the space `hybridbench`, trained; and what strategies find in it.

    python benchmarks/hybridbench.py fill --workers 2
    python benchmarks/hybridbench.py measure --out benchmarks/results/hybridbench.json

`fill` trains the members that the table in runs/hybridbench lacks, an hour on one core if all, goes
on where it was stopped, and writes search_spaces/hybridbench.jsonl.gz once none is missing.

`measure` is `archsearch compare-samplers hybridbench`, with one objective and with two, and keeps
how many times as many trials random search needs to get where a strategy is.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from archsearch.genome import Genome
from archsearch.report.compare import JSON, SVG, compare_samplers
from archsearch.rules import members
from archsearch.search.compare import budgets
from archsearch.search.proposals import NAMES
from archsearch.search.table import Table, train
from archsearch.space_yaml import load
from archsearch.words import span

SPACE = "hybridbench"
SHIPPED = Path(__file__).parent.parent / "search_spaces" / f"{SPACE}.jsonl.gz"
OBJECTIVES = {
    "score": "[{maximize: score}]",
    "score and state_bytes": "[{maximize: score}, {minimize: state_bytes}]",
}


def one_thread() -> None:
    """As a worker trains."""
    import torch

    torch.set_num_threads(1)


def fill(path: Path, workers: int) -> None:
    """Train what the table lacks, then pack it."""
    experiment = load(SPACE)
    table = Table(experiment, path)
    genomes = [c.genome for c in members(experiment.space, experiment.context) or ()]
    missing = [genome for genome in genomes if genome.key not in table.rows]
    began = time.monotonic()
    with ProcessPoolExecutor(workers, get_context("spawn"), one_thread) as pool:
        asked = [pool.submit(train, experiment, genome) for genome in missing]
        for done, answer in enumerate(as_completed(asked), 1):
            row = answer.result()
            table.add(row)
            left = (time.monotonic() - began) / done * (len(missing) - done)
            score = row.true(experiment)[0]
            print(f"[{done}/{len(missing)}] {row.genome.text()}: {score:.3f}; {span(left)} left",
                  flush=True)  # fmt: skip
    pack(path, [genome.key for genome in genomes])


def pack(path: Path, order: list[str]) -> None:
    """Write the shipped table: the same rows, in the order in which the space lists them."""
    head, *lines = path.read_bytes().splitlines(keepends=True)
    rows = {Genome.from_json(json.loads(line)["genome"]).key: line for line in lines}
    SHIPPED.write_bytes(gzip.compress(head + b"".join(rows[key] for key in order), mtime=0))
    print(f"{SHIPPED}: {len(rows)} members, {SHIPPED.stat().st_size / 1e3:.0f} kB")


def measure(out: Path, seeds: int, trials: int, strategies: list[str]) -> None:
    """Compare strategies in the shipped table and keep the figures."""
    results: dict[str, Any] = {}
    for name, objectives in OBJECTIVES.items():
        experiment = load(SPACE, (f"objectives={objectives}",))
        table = Table(experiment, SHIPPED)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            compare_samplers(SPACE, table, strategies, seeds, trials, folder, Console(width=80))
            found = json.loads((folder / JSON).read_text())
            if name == "score":
                out.with_suffix(".svg").write_text((folder / SVG).read_text())
        slow = found["strategies"]["random"]["median_trials_to_target"]
        for figures in found["strategies"].values():
            fast = figures["median_trials_to_target"]
            figures["random_needs_times"] = round(slow / fast, 2) if slow and fast else None
            bands = [figures.pop(k) for k in ("mean", "low", "high")]
            figures["mean, low, high"] = {n: [b[n - 1] for b in bands] for n in budgets(trials)}
            del figures["curves"]
        results[name] = found
    machine = {"system": platform.platform(), "processor": platform.machine()}
    out.write_text(json.dumps({"machine": machine, **results}, indent=1) + "\n")


def main() -> None:
    """Fill or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    filling, measuring = verbs.add_parser("fill"), verbs.add_parser("measure")
    filling.add_argument("--table", type=Path, default=Path("runs") / SPACE / "table.jsonl")
    filling.add_argument("--workers", type=int, default=1)
    measuring.add_argument("--out", type=Path, required=True)
    measuring.add_argument("--seeds", type=int, default=15)
    measuring.add_argument("--trials", type=int, default=100)
    measuring.add_argument("--strategies", nargs="+", default=list(NAMES))
    given = parser.parse_args()
    if given.verb == "fill":
        fill(given.table, given.workers)
    else:
        measure(given.out, given.seeds, given.trials, given.strategies)


if __name__ == "__main__":
    main()

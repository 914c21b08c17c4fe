"""What does a short wait of idle threads cost, and what does it save beside other programs?

The threads of a parallel loop spin until the next one. Beside other programs that takes from the
one that has work, so the command line lets them sleep soon (`archsearch.cli.SPINS`). Training steps
per second with that over without, in interleaved pairs of processes: alone, beside one busy
process, and beside as many as there are cores.

    python benchmarks/threads.py      prints three lines and writes results/threads.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from archsearch.cli import SPINS

PAIRS, STEPS = 5, 8
BUSY = "while True: pass"


def main() -> None:
    """Measure, print and write."""
    figures = {}
    cores = os.cpu_count() or 1
    for name, others in (("alone", 0), ("beside one", 1), (f"beside {cores}", cores)):
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
        try:
            ratios = [rate(str(SPINS)) / rate(None) for _ in range(PAIRS)]
        finally:
            for process in busy:
                process.kill()
        figures[name] = {
            "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)
        }  # fmt: skip
        print(name, "  ".join(f"{key} {value:.2f}" for key, value in figures[name].items()))
    result = {"spins": SPINS, "pairs": PAIRS, "steps": STEPS, "cores": cores}
    target = Path(__file__).parent / "results" / "threads.json"
    target.write_text(json.dumps(result | {"figures": figures}, indent=2) + "\n")


def rate(spins: str | None) -> float:
    """Steps per second of a process of its own, with all cores."""
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}
    env |= {} if spins is None else {"GOMP_SPINCOUNT": spins}
    command = [sys.executable, __file__, "--steps"]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return float(told.stdout)


def steps() -> None:
    """Train a model of some million parameters; print steps per second."""
    import torch

    from archsearch.genome import Gene, Genome
    from archsearch.model import build
    from archsearch.sections import Recipe
    from archsearch.train import cross_entropy, generator, optimizers

    genes = Gene.of("mamba2", head_dim=64), Gene.of("swiglu"), Gene.of("attention", heads=4)
    model = build(Genome(256, genes * 3), 256, generator=generator("start"))
    (optimizer,) = optimizers(model, Recipe(steps=STEPS, batch=4))
    rows_BT = torch.randint(256, (4, 257), generator=generator("rows"))
    for step in range(STEPS + 2):
        if step == 2:
            began = time.perf_counter()
        model.zero_grad()
        cross_entropy(model(rows_BT[:, :-1]), rows_BT[:, 1:]).backward()
        optimizer.step()
    print(STEPS / (time.perf_counter() - began))


if __name__ == "__main__":
    steps() if "--steps" in sys.argv else main()

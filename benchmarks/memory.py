"""Is the memory that a trial is said to need what it takes?

Each case is trained as a trial is, in a process of its own, after a tiny trial of the same blocks
has brought in the code that they load. Real is how much the process grew from there to its peak,
weights, optimizer, rows and the allocator's losses included.

    python benchmarks/memory.py                  prints a table and writes results/memory.json
    python benchmarks/memory.py attention-small  prints the figures of some cases as JSON

Linux only: the peak is read from /proc.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from archsearch.genome import Gene, Genome
from archsearch.memory import estimate
from archsearch.rules import settle
from archsearch.search.study import versions
from archsearch.sections import Recipe
from archsearch.space_yaml import load
from archsearch.trial import run_trial
from mad_tasks import InContextRecall, Memorization, SelectiveCopying

ATTENTION, SWIGLU = Gene.of("attention", heads=4), Gene.of("swiglu")
PAIRS = {
    "attention": (ATTENTION, SWIGLU),
    "mamba2": (Gene.of("mamba2", head_dim=16, d_state=16), SWIGLU),
    "moe": (ATTENTION, Gene.of("moe", experts=8, top_k=2)),
    "peer": (ATTENTION, Gene.of("peer", keys=32)),
    "sparse-peer": (ATTENTION, Gene.of("peer", keys=256)),
    "mod": (ATTENTION, replace(Gene.of("mod", capacity=0.5), inner=(ATTENTION, SWIGLU))),
    "rwkv7": (Gene.of("rwkv7", head_dim=16), SWIGLU),
    "kan": (ATTENTION, Gene.of("kan")),
}
"""Mixer and feed-forward, a block of `everything` in each."""
SIZES = {"small": (64, 2, 32), "large": (128, 4, 128)}
"""Width, pairs and tokens of a row."""
MEMBERS = range(6)
"""Seeds of random members of the space `everything`."""
STEPS = Recipe(steps=3, evals=1)
Case = tuple[Genome, tuple[Any, ...], Recipe]


def cases() -> dict[str, Case]:
    """What is measured, by name."""
    found: dict[str, Case] = {}
    for size, (width, pairs, length) in SIZES.items():
        task = InContextRecall(vocab=32, seq_len=length)
        for name, pair in PAIRS.items():
            found[f"{name}-{size}"] = Genome(width, pair * pairs), (task,), STEPS
    everything = load("everything")
    space = everything.space
    for seed in MEMBERS:
        genome = space.replay(space.sample(random.Random(seed)))
        genome = settle(space, genome, everything.context)
        found[f"everything-{seed}"] = genome, everything.tasks, STEPS
    genome = Genome(64, PAIRS["mamba2"] * 2)
    several = (InContextRecall(seq_len=64), SelectiveCopying(seq_len=128), Memorization())
    found["three-tasks"] = genome, several, STEPS.model_copy(update={"seeds": 2})
    wide = (InContextRecall(vocab=4096, seq_len=64),)
    found["vocabulary"] = Genome(64, PAIRS["attention"] * 2), wide, STEPS
    found["few-rows"] = genome, several[:1], STEPS.model_copy(update={"eval_rows": 32})
    found["many-rows"] = genome, several[:1], STEPS.model_copy(update={"batch": 256})
    return found


def measure(name: str) -> dict[str, Any]:
    """The figures of one case, in MiB; to be called in a process of its own."""
    torch.set_num_threads(1)
    genome, tasks, recipe = cases()[name]
    tiny = (InContextRecall(vocab=8, seq_len=16),)
    run_trial(genome, tiny, recipe.model_copy(update={"batch": 2, "eval_rows": 2, "seeds": 1}), 0)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    result = run_trial(genome, tasks, recipe, 0)
    real = memory("VmHWM") - before
    assert result.status == "ok", result.why
    needed = estimate(genome, tasks, recipe)
    weights = sum(p.nbytes for model in result.models for p in model.parameters())
    figures = {"estimate": needed, "real": real, "weights": weights}
    return {
        "case": name,
        **{key: round(value / 2**20, 1) for key, value in figures.items()},
        "ratio": round(needed / real, 2),
    }


def memory(field: str) -> int:
    """What the kernel counts of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Measure, print and write."""
    names = sys.argv[1:] or list(cases())
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        rows = []
        for row in pool.map(measure, names):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if sys.argv[1:]:
        return
    ratios = sorted(row["ratio"] for row in rows)
    print(f"estimate over real: {ratios[0]} to {ratios[-1]}, median {ratios[len(ratios) // 2]}")
    result = {"versions": versions(), "unit": "MiB", "rows": rows}
    target = Path(__file__).parent / "results" / "memory.json"
    target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

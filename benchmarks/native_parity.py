"""How far are models that were written as published architectures from themselves?

Random genomes that fit, every weight random, half of them scaled up by muP, a third with small
matrices. Each is written, loaded by transformers, and compared on random tokens: the largest
difference of logits over the largest logit, of whole rows and of a cached decode. The law is 1e-5.

    python -m benchmarks.native_parity      prints a table and writes results/native_parity.json
"""

from __future__ import annotations

import json
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from archsearch.export.native import TARGETS, native
from archsearch.export.native.parity import Parity, parity
from archsearch.search.study import versions
from tests.export.native_genomes import genome_for, model_of

GENOMES = 20


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    figures = {}
    print("| architecture | logits, median | largest | cached decode, largest |\n|---|--:|--:|--:|")
    for name in TARGETS:
        found = [measured(name, number) for number in range(GENOMES)]
        logits = [one.logits for one in found]
        decode = [one.decode for one in found if one.decode is not None]
        assert len(decode) == GENOMES
        assert max(logits + decode) < 1e-5
        figures[name] = {
            "median": statistics.median(logits), "largest": max(logits), "decode": max(decode)
        }  # fmt: skip
        print(f"| {name} | " + " | ".join(f"{v:.1e}" for v in figures[name].values()) + " |")
    packages = {**versions(), "transformers": version("transformers")}
    result = {"genomes": GENOMES, "versions": packages, "figures": figures}
    target = Path(__file__).parent / "results" / "native_parity.json"
    target.write_text(json.dumps(result, indent=2) + "\n")


def measured(name: str, number: int) -> Parity:
    """One genome of a target."""
    model = model_of(genome_for(name, number), number)
    with tempfile.TemporaryDirectory() as folder:
        native(model, Path(folder), name=name)
        return parity(model, Path(folder))


if __name__ == "__main__":
    main()

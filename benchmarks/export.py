"""How far exported models are from those in memory: random architectures of all blocks.

Each is written as `hf` and as `torch`, loaded in a process where archsearch cannot be imported, and
compared over its largest logit (or 1): a whole pass, and a cached decode with the whole pass.

    python benchmarks/export.py --genomes 100 --out benchmarks/results/export.json
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from archsearch.canonical import nested
from archsearch.export.check import TOLERANCES, deviations
from archsearch.export.write import fill
from tests.export.models import member, origin, scaled


def main() -> None:
    """Export, compare, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genomes", type=int, default=100)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    models = [scaled(member(seed), seed) for seed in range(asked.genomes)]
    blocks = sorted({gene.block for model in models for gene in nested(model.genome.genes)})
    found: dict[str, object] = {"genomes": len(models), "blocks": blocks}
    for kind in ("hf", "torch"):
        with tempfile.TemporaryDirectory() as scratch:
            written = [(Path(scratch) / f"model-{i}", model) for i, model in enumerate(models)]
            for folder, model in written:
                folder.mkdir()
                fill(origin(model), folder, kind, folder.name)
            each = deviations(kind, written)
        for name, allowed in TOLERANCES.items():
            values = [one[name] for one in each]
            found[f"{kind} {name}"] = {
                "largest": max(values), "median": median(values), "allowed": allowed,
                "within": sum(value <= allowed for value in values),
            }  # fmt: skip
            print(f"{kind:5} {name:6} largest {max(values):.1e}, median {median(values):.1e}")
    found["versions"] = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    found["machine"] = platform.machine()
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What does `archsearch scale` cost on top of the training itself?

Wall time of the steps of a training on text, looks into it included, over a bare hand-written
PyTorch loop on the same model, rows and steps, in interleaved pairs on one thread; at most 1.05.

    python benchmarks/scale_overhead.py      prints a line and writes results/scale_overhead.json
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.mup import Base
from archsearch.scale.corpus import Corpus
from archsearch.scale.plan import enlarged
from archsearch.scale.pretrain import Mark, Pretraining, Settings, train
from archsearch.search.study import versions
from archsearch.sections import Recipe
from archsearch.train import generator

SMALL = Genome(
    64, (Gene.of("mamba2", d_state=16), Gene.of("attention", heads=2), Gene.of("swiglu"))
)
LARGE, BASE = enlarged(SMALL, 128, 6), Base(64, 3)
RECIPE = Recipe(steps=64, batch=8, evals=1)
CONTEXT, PAIRS = 256, 6


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus.open([], "byte", Path(folder))
        pairs = [(ours(corpus), bare(corpus)) for _ in range(PAIRS + 1)][1:]
    ratios = [a / b for a, b in pairs]
    figures = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    print("  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    result = {
        "genome": LARGE.text(), "steps": RECIPE.steps, "batch": RECIPE.batch, "context": CONTEXT,
        "pairs": PAIRS, "at most": 1.05, "versions": versions(),
    }  # fmt: skip
    target = Path(__file__).parent / "results" / "scale_overhead.json"
    target.write_text(json.dumps(result | {"figures": figures}, indent=2) + "\n")


def ours(corpus: Corpus) -> float:
    """Seconds of the steps as `archsearch scale` makes them."""
    model = build(LARGE, corpus.vocab, generator=generator("start"), base=BASE)
    training = Pretraining(model, corpus, RECIPE, Settings(context=CONTEXT))
    marks: list[Mark] = []
    train(training, on_mark=marks.append)
    return sum(mark.seconds for mark in marks)


def bare(corpus: Corpus) -> float:
    """Seconds of the loop that one would write by hand: no schedule object, no looks."""
    model = build(LARGE, corpus.vocab, generator=generator("start"), base=BASE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE.lr, fused=True)
    began = time.perf_counter()
    for step in range(RECIPE.steps):
        rows_BT = corpus.batch(0, step, RECIPE.batch, CONTEXT)
        logits_BTV = model(rows_BT[:, :-1])
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), rows_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
        optimizer.step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

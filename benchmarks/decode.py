"""Does decoding slow down as the context grows, where every block is recurrent?

A model with every mixer whose state does not grow really reads 32,768 tokens, one at a time, and a
twin 1,024; then both go on in turns, which of them first changing from turn to turn. The figure is
the ratio of their times per token, the median over turns, and is to be at most 1.2. A model of
attention alone is the control: it has to slow down. One thread.

    python benchmarks/decode.py      prints a line per model and writes results/decode.json
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path

import torch

from archsearch.genome import Gene, Genome
from archsearch.inference.decoding import Reader
from archsearch.model import build
from archsearch.search.study import versions
from archsearch.train import generator

CONTEXTS = (1024, 32_768)
TURNS, TOKENS = 41, 16
VOCAB, WIDTH = 256, 64
RECURRENT = (
    "mamba1", "mamba2", "gated_deltanet", "gla", "rwkv7", "ttt", "short_conv", "liquid_s4", "armt",
    "block_recurrent",
)  # fmt: skip
MODELS = {
    "recurrent": (*map(Gene.of, RECURRENT), Gene.of("swiglu")),
    "attention": (Gene.of("attention"), Gene.of("swiglu")) * 2,
}


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    figures = {}
    for name, genes in MODELS.items():
        figures[name] = measured(Genome(WIDTH, genes))
        print(name, "  ".join(f"{k} {v:.3f}" for k, v in figures[name].items()), flush=True)
    result = {
        "models": {name: Genome(WIDTH, genes).text() for name, genes in MODELS.items()},
        "contexts": CONTEXTS, "turns": TURNS, "tokens": TOKENS, "at most": 1.2,
        "versions": versions(),
    }  # fmt: skip
    target = Path(__file__).parent / "results" / "decode.json"
    target.write_text(json.dumps(result | {"figures": figures}, indent=2) + "\n")


def measured(genome: Genome) -> dict[str, float]:
    """The ratio with the middle half of the turns, and milliseconds per token at each context."""
    model = build(genome, VOCAB, generator=generator("decode", "start")).eval()
    readers = []
    for context in CONTEXTS:
        readers.append(Reader(model, context + TURNS * (TOKENS + 1)))
        for _ in range(context // TOKENS):
            read(readers[-1])
    times: list[list[float]] = [[], []]
    for turn in range(TURNS):
        for place in (0, 1) if turn % 2 else (1, 0):
            readers[place].read([0])  # brings the state into the cache
            times[place].append(read(readers[place]))
    ratios = [late / early for early, late in zip(*times, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4)
    each = {
        f"ms at {context}": 1000 * statistics.median(took)
        for context, took in zip(CONTEXTS, times, strict=True)
    }
    return {"ratio": median, "lower quarter": lower, "upper quarter": upper} | each


def read(reader: Reader) -> float:
    """Seconds per token of a few random ones."""
    rng = random.Random(reader.position)
    tokens = [rng.randrange(VOCAB) for _ in range(TOKENS)]
    began = time.perf_counter()
    for token in tokens:
        reader.read([token])
    return (time.perf_counter() - began) / TOKENS


if __name__ == "__main__":
    main()

"""How fast are the blocks on a CPU, forward and backward, beside their peers?

A peer is another package's layer of the same size, or the floor: the block's dense matrices alone,
same shapes, forward and backward, which no implementation can do without. One thread, process CPU
time, B=8, d=128. Both sides of a row take turns, and its figure is the median of the ratios of the
pairs, with the quartiles:

    ours / floor   how much the rest of the block costs; at most ...
    peer / ours    how much faster the block is; at least ...

    python benchmarks/blocks.py                        prints a table of all rows
    python benchmarks/blocks.py --only mamba2 --out f  some rows; writes figures as JSON to f

A row for another block is one line in `ROWS`, and a function in `peers.py` that builds the peer. A
peer that is not installed is skipped; `pip install archsearch[oracles]` brings them all.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import peers
import torch
from peers import Pass, Sides

from archsearch.block import Block, block_class
from archsearch.genome import Gene
from archsearch.testing.cases import Case

PAIRS, SECONDS = 11, 0.1
PACKAGES = (
    "archsearch", "torch", "transformers", "mambapy", "peer-pytorch", "pykan", "fla-core",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One comparison; `bound` is the largest ratio to the floor, or the smallest to a peer."""

    block: str
    config: dict[str, object]
    peer: str
    sides: Callable[[Block, int], Sides]
    """From our block and the length of the sequence."""
    bound: float | None
    """None for a row that is for information."""
    lengths: tuple[int, ...] = (128, 512)
    holds: tuple[Gene, ...] = ()
    """What a wrapper holds."""


MAMBA2 = {"d_state": 64, "head_dim": 64, "expand": 2, "groups": 1}
MAMBA1 = {"d_state": 16, "conv": 4, "expand": 2}
TTT = {"head_dim": 32, "mini_batch": 16}
PEER = {"heads": 8, "top_k": 16, "key_width": 64, "query_norm": "none"}
KAN = {"mult": 1, "grid": 5, "order": 3}
DENSE = (Gene.of("swiglu", mult=4),)
ROWS = [
    Row("mamba2", MAMBA2, "floor", peers.floor, 3.5),
    Row("mamba2", MAMBA2, "transformers", partial(peers.transformers_mamba2, chunk=256), 2.5),
    Row("mamba2", MAMBA2, "same, chunk 64", partial(peers.transformers_mamba2, chunk=64), 1.3),
    Row("attention", {"heads": 2}, "floor", peers.attention_floor, 2.0, lengths=(128,)),
    Row("attention", {"heads": 2}, "floor", peers.attention_floor, None, lengths=(512,)),
    Row("swiglu", {"mult": 2}, "floor", peers.floor, 1.1),
    Row("ttt", TTT | {"inner": "linear"}, "published code", peers.published_ttt, 1.7),
    Row("ttt", TTT | {"inner": "mlp"}, "same, inner MLP", peers.published_ttt, None),
    Row("peer", PEER | {"keys": 32}, "floor", peers.peer_floor, 5.0, lengths=(256,)),
    Row("peer", PEER | {"keys": 32}, "peer-pytorch", peers.peer_pytorch, 5.0, lengths=(256,)),
    Row("peer", PEER | {"keys": 128}, "same, 16,384", peers.peer_pytorch, 2.0, lengths=(256,)),
    Row("kan", KAN, "floor", peers.kan_floor, 2.0),
    Row("kan", KAN, "efficient-kan's form", peers.efficient_kan, 2.5),
    Row("kan", KAN, "pykan", peers.pykan, 10.0, lengths=(128,)),
    Row("gated_deltanet", {"head_dim": 32}, "fla, the rule alone", peers.fla_delta_rule, 4.0),
    Row("mamba1", MAMBA1, "mambapy", peers.mambapy, 3.0, lengths=(256,)),
    Row("mod", {"capacity": 0.125}, "the dense block", peers.dense, 6.0, holds=DENSE),
]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="BLOCK", help="rows of these blocks")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'block':17} {'T':>4} {'peer':22} {'ms':>7} {'ratio':>6}  {'quartiles':12} bound")
    figures = []
    for row in ROWS:
        if given.only and row.block not in given.only:
            continue
        for length in row.lengths:
            figures.append(measure(row, length))
            print(line(figures[-1]), flush=True)
    if given.out:
        machine = {"cpu": cpu(), "system": platform.platform(), "threads": 1}
        result = {"machine": machine, "versions": versions(), "batch": peers.BATCH}
        result |= {"width": peers.WIDTH}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result | {"rows": figures}, indent=2) + "\n")


def measure(row: Row, length: int) -> dict[str, object]:
    """The figures of one row at one length, or why there are none."""
    known = {k: getattr(row, k) for k in ("block", "config", "peer", "bound")} | {"time": length}
    kind = block_class(row.block)
    block = Case(kind, peers.WIDTH, kind.Config(**row.config), row.holds).build().train()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sides = row.sides(block, length)
            counts = [repeats(side) for side in sides]
            pairs = [
                [seconds(side, count) for side, count in zip(sides, counts, strict=True)]
                for _ in range(PAIRS)
            ]
    except ImportError as error:
        return known | {"skipped": f"{error.name or error} is not installed"}
    ratios = [a / b if row.peer == "floor" else b / a for a, b in pairs]
    low, median, high = statistics.quantiles(ratios, n=4)
    best_ours, best_peer = (min(times) for times in zip(*pairs, strict=True))
    figures = {
        "ours_ms": 1e3 * best_ours,
        "ours_tokens_per_second": peers.BATCH * length / best_ours,
        "peer_ms": 1e3 * best_peer,
        "ratio": median,
        "quartiles": [low, high],
        "range": [min(ratios), max(ratios)],
    }
    if row.bound is None:
        return known | figures
    return known | figures | {"met": (median <= row.bound) == (row.peer == "floor")}


def repeats(side: Pass) -> int:
    """How many passes make one measurement long enough; warms up as well."""
    side()
    return max(1, round(SECONDS / seconds(side, 2)))


def seconds(side: Pass, count: int) -> float:
    """CPU seconds of one pass, the mean of `count`."""
    began = time.process_time()
    for _ in range(count):
        side()
    return (time.process_time() - began) / count


def line(row: dict[str, object]) -> str:
    """A row of the table, at most 80 columns."""
    start = f"{row['block']:17} {row['time']:4} {row['peer']:22}"
    if "skipped" in row:
        return f"{start} skipped: {row['skipped']}"[:80]
    low, high = row["quartiles"]  # type: ignore[misc]
    sign = "<=" if row["peer"] == "floor" else ">="
    verdict = f"{sign} {row['bound']}{'' if row['met'] else ' no'}" if row["bound"] else ""
    spread = f"{low:.2f}-{high:.2f}"  # type: ignore[has-type]
    return f"{start} {row['ours_ms']:7.2f} {row['ratio']:6.2f}  {spread:12} {verdict}"


def versions() -> dict[str, str]:
    """What the figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def cpu() -> str:
    """The processor's name."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    names = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    return next(names, platform.processor() or "unknown")


if __name__ == "__main__":
    main()

"""How fast are the blocks on a CPU, forward and backward, beside their peers?

A peer is another package's layer of the same size, or the floor: the block's dense matrices alone,
same shapes, forward and backward, which no implementation can do without. One thread, process CPU
time, B=8, d=128. Both sides of a row take turns, and its figure is the median of the ratios of the
pairs, with the quartiles:

    ours / floor   how much the rest of the block costs; at most ...
    peer / ours    how much faster the block is; at least ...

    python benchmarks/blocks.py                        prints a table of all rows
    python benchmarks/blocks.py --only mamba2 --out f  some rows; writes figures as JSON to f

A row for another block is one line in `ROWS`, and a function that builds the peer unless it is the
floor. A peer that is not installed is skipped.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from archsearch.block import Block, Ctx, block_class, init_weights

BATCH, WIDTH, PAIRS, SECONDS = 8, 128, 11, 0.1
PACKAGES = ("archsearch", "torch", "transformers")
Pass = Callable[[], object]
"""One forward and backward pass."""


@dataclass(frozen=True)
class Row:
    """One comparison; `bound` is the largest ratio to the floor, or the smallest to a peer."""

    block: str
    config: dict[str, object]
    peer: str
    build: Callable[[Block, int], Pass]
    """From our block and the length of the sequence."""
    bound: float
    lengths: tuple[int, ...] = (128, 512)


def both(module: nn.Module, run: Callable[[Tensor], Tensor], time: int) -> Pass:
    """Forward and backward through `run`, all gradients included, that of the input too."""
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(BATCH, time, WIDTH, generator=generator, requires_grad=True)
    dy_BTD = torch.randn(BATCH, time, WIDTH, generator=generator)
    wanted = [x_BTD, *module.parameters()]
    return lambda: torch.autograd.grad(run(x_BTD), wanted, dy_BTD)


def ours(module: Block, time: int) -> Pass:
    """The block itself."""
    return both(module, lambda x_BTD: module(x_BTD, Ctx(x_BTD.detach())), time)


def floor(module: Block, time: int) -> Pass:
    """Every dense matrix of the block once, on inputs of its own."""
    generator, sides = torch.Generator().manual_seed(0), []
    for layer in (m for m in module.modules() if isinstance(m, nn.Linear)):
        shapes = ((BATCH, time, n) for n in (layer.in_features, layer.out_features))
        x, dy = (torch.randn(shape, generator=generator) for shape in shapes)
        sides.append((layer, x.requires_grad_(), dy))

    def run() -> None:
        for layer, x, dy in sides:
            torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)

    return run


def transformers_mamba2(module: Block, time: int, *, chunk: int) -> Pass:
    """The Mamba-2 layer of transformers with the sizes of `MAMBA2`."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=WIDTH, state_size=64, head_dim=64, num_heads=4, n_groups=1, expand=2,
        conv_kernel=4, chunk_size=chunk,
    )  # fmt: skip
    peer = Mamba2Mixer(config, layer_idx=0)
    count = sum(p.numel() for p in module.parameters())
    assert sum(p.numel() for p in peer.parameters()) == count, "another size"
    return both(peer, peer, time)


MAMBA2 = {"d_state": 64, "head_dim": 64, "expand": 2, "groups": 1}
ROWS = [
    Row("mamba2", MAMBA2, "floor", floor, 3.5),
    Row("mamba2", MAMBA2, "transformers", partial(transformers_mamba2, chunk=256), 2.5),
    Row("mamba2", MAMBA2, "transformers, chunk 64", partial(transformers_mamba2, chunk=64), 1.3),
    Row("attention", {"heads": 2}, "floor", floor, 2.0, lengths=(128,)),
    Row("swiglu", {"mult": 2}, "floor", floor, 1.1, lengths=(128, 512)),
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
        result = {"machine": machine, "versions": versions(), "batch": BATCH, "width": WIDTH}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result | {"rows": figures}, indent=2) + "\n")


def measure(row: Row, length: int) -> dict[str, object]:
    """The figures of one row at one length, or why there are none."""
    known = {k: v for k, v in asdict(row).items() if k not in ("build", "lengths")}
    known |= {"time": length}
    block = block_class(row.block)
    module = block(WIDTH, block.Config(**row.config))
    init_weights(module, block.roles, torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sides = ours(module, length), row.build(module, length)
            counts = [repeats(side) for side in sides]
            pairs = [
                [seconds(side, count) for side, count in zip(sides, counts, strict=True)]
                for _ in range(PAIRS)
            ]
    except ImportError as error:
        return known | {"skipped": f"{error.name or error} is not installed"}
    ratios = [a / b if row.peer == "floor" else b / a for a, b in pairs]
    low, median, high = statistics.quantiles(ratios, n=4)
    return known | {
        "ours_ms": 1e3 * min(a for a, _ in pairs),
        "peer_ms": 1e3 * min(b for _, b in pairs),
        "ratio": median,
        "quartiles": [low, high],
        "range": [min(ratios), max(ratios)],
        "met": median <= row.bound if row.peer == "floor" else median >= row.bound,
    }


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
    verdict = f"{sign} {row['bound']}{'' if row['met'] else ' no'}"
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

"""How fast are our kernels on a GPU, and are they right there?

    python benchmarks/gpu.py --out benchmarks/results/gpu.json --mark

One call does it all. Every launch config of every kernel of ours is compared with plain torch
first, value and all gradients, and so is every library; what is wrong is not timed. Then a training
step of a MAD trial (width 128, 128 tokens, 128 rows, four branches): kernel by kernel, several
models in one CUDA graph, and several processes on one GPU. Then ours, torch and the libraries side
by side, beside the floor: the bytes that must be moved over the bandwidth of a copy on this very
device. `torch.compile` comes last, as it takes longest. Products of fp32 may be rounded to TF32
where something is timed, for all alike.

What `--minutes` leave no time for is named as not measured. The results so far are written after
each row. `--mark` notes what was right in archsearch/kernels/proven.json as soon as that is known:
from then on such a kernel is taken unasked on that kind of GPU with that Triton. `--tiny` runs all
of it on tiny sizes, without a GPU in Triton's interpreter; its times mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_compare import DEVICE, EVERY, GPU, Row, Task, comparisons, fill
from gpu_targets import targets
from gpu_time import compilations, crowds, steps, timed, timings

from archsearch.kernels.backends import version
from archsearch.kernels.dispatch import PROVEN, architecture, source_hash
from archsearch.report.doctor import driver
from archsearch.testing.kernel_cases import CASES, bytes_of

PACKAGES = ("archsearch", "torch", "triton", "fla-core", "mamba-ssm")
NAMES = (*EVERY, "mad", "workers")


class Results:
    """What is known so far, on the screen and in a file."""

    def __init__(self, about: dict[str, Any], out: Path | None) -> None:
        self.told, self.out, self.rows = about | {"proven": []}, out, list[Row]()
        print(json.dumps(about))

    def collect(self, rows: Iterator[Row]) -> None:
        """Show and keep rows, each as soon as it is there."""
        for row in rows:
            show(row)
            self.rows.append(row)
            self.save()

    def save(self) -> None:
        """Write everything; who reads meanwhile finds a whole file."""
        if self.out:
            told = self.told | {"rows": [dataclasses.asdict(row) for row in self.rows]}
            part = self.out.with_suffix(".part")
            part.write_text(json.dumps(told, indent=1) + "\n")
            part.replace(self.out)


def main() -> None:
    """Everything, or what was asked for."""
    began, chosen = time.monotonic(), arguments()
    torch.set_float32_matmul_precision("high")
    ends, names = began + 60 * chosen.minutes, chosen.only or [*NAMES]
    results = Results(describe(chosen.tiny), chosen.out)
    results.collect(fill(comparisons(names, chosen.tiny), ends))
    proven = results.told["proven"] = right(results.rows)
    if chosen.mark and GPU and not chosen.tiny:
        mark(proven, results.told)
    results.save()
    wrong = {(r.what.split()[0], r.backend.split()[0].strip(",")) for r in results.rows if r.why}
    bandwidth = results.told["bandwidth"]
    parts: list[Iterator[Task]] = [steps(chosen.tiny)] if "mad" in names else []
    parts += [crowds(chosen.tiny)] if "workers" in names else []
    parts += [timings(names, chosen.tiny, wrong, bandwidth)]
    parts += [compilations(names, chosen.tiny, chosen.compile_recurrences, bandwidth)]
    for part in parts:
        results.collect(fill(part, ends))
    results.told["targets"] = targets([] if chosen.tiny else results.rows)
    for target in results.told["targets"]:
        print(f"{target['what']:<44} {target['measured']:>8} {target['target']:>8}", end="  ")
        print(target["verdict"])
    results.save()


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", nargs="*", choices=NAMES, help="these alone", metavar="NAME")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it (%(default)s)")
    parser.add_argument("--compile-recurrences", action="store_true", help="takes long")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    parser.add_argument("--mark", action="store_true", help="note in proven.json what is right")
    chosen = parser.parse_args()
    if not GPU and not chosen.tiny:
        sys.exit(
            "there is no NVIDIA GPU that torch can use here; --tiny shows that the script runs"
        )
    return chosen


def describe(tiny: bool) -> dict[str, Any]:
    """The device, its driver, versions, and the bandwidth of a copy."""
    count = 1 << (16 if tiny else 29)
    one = torch.ones(count, dtype=torch.bfloat16, device=DEVICE)
    other = torch.empty_like(one)
    microseconds, _ = timed(lambda: other.copy_(one))
    name = torch.cuda.get_device_name() if GPU else f"{platform.machine()}, Triton's interpreter"
    return {
        "device": name,
        "arch": architecture(torch.device(DEVICE, 0) if GPU else torch.device("cpu")),
        "driver": driver() if GPU else "",
        "cuda": torch.version.cuda,
        "versions": {package: version(package) for package in PACKAGES},
        "tiny": tiny,
        "bandwidth": 2 * bytes_of(one) / (microseconds * 1e-6),
    }


def right(rows: list[Row]) -> list[str]:
    """The ops of whose own kernels everything was compared, and found right."""
    found = []
    for op in CASES:
        ours = [r for r in rows if r.what.split()[0] == op and r.backend.startswith("triton")]
        if ours and not any(r.why for r in ours):
            found.append(op)
    return found


def show(row: Row) -> None:
    """One line."""
    parts = [f"{row.what:<31} {row.backend:<22} {row.direction:<7}"]
    if row.microseconds is not None:
        parts.append(f"{row.microseconds:>9.1f} us")
    if row.microseconds is not None and row.floor is not None:
        parts.append(f"{row.microseconds / row.floor:>6.1f} floors")
    if row.error is not None:
        parts.append(f"error {row.error:.1e}")
    print(" ".join([*parts, row.why, row.note]).rstrip(), flush=True)


def mark(proven: list[str], about: dict[str, Any]) -> None:
    """Note for which GPU and Triton, and in which state of their source, kernels are right."""
    known = json.loads(PROVEN.read_text())
    for op in proven:
        entry = {"op": op, "triton": about["versions"]["triton"], "arch": about["arch"]}
        entry["source"] = source_hash(op)
        known += [entry] if entry not in known else []
    part = PROVEN.with_suffix(".part")
    part.write_text(json.dumps(known, indent=1) + "\n")
    part.replace(PROVEN)


if __name__ == "__main__":
    main()

"""Does every group of parameters move the stream as far at every width? With muP, and without.

For each block, with the fewest configs that have all of its parameters: the slope of log2(movement)
against log2(width) for one small step of Adam in one group alone, after two steps of training.
Widths 64 to 512 from a base of 64, six starts with muP and two with the standard parametrisation;
see `archsearch.testing.slopes`. A slope of 0 is right; at most 0.25 is allowed, and any that is
beyond is measured again up to width 2,048.

    python benchmarks/mup_groups.py                     prints a table of all blocks
    python benchmarks/mup_groups.py --only moe --out f  some blocks; writes figures as JSON to f
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from archsearch.block import block_class
from archsearch.catalogue import block_names
from archsearch.mup import Scheme
from archsearch.testing.cases import Case
from archsearch.testing.slopes import Net, Slope, measured, settings, warm_movements, widths

FACTORS, STARTS = (1, 2, 4, 8), {"completep": 6, "sp": 2}
FURTHER, FEW = (1, 4, 8, 16, 32), 2
"""Widths and starts of a second look."""
LARGEST = 0.25


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="BLOCK", help="rows of these blocks")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':44} {'muP':>12}   {'standard':>8}")
    rows: list[dict[str, Any]] = []
    for name in block_names():
        if given.only and name not in given.only:
            continue
        for case in settings(block_class(name)):
            rows += measure(case)
    if given.out:
        only = ["--only", *given.only] if given.only else []
        made = {"command": " ".join(["python benchmarks/mup_groups.py", *only])}
        about = {"python": platform.python_version(), "torch": version("torch"), "threads": 1}
        sizes = {"base": 64, "factors": FACTORS, "starts": STARTS, "further": FURTHER}
        lines = ",\n".join(json.dumps(row) for row in rows)
        text = json.dumps(made | {"versions": about, "sizes": sizes, "rows": []}, indent=1)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text.replace('"rows": []', f'"rows": [\n{lines}\n]') + "\n")


def measure(case: Case) -> list[dict[str, Any]]:
    """The rows of one case, printed as well."""
    began = time.process_time()
    mup, sp = (slopes(case, scheme, FACTORS, STARTS[scheme]) for scheme in ("completep", "sp"))
    further: dict[str, Slope | None] = {}
    if any(slope and abs(slope.slope) > LARGEST for slope in mup.values()):
        further = slopes(case, "completep", FURTHER, FEW)
    print(f"{case}, {time.process_time() - began:.0f} s", flush=True)
    rows = []
    for name, slope in mup.items():
        row: dict[str, Any] = {"case": str(case), "group": name, "slope": None}
        if slope:
            row |= {"slope": round(slope.slope, 3), "error": round(slope.error, 3)}
            row |= {"curve": rounded(slope)}
        other, again = sp.get(name), further.get(name)
        row["sp"] = round(other.slope, 3) if other else None
        if slope and again and abs(slope.slope) > LARGEST:
            row["further"] = rounded(again)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def slopes(
    case: Case, scheme: Scheme, factors: tuple[int, ...], starts: int
) -> dict[str, Slope | None]:
    """The slope of every group of a case."""
    return measured(widths(Net(case, scheme), factors), range(starts), warm_movements)


def rounded(slope: Slope) -> list[float]:
    """The curve, short."""
    return [round(value, 2) for value in slope.curve]


def line(row: dict[str, Any]) -> str:
    """A row of the table, at most 80 columns."""
    if row["slope"] is None:
        return f"  {row['group']:42} moves nothing but choices"
    mark = "" if abs(row["slope"]) <= LARGEST else f"  beyond {LARGEST}"
    sp = "" if row["sp"] is None else f"{row['sp']:+8.2f}"
    return f"  {row['group']:42} {row['slope']:+.2f} +- {row['error']:.2f} {sp:>10}{mark}"


if __name__ == "__main__":
    main()

"""Do hyper-parameters transfer? The sweeps of docs/scaling.md, and what they say.

    python benchmarks/transfer.py [NAME ...] [--workers 1]

Each sweep is one `archsearch mup-check`; trainings are kept in runs/, so the same command goes on.
Rows and pictures go to benchmarks/results/. All of them take about fifty minutes of one core.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SWEEPS = {
    "attention": ("attention-net", "--widths", "32,64,128,256", "--depths", "4,8,16,32"),
    "mamba2": ("mamba2-net", "--widths", "32,64,128"),
    "six_kinds": ("six-kinds", "--widths", "32,128", "--depths", "7", "--seeds", "3"),
}


def main() -> None:
    """Sweep what was named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *SWEEPS])
    parser.add_argument("--workers", default="1")
    given = parser.parse_args()
    for name in given.names or SWEEPS:
        space, *sizes = SWEEPS[name]
        command = [sys.executable, "-m", "archsearch", "mup-check", space, *sizes]
        print(" ".join(command[2:]), flush=True)
        subprocess.run([*command, "--workers", given.workers], check=True, cwd=ROOT)
        home = ROOT / "runs" / space / "mup-check"
        shutil.copy(home / "swept.jsonl", RESULTS / f"mup_{name}.jsonl")
        if name == "attention":
            for axis in ("width", "depth"):
                shutil.copy(home / f"{axis}.svg", RESULTS / f"mup_{axis}.svg")


if __name__ == "__main__":
    main()

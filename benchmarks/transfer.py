"""Do hyper-parameters transfer? The sweeps of docs/scaling.md, and what they say.

    python benchmarks/transfer.py [NAME ...] [--workers 1]

Each sweep is one `archsearch mup-check`; trainings are kept in runs/, so the same command goes on.
Rows go to benchmarks/results/mup_NAME.jsonl, pictures to docs/pictures/. All of them take about
forty minutes of one core.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SWEEPS = {
    "attention": ("attention-net", "--widths", "32,64,128,256", "--depths", "4,8,16,32"),
    "mamba2": ("mamba2-net", "--widths", "32,64,128", "--depths", "2"),
    "six_kinds": ("six-kinds", "--widths", "32,128", "--depths", "7"),
}
PICTURES = {"attention": ("width", "depth")}


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
        shutil.copy(home / "swept.jsonl", ROOT / "benchmarks" / "results" / f"mup_{name}.jsonl")
        for axis in PICTURES.get(name, ()):
            shutil.copy(home / f"{axis}.svg", ROOT / "docs" / "pictures" / f"transfer-{axis}.svg")


if __name__ == "__main__":
    main()

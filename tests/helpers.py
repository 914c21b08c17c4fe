"""What several test files need: the command line as a user runs it, and a space that is quick."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from archsearch.cli import main

TINY = """\
version: 1
name: tiny
model:
  d_model: 16
  stack:
    - repeat: 2
      choose: per_repeat
      pattern:
        - mixer: [attention: {heads: 2, window: [none, 4]}, none]
        - ffn: [swiglu, none]
objectives: [{maximize: score}, {minimize: state_bytes}]
tasks: {use: [mad/in-context-recall: {vocab: 8, seq_len: 16}]}
recipe: {steps: 8, evals: 4, batch: 8, eval_rows: 16}
search: {trials: 6, finalists: 3, final_seeds: 2}
"""

spec = spec_from_file_location("browser", Path(__file__).parent.parent / "docs" / "browser.py")
assert spec
assert spec.loader
browser = module_from_spec(spec)
"""A headless Chromium; `browser.installed()` says whether there is one."""
spec.loader.exec_module(browser)


def archsearch(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a directory of its own, 80 columns wide."""
    env = os.environ | {"COLUMNS": "80", "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "archsearch", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def in_process(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same command in this process, which need not import torch again."""
    out, err, code = StringIO(), StringIO(), 0
    with (
        chdir(cwd),
        patch.dict(os.environ, {"COLUMNS": "80"}),
        patch.object(sys, "argv", ["archsearch", *args]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())

"""Blocks from another package, in real worker processes: one that prints, one that kills."""

from __future__ import annotations

import os
import re

import pytest

from tests.helpers import archsearch

BLOCKS = '''
import os, signal, sys
from dataclasses import dataclass

from archsearch.block import Block
from archsearch.cost import Cost


class Quiet(Block, name="quiet", kind="ffn", paper="none"):
    """The identity."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Nothing to choose."""

    roles = {}

    def __init__(self, width, config):
        super().__init__()

    def forward(self, x_BTD, ctx):
        return x_BTD

    @staticmethod
    def cost(width, config, seq_len):
        return Cost(params=0, active_params=0, flops=0, state_bytes=0)


class Noisy(Quiet, name="noisy", kind="ffn", paper="none"):
    """Prints what could be taken for an event, and more than a pipe holds."""

    def forward(self, x_BTD, ctx):
        print("hello", flush=True)
        for text in ('{"half": ', "[1]", "17", '"event"', "{}"):
            print(text, flush=True)
        print("~" * 100_000, file=sys.stderr, flush=True)
        return x_BTD


class Killer(Quiet, name="killer", kind="ffn", paper="none"):
    """Ends its process as the kernel does when memory is out."""

    def forward(self, x_BTD, ctx):
        os.kill(os.getpid(), signal.SIGKILL)
'''
SPACE = """\
version: 1
name: foreign
model:
  d_model: 16
  stack: [{pattern: [ffn: [quiet, noisy, killer, swiglu]]}]
tasks: {use: [mad/in-context-recall: {vocab: 8, seq_len: 16}]}
recipe: {steps: 4, evals: 2, batch: 4, eval_rows: 16}
search: {trials: 4}
"""


@pytest.fixture
def package(tmp_path):
    """An installed package with three blocks; what must be in the environment to find it."""
    site = tmp_path / "site"
    info = site / "foreign-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "foreign.py").write_text(BLOCKS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    names = ("quiet", "noisy", "killer")
    points = [f"{name} = foreign:{name.title()}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[archsearch.blocks]", *points]) + "\n")
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def test_a_block_that_prints_and_one_that_kills_stop_nobody(tmp_path, package):
    (tmp_path / "space.yaml").write_text(SPACE)
    command = ["run", "space.yaml", "--workers", "2"]
    done = archsearch(*command, cwd=tmp_path, **package)
    assert done.returncode == 0, done.stderr
    ends = dict(re.findall(r"^\[\d/4\] #\d (\w+): (\w+)", done.stdout, re.MULTILINE))
    assert ends == {"quiet": "score", "noisy": "score", "killer": "oom", "swiglu": "score"}
    assert "died 3 times" in done.stdout
    assert "~~~" not in done.stdout + done.stderr
    again = archsearch(*command, cwd=tmp_path, **package)
    assert again.returncode == 0, again.stderr
    assert not re.search(r"^\[\d/4\]", again.stdout, re.MULTILINE)

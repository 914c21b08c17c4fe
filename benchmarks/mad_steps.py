"""Training steps of MAD trials, for `gpu.py`: how fast is one, and how fast are many at once?"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from archsearch.genome import Gene, Genome
from archsearch.kernels.backends import OPS, Problem
from archsearch.kernels.dispatch import AUTO, TORCH, architecture, choose, recorded
from archsearch.model import build
from archsearch.sections import Recipe
from archsearch.train import clip, cross_entropy, generator, optimizers

SIZES = {"width": 128, "time": 128, "rows": 128, "vocab": 64}
TINY = {"width": 16, "time": 8, "rows": 2, "vocab": 16}
MODELS = (1, 2, 4, 8, 16)
"""How many models are in one CUDA graph."""
PROCESSES = (1, 4, 8, 16)
"""How many trainings share the device."""


class Step:
    """A training step on rows that stay the same, whose learning rates may change."""

    def __init__(self, sizes: Mapping[str, int], device: str, **compiled: Any):
        genes = Gene.of("mamba2", head_dim=sizes["width"] // 4), Gene.of("swiglu")
        genes += Gene.of("attention", heads=4), Gene.of("swiglu")
        genome = Genome(sizes["width"], genes)
        self.model = build(genome, sizes["vocab"], generator=generator("gpu", "start")).to(device)
        self.run = torch.compile(self.model, **compiled) if compiled else self.model
        self.optimizers = optimizers(self.model, Recipe(steps=1, batch=sizes["rows"]))
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["capturable"] = device == "cuda"
            group["lr"] = torch.tensor(group["lr"], device=device)
        shape = sizes["rows"], sizes["time"] + 1
        rows_BT = torch.randint(sizes["vocab"], shape, generator=generator("gpu", "rows"))
        self.inputs_BT, self.targets_BT = (x.to(device) for x in (rows_BT[:, :-1], rows_BT[:, 1:]))

    def __call__(self) -> None:
        loss = cross_entropy(self.run(self.inputs_BT), self.targets_BT)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        clip(list(self.model.parameters()), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()


class SideBySide:
    """The steps of some models at once, each on a stream of its own."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps, self.streams = steps, [torch.cuda.Stream() for _ in steps]

    def __call__(self) -> None:
        before = torch.cuda.current_stream()
        for step, stream in zip(self.steps, self.streams, strict=True):
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                step()
        for stream in self.streams:
            before.wait_stream(stream)


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to make steps."""

    what: str
    how: str
    count: int
    """Steps of a call."""
    make: Callable[[], Callable[[], Any]]
    """Makes the call."""
    wish: str
    """The backend of its recurrence."""


def _wishes(device: str) -> list[str]:
    """Plain torch, and what is taken unasked where that is something else."""
    there = architecture(torch.device(device, 0)) if device == "cuda" else ""
    taken = choose("ssd", Problem(device, there, torch.float32, OPS["ssd"].example)).backend
    return [f"ssd:{TORCH}", *[f"ssd:{AUTO}"] * (taken != TORCH)]


def plain(
    device: str, tiny: bool, captured: Callable[[Callable[[], Any]], Callable[[], Any]]
) -> Iterator[Way]:
    """One model kernel by kernel, and some in one CUDA graph."""
    sizes = TINY if tiny else SIZES

    def graphed(count: int) -> Callable[[], Any]:
        return captured(SideBySide([Step(sizes, device) for _ in range(count)]))

    for wish in _wishes(device):
        yield Way("MAD step", "eager", 1, partial(Step, sizes, device), wish)
        for count in () if tiny else MODELS:
            what = f"MAD steps, {count} in a graph"
            yield Way(what, "CUDA graph", count, partial(graphed, count), wish)


def compiled(device: str, tiny: bool) -> Iterator[Way]:
    """One model after `torch.compile`."""
    sizes = TINY if tiny else SIZES
    modes: list[dict[str, Any]] = [{"mode": mode} for mode in ("default", "reduce-overhead")]
    for wish in _wishes(device):
        for options in [{"backend": "eager"}] if tiny else modes:
            name = f"compile {next(iter(options.values()))}"
            yield Way("MAD step", name, 1, partial(Step, sizes, device, **options), wish)


def crowd(count: int, device: str, tiny: bool) -> tuple[float, str]:
    """Steps per second of several processes together, and what computed their recurrences.

    Raises:
        RuntimeError: if one of them ends before its time.
    """
    command = [sys.executable, str(Path(__file__)), device, *["--tiny"] * tiny]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE) | {"text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(count)]
    try:
        used = [worker.stdout.readline().strip() for worker in workers]  # all are warm then
        if not all(used):
            raise RuntimeError(f"{used.count('')} of {count} processes ended before they began")
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        rates = [worker.stdout.readline().strip() for worker in workers]
        if not all(rates):
            raise RuntimeError(f"{rates.count('')} of {count} processes ended before their time")
        return sum(map(float, rates)), used[0]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def work(device: str, tiny: bool) -> None:
    """Warm up, say on what, wait for a line, and print steps per second."""
    torch.set_float32_matmul_precision("high")
    step, done, seconds = Step(TINY if tiny else SIZES, device), 0, 0.2 if tiny else 5.0
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with recorded() as used:
        for _ in range(3):
            step()
    wait()
    print(",".join(f"{op}:{backend}" for op, backend in used.items()), flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        done += 1
        if done % 16 == 0:
            wait()
    wait()
    print(done / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    work(sys.argv[1], "--tiny" in sys.argv)

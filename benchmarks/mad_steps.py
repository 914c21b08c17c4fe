"""Training steps of MAD trials, for `gpu.py`: how fast is one, and how fast are many at once?"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.sections import Recipe
from archsearch.train import clip, cross_entropy, generator, optimizers

SIZES = {"width": 128, "time": 128, "rows": 128, "vocab": 64}
TINY = {"width": 16, "time": 8, "rows": 2, "vocab": 16}
CROWDS = (1, 2, 4, 8, 16)
"""How many trainings share the device."""


class Step:
    """A training step on rows that stay the same."""

    def __init__(self, sizes: Mapping[str, int], device: str, **compiled: Any):
        genes = Gene.of("mamba2", head_dim=sizes["width"] // 4), Gene.of("swiglu")
        genes += Gene.of("attention", heads=4), Gene.of("swiglu")
        genome = Genome(sizes["width"], genes)
        self.model = build(genome, sizes["vocab"], generator=generator("gpu", "start")).to(device)
        self.run = torch.compile(self.model, **compiled) if compiled else self.model
        self.optimizers = optimizers(self.model, Recipe(steps=1, batch=sizes["rows"]))
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["capturable"] = device == "cuda"
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


def graphed(steps: list[Step]) -> Callable[[], None]:
    """The steps of some models side by side in one CUDA graph, each a branch of its own."""
    streams = [torch.cuda.Stream() for _ in steps]

    def side_by_side() -> None:
        here = torch.cuda.current_stream()
        for step, stream in zip(steps, streams, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                step()
        for stream in streams:
            here.wait_stream(stream)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # lazy parts of torch and Triton are ready before the capture
        for _ in range(3):
            side_by_side()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        side_by_side()
    return graph.replay


def ways(device: str, tiny: bool) -> Iterator[tuple[str, str, int, Callable[[], Any]]]:
    """What, how, how many steps a call makes, and what makes the call."""
    sizes = TINY if tiny else SIZES
    yield "MAD step", "torch", 1, lambda: Step(sizes, device)
    if tiny:
        yield "MAD step", "compile", 1, lambda: Step(sizes, device, backend="eager")
        return
    for mode in ("default", "reduce-overhead"):
        yield "MAD step", f"compile {mode}", 1, lambda mode=mode: Step(sizes, device, mode=mode)
    for count in CROWDS:
        what = f"MAD steps, {count} in a graph"
        yield what, "torch", count, lambda n=count: graphed([Step(sizes, device) for _ in range(n)])


def crowds(device: str, tiny: bool) -> Iterator[tuple[int, float]]:
    """How many processes share the device, and steps per second of all of them together."""
    for count in CROWDS[1:2] if tiny else CROWDS:
        command = [sys.executable, str(Path(__file__)), device, *["--tiny"] * tiny]
        pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers = [subprocess.Popen(command, **pipe) for _ in range(count)]
        for worker in workers:  # all are warm before one begins
            worker.stdout.readline()
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        yield count, sum(float(worker.communicate()[0] or "nan") for worker in workers)


def work(device: str, tiny: bool) -> None:
    """Warm up, say so, wait for a line, and print steps per second."""
    torch.set_float32_matmul_precision("high")
    step, done, seconds = Step(TINY if tiny else SIZES, device), 0, 0.2 if tiny else 10.0
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        step()
    wait()
    print("warm", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        done += 1
        if done % 16 == 0:
            wait()
    wait()
    print(done / (time.perf_counter() - began))


if __name__ == "__main__":
    work(sys.argv[1], "--tiny" in sys.argv)

"""How fast a device multiplies, and how fast a plan would train on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from archsearch.model import build
from archsearch.mup import widened
from archsearch.train import cross_entropy, generator

if TYPE_CHECKING:
    from archsearch.scale.plan import ScalePlan

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 operations per second (data sheets), by a part of the name of a device."""
SIDE = 1024
"""Of the square matrices that are multiplied on a device that is not listed."""
TRIES = 20
"""Products that are timed; the quickest counts, as other programs may use the machine too."""
AFFORDED = 2e11
"""Operations of a sequence up to which the model itself is timed, not one of the base width."""
ENOUGH = 2.0
"""Seconds after which nothing is timed again."""


def peak(device: torch.device) -> float:
    """Operations per second that a device reaches at best: listed, or measured on float32."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, listed in PEAKS.items():
            if part in name:
                return listed
    a = torch.ones(SIDE, SIDE, device=device)
    return max(2 * SIDE**3 / _seconds(a) for _ in range(TRIES))


def _seconds(a: Tensor) -> float:
    began = time.perf_counter()
    float((a @ a)[0, 0])
    return time.perf_counter() - began


def step_seconds(plan: ScalePlan, device: torch.device) -> float:
    """About how many seconds an optimizer step of a plan takes.

    One sequence is timed, forward and back, up to three times. Where the model is large, it is one
    of the base width, and a wider one taken to be as quick for each operation.
    """
    timed, scale = plan, 1.0
    if plan.flops * plan.context > AFFORDED:
        timed = plan.at(widened(plan.genome, plan.base.width))
        scale = plan.flops / timed.flops
    model = build(timed.genome, plan.vocab, generator=generator("speed"), base=plan.base)
    model.to(device).train()
    row = torch.zeros(1, plan.context, dtype=torch.int64, device=device)
    times = list[float]()
    while len(times) < 3 and sum(times) < ENOUGH:
        began = time.perf_counter()
        loss = cross_entropy(model(row), row)
        loss.backward()
        float(loss.detach())
        times.append(time.perf_counter() - began)
    return min(times) * scale * plan.recipe.batch

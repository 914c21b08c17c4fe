"""Branches side by side, on the same input. Dong et al. 2024 (Hymba), arXiv 2411.13676, eq. 4.

    add:   y = sum_i f_i(x)                               (Falcon-H1, arXiv 2507.22448)
    norm:  y = 1/n sum_i beta_i * RMSNorm(f_i(x))         (Hymba)
    gate:  y = sum_i softmax_i(W x / rms(x)) f_i(x)

f_i is the i-th block that it holds, with its norm before it.

Shapes: B batch, T time, D model width, N branches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Ctx, Role, State, ones, zeros
from archsearch.cost import Cost, Held
from archsearch.dims import choice
from archsearch.wrapper import Inner, Wrapper

EPS = 1e-5


class Parallel(Wrapper, name="parallel", kind="wrapper", paper="2411.13676", wraps="set"):
    """What it holds, side by side on the same input; the outputs are added up."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        combine: str = choice("add", "norm", "gate", default="add")
        """add: sum. norm: mean of the normalised outputs. gate: mean with weights per token."""

    roles = {
        "gain": Role.vector(None, "model", init=ones),
        "gate.weight": Role.readout(None, "model", init=zeros),
    }

    def __init__(self, width: int, config: Config, inner: Inner) -> None:
        super().__init__(width, config, inner)
        self.combine = config.combine
        if config.combine == "norm":
            self.gain = nn.Parameter(torch.empty(inner.count, width))
        if config.combine == "gate":
            self.gate = nn.Linear(width, inner.count, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        return self._combined(x_BTD, self.inner.each(x_BTD, ctx))

    def init_state(self, batch: int, context: int) -> State:
        return self.inner.init_state(batch, context)

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        outputs, state = self.inner.step_each(x_BD, state, ctx)
        return self._combined(x_BD, outputs), state

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        outputs, state = self.inner.prefill_each(x_BTD, state, ctx)
        return self._combined(x_BTD, outputs), state

    def _combined(self, x: Tensor, outputs: list[Tensor]) -> Tensor:
        if self.combine == "norm":
            width = x.shape[-1:]
            gains = self.gain / len(outputs)
            outputs = [F.rms_norm(y, width, g, EPS) for y, g in zip(outputs, gains, strict=True)]
        if self.combine == "gate":
            weights = self.gate(F.rms_norm(x, x.shape[-1:], eps=EPS)).softmax(-1)
            parts = weights.split(1, -1)
            outputs = [weight * y for weight, y in zip(parts, outputs, strict=True)]
        total = outputs[0]
        for y in outputs[1:]:
            total = total + y
        return total

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        f_NBTD = torch.stack(self.inner.oracle_each(x_BTD, ctx))
        if self.combine == "norm":
            rms_NBT1 = ((f_NBTD**2).mean(-1, keepdim=True) + EPS).sqrt()
            return (self.gain[:, None, None] * f_NBTD / rms_NBT1).mean(0)
        if self.combine == "gate":
            u_BTD = x_BTD / ((x_BTD**2).mean(-1, keepdim=True) + EPS).sqrt()
            weight_BTN = torch.softmax(u_BTD @ self.gate.weight.T, -1)
            return torch.einsum("btn,nbtd->btd", weight_BTN, f_NBTD)
        return f_NBTD.sum(0)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int, held: Held | None = None) -> Cost:
        assert held is not None
        own = held.count * width * (config.combine != "add")
        matmul = 2 * own if config.combine == "gate" else 0
        one = Cost(params=own, active_params=own, flops=matmul, state_bytes=0)
        return held.cost(seq_len) + one

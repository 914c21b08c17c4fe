"""A loop with adaptive halting: Universal Transformer and Sparse Universal Transformer.

Dehghani et al. 2018, arXiv 1807.03819, section 2.2 (ACT: Graves 2016, arXiv 1603.08983, eq. 5-13);
stick-breaking: Tan et al. 2023, arXiv 2310.07096, section 3.2.

    s_0 = x,   s_n = f(s_(n-1) + e_n),   p_n = sigmoid(w s_(n-1) + b),   n = 1 .. N
    act:             a_n = p_n until sum p passes 0.99; then a_n = 1 - the sum before; then 0
    stick_breaking:  a_n = p_n prod_(j<n) (1 - p_j)
    y = sum_n a_n s_n,   a_N = what is left to 1

f is what the block holds, with one set of weights for all N steps and an embedding e_n for each.
Training adds `ponder` times the mean of: the steps taken plus the last weight (act), or the
expected number of steps (stick_breaking). Every token takes all N steps, and those that halted are
seen as they are by the others; a loop without halting is a stage with shared weights.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from archsearch.block import Ctx, Role, State, fan_in_times, normal, ones
from archsearch.cost import Cost, Held
from archsearch.dims import choice, real, whole
from archsearch.wrapper import Inner, Wrapper

THRESHOLD = 0.99
"""Sum of halting probabilities at which a token halts: 1 - epsilon of ACT."""


class Loop(Wrapper, name="loop", kind="wrapper", paper="1807.03819", wraps="chain"):
    """What it holds, applied several times with the same weights and a learned halt per token."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        times: int = whole(2, 16, default=2)
        """Most steps."""
        halting: str = choice("act", "stick_breaking", default="act")
        """How the steps of a token are weighted."""
        ponder: float = real(0.0, 10.0, default=0.01)
        """Weight of the loss on the number of steps."""

    roles = {
        "halt.weight": Role.readout(None, "model", init=fan_in_times(0.16)),
        "halt.bias": Role.small(None, init=ones),
        "step_embedding": Role.embedding(None, "model", init=normal(0.02), joins=True),
    }

    def __init__(self, width: int, config: Config, inner: Inner) -> None:
        super().__init__(width, config, inner)
        self.config = config
        self.halt = nn.Linear(width, 1)
        self.step_embedding = nn.Parameter(torch.empty(config.times, width))

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        states, chances = [x_BTD], []
        for embedding_D in self.step_embedding.unbind(0):
            chances.append(self.halt(states[-1]).sigmoid())
            states.append(self.inner(states[-1] + embedding_D, ctx))
        weights, ponder = self._weights(chances)
        if self.training:
            ctx.losses.append(self.config.ponder * ponder.mean())
        return _mean(weights, states[1:]) - x_BTD

    def init_state(self, batch: int, context: int) -> State:
        return {
            f"{n}.{name}": tensor
            for n in range(self.config.times)
            for name, tensor in self.inner.init_state(batch, context).items()
        }

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        return self._onward(x_BD, state, ctx, self.inner.step)

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        return self._onward(x_BTD, state, ctx, self.inner.prefill)

    def _onward(
        self,
        x: Tensor,
        state: State,
        ctx: Ctx,
        go: Callable[[Tensor, State, Ctx], tuple[Tensor, State]],
    ) -> tuple[Tensor, State]:
        after: State = {}
        states, chances = [x], []
        for n, embedding_D in enumerate(self.step_embedding.unbind(0)):
            prefix = f"{n}."
            own = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
            chances.append(self.halt(states[-1]).sigmoid())
            y, own = go(states[-1] + embedding_D, own, ctx)
            states.append(y)
            after |= {prefix + name: tensor for name, tensor in own.items()}
        return _mean(self._weights(chances)[0], states[1:]) - x, after

    def _weights(self, chances: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The weight of each step, and what pondering costs."""
        left = torch.ones_like(chances[0])
        weights: list[Tensor] = []
        if self.config.halting == "stick_breaking":
            for chance in chances[:-1]:
                weights.append(chance * left)
                left = left * (1 - chance)
            weights.append(left)
            return weights, sum((n * w for n, w in enumerate(weights, 1)), torch.zeros_like(left))
        steps = torch.ones_like(left)
        running = torch.ones_like(left, dtype=torch.bool)
        for chance in chances[:-1]:
            halts = running & (1 - left + chance >= THRESHOLD)
            weight = torch.where(halts, left, chance) * running
            weights.append(weight)
            running = running & ~halts
            steps = steps + running
            left = torch.where(running, left - chance, left)
        weights.append(left * running)
        return weights, steps + left

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        w_D, times = self.halt.weight[0], self.config.times
        s_NBTD = [x_BTD]
        for n in range(times):
            s_NBTD.append(self.inner.oracle(s_NBTD[-1] + self.step_embedding[n], ctx))
        rows, costs = [], []
        for b, t in product(range(x_BTD.shape[0]), range(x_BTD.shape[1])):
            score_N = [(w_D * s_BTD[b, t]).sum() + self.halt.bias[0] for s_BTD in s_NBTD[:times]]
            a_N, ponder = self._oracle_weights([1 / (1 + torch.exp(-score)) for score in score_N])
            ends = [s_BTD[b, t] for s_BTD in s_NBTD[1:]]
            rows.append(sum((a * s for a, s in zip(a_N, ends, strict=True)), -x_BTD[b, t]))
            costs.append(ponder)
        if self.training:
            ctx.losses.append(self.config.ponder * torch.stack(costs).mean())
        return torch.stack(rows).view_as(x_BTD)

    def _oracle_weights(self, p_N: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The weights of the steps of one token, and what it pays for them."""
        one, times = torch.ones_like(p_N[0]), len(p_N)
        if self.config.halting == "act":
            last = 0
            while (
                last < times - 1 and float(torch.stack(p_N[: last + 1]).detach().sum()) < THRESHOLD
            ):
                last += 1
            rest = one - sum(p_N[:last])
            return [*p_N[:last], rest, *[0 * one] * (times - last - 1)], last + 1 + rest
        a_N = []
        for n in range(times):
            stays = torch.stack([one, *(1 - p for p in p_N[:n])]).prod()
            a_N.append(stays if n == times - 1 else p_N[n] * stays)
        return a_N, torch.stack([(n + 1) * a for n, a in enumerate(a_N)]).sum()

    @staticmethod
    def cost(width: int, config: Config, seq_len: int, held: Held | None = None) -> Cost:
        assert held is not None
        inner, own = held.cost(seq_len), (1 + config.times) * width + 1
        return Cost(
            params=inner.params + own,
            active_params=config.times * inner.active_params + own,
            flops=config.times * (inner.flops + 2 * width),
            state_bytes=config.times * inner.state_bytes,
        )


def _mean(weights: list[Tensor], states: list[Tensor]) -> Tensor:
    total = weights[0] * states[0]
    for weight, state in zip(weights[1:], states[1:], strict=True):
        total = total + weight * state
    return total

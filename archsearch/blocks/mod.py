"""Mixture-of-Depths: only some tokens go through a block. Raposo et al. 2024, arXiv 2404.02258.

    r_t = w x_t,   S = the k tokens of the sequence with the largest r,   k = max(1, int(c T))
    y_t = x_t + g(r_t) f(x_S)_t  for t in S,   y_t = x_t  otherwise                      (eq. 1)

f is what the block holds less its residual; the tokens of S keep their order and their positions.
g is the identity, as in the paper, or a sigmoid.

Choosing the k largest looks ahead. So a second router learns from x_t alone, through which no
gradient flows, whether t is in S (section 3.5); outside training, t goes through f where that
predictor says so. Nothing bounds how many tokens it lets through, so the decode state has room for
all of them.

Shapes: B batch, T time, K chosen tokens of a sequence and N of the batch, D model width, R tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Ctx, Role, State, fan_in_times, zeros
from archsearch.cost import Cost, Held
from archsearch.dims import choice, real
from archsearch.kernels.mod import put, route, take
from archsearch.wrapper import Inner, Wrapper

PREDICTOR_LOSS = 0.01
"""Weight of the predictor's loss. AdamW undoes a scale; a small one leaves clipping alone."""


class MoD(Wrapper, name="mod", kind="wrapper", paper="2404.02258", causal=False, wraps="chain"):
    """Mixture-of-Depths: the tokens that a router chooses go through what it holds."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        capacity: float = real(0.01, 1.0, default=0.125)
        """Share of the tokens that are chosen in training."""
        gate: str = choice("linear", "sigmoid", default="linear")
        """What the output is multiplied with: the router's score, or its sigmoid."""

    roles = {
        "router.weight": Role.readout(None, "model", init=fan_in_times(0.16)),
        "predictor.weight": Role.readout(None, "model", init=zeros),
        "predictor.bias": Role.small(None, init=zeros),
    }

    def __init__(self, width: int, config: Config, inner: Inner) -> None:
        super().__init__(width, config, inner)
        self.config = config
        self.router = nn.Linear(width, 1, bias=False)
        self.predictor = nn.Linear(width, 1)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        if not self.training:
            return self._predicted(x_BTD, ctx)
        score_BT, logit_BT = self._choices(x_BTD)
        chosen = score_BT.topk(capacity(x_BTD.shape[1], self.config.capacity), -1).indices
        index_BK = chosen.sort(-1).values
        target_BT = torch.zeros_like(logit_BT).scatter_(1, index_BK, 1.0)
        loss = F.binary_cross_entropy_with_logits(logit_BT, target_BT)
        ctx.losses.append(PREDICTOR_LOSS * loss)
        return self._through(x_BTD, index_BK, ctx)

    def init_state(self, batch: int, context: int) -> State:
        count_B = torch.zeros(batch, dtype=torch.int64, device=self.router.weight.device)
        return {"count": count_B, **self.inner.init_state(batch, context)}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        enters_B, gate_B = self._choices(x_BD)[1] > 0, self._gate(x_BD)
        count_B, state = state["count"], {k: t for k, t in state.items() if k != "count"}
        y_BD = torch.zeros_like(x_BD)
        # sequences that have met as many tokens go through together
        for seen in count_B[enters_B].unique().tolist():
            rows_R = (enters_B & (count_B == seen)).nonzero()[:, 0]
            own = dataclasses.replace(ctx, embedding=ctx.embedding[rows_R], seen=seen)
            part = {name: tensor[rows_R] for name, tensor in state.items()}
            out_RD, part = self.inner.step(x_BD[rows_R], part, own)
            y_BD[rows_R] = (out_RD - x_BD[rows_R]) * gate_B[rows_R, None].to(x_BD)
            for name, tensor in part.items():
                state[name] = state[name].index_copy(0, rows_R, tensor)
        return y_BD, {"count": count_B + enters_B, **state}

    def _choices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The router's score, without gradient, and the logit of the predictor."""
        return route(x, self.router.weight, self.predictor.weight, self.predictor.bias)

    def _gate(self, x: Tensor) -> Tensor:
        """What the output for x is multiplied with."""
        exact = torch.promote_types(x.dtype, torch.float32)
        score = F.linear(x.to(exact), self.router.weight.to(exact))[..., 0]
        return score.sigmoid() if self.config.gate == "sigmoid" else score

    def _predicted(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """The branch for the tokens that the predictor lets through, filled up with others."""
        enters_BT = self._choices(x_BTD)[1] > 0
        count_B = enters_BT.sum(-1)
        most = int(count_B.max())
        if most == 0:
            return torch.zeros_like(x_BTD)
        index_BK = (~enters_BT).to(torch.int8).argsort(dim=-1, stable=True)[:, :most]
        real_BK = torch.arange(most, device=x_BTD.device) < count_B[:, None]
        return self._through(x_BTD, index_BK, ctx, real_BK)

    def _through(
        self, x_BTD: Tensor, index_BK: Tensor, ctx: Ctx, real_BK: Tensor | None = None
    ) -> Tensor:
        """The chosen tokens go through what the block holds, those of `real_BK`; others are 0."""
        batch, time = x_BTD.shape[:2]
        row_B1 = torch.arange(batch, device=x_BTD.device)[:, None] * time
        row_N = (index_BK + row_B1).flatten()
        if isinstance(ctx.position, Tensor):
            position = ctx.position.expand(batch, -1).gather(1, index_BK)
        else:
            position = index_BK + ctx.position
        embedding_ND, x_ND = (take(t.flatten(0, 1), row_N) for t in (ctx.embedding, x_BTD))
        embedding_BKD, x_BKD = (t.unflatten(0, (batch, -1)) for t in (embedding_ND, x_ND))
        gate_BK = self._gate(x_BKD)
        if real_BK is not None:
            gate_BK = gate_BK * real_BK
        own = dataclasses.replace(ctx, embedding=embedding_BKD, position=position)
        y_ND = self.inner(x_BKD, own).flatten(0, 1)
        y_RD = put(y_ND, x_ND, gate_BK.flatten(), row_N, batch * time)
        return y_RD.view_as(x_BTD)

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        batch, time, _ = x_BTD.shape
        r_BT = (x_BTD * self.router.weight[0]).sum(-1)
        score_BT = r_BT.detach()
        guess_BT = (x_BTD.detach() * self.predictor.weight[0]).sum(-1) + self.predictor.bias
        place_BT = torch.arange(time).expand(batch, time)
        place_BT = ctx.position if isinstance(ctx.position, Tensor) else place_BT + ctx.position
        kept = capacity(time, self.config.capacity)
        chosen = [
            sorted(sorted(range(time), key=lambda t: -float(score_BT[b, t]))[:kept])
            if self.training
            else [t for t in range(time) if guess_BT[b, t] > 0]
            for b in range(batch)
        ]
        if self.training:
            sure_BT = torch.sigmoid(guess_BT)
            inside_BT = torch.tensor([[t in s for t in range(time)] for s in chosen])
            loss = -torch.where(inside_BT, sure_BT, 1 - sure_BT).log().mean()
            ctx.losses.append(PREDICTOR_LOSS * loss)
        rows = []
        for b, s in enumerate(chosen):
            y_TD = torch.zeros_like(x_BTD[b])
            if s:
                embedding, position = ctx.embedding[b : b + 1, s], place_BT[b : b + 1, s]
                own = dataclasses.replace(ctx, embedding=embedding, position=position)
                x_KD, g_K = x_BTD[b, s], r_BT[b, s]
                if self.config.gate == "sigmoid":
                    g_K = 1 / (1 + torch.exp(-g_K))
                f_KD = self.inner.oracle(x_KD[None], own)[0] - x_KD
                y_TD = y_TD.index_put((torch.tensor(s),), g_K[:, None] * f_KD)
            rows.append(y_TD)
        return torch.stack(rows)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int, held: Held | None = None) -> Cost:
        assert held is not None
        kept = capacity(seq_len, config.capacity)
        inner, share, own = held.cost(kept), kept / seq_len, 2 * width + 1
        return Cost(
            params=inner.params + own,
            active_params=round(share * inner.active_params) + own,
            flops=share * (inner.flops + 2 * width) + 4 * width,
            state_bytes=held.cost(seq_len).state_bytes + 8,
        )


def capacity(time: int, share: float) -> int:
    """How many of `time` tokens are chosen."""
    return max(1, int(share * time))

"""Mixture of experts with token-choice routing. Shazeer et al. 2017, arXiv 1701.06538.

    y = sum_{i in S} g_i FFN_i(x) + sum_j FFN'_j(x),   S = the K experts with the largest scores
    FFN(x) = W_down (silu(W_gate x) * W_up x)

The routers, with l = W x in float32:

* noisy_top_k (eq. 3 to 5): h = l + eps * s with s = softplus(x W_noise) + 0.01 and eps ~ N(0, 1);
  g = softmax of the K largest h. Balanced by CV^2(sum of g) + CV^2(sum of P(i in S)), section 4 and
  appendix A. W and W_noise start at 0. The paper weighs both losses by 0.1.
* softmax (Switch, arXiv 2101.03961; Mixtral, 2401.04088): p = softmax(l), g = p over S, divided by
  its sum with `renormalise`. Balanced by E sum_i f_i P_i (2101.03961, eq. 4), f the share of the
  choices that fall on expert i, P its mean p. With f a share, the uniform value is 1 for every K
  (DeepSeekMoE, 2401.06066, eq. 12 to 14); transformers has K times as much.
* sigmoid (DeepSeek-V3, 2412.19437, eq. 12 to 16): S by sigmoid(l) + b, g = sigmoid(l) over S
  divided by its sum. Balanced by b alone, which no output's gradient reaches: the published rule is
  b_i -= u sign(load_i - mean load) after each step. Here that sign times `aux` is the gradient of
  b, from a loss whose value is 0: aux sum_i (b_i - stop(b_i)) sign(load_i - mean load). So b is a
  parameter like any other, which the optimizer moves and a checkpoint keeps: under SGD u is the
  learning rate times `aux`, under Adam about the learning rate. Expert groups, which place experts
  on machines, and the constant scale of g are left out.

With K = 1 dividing by the sum would make g a constant 1 without a gradient for the router, so g is
then the probability among all experts (or the sigmoid), as in Switch and BlackMamba (2402.01771).

Ties go to the expert with the lower number. Noisy top-k starts with nothing but ties: without noise
every token starts at experts 0 to K - 1. Train it with `ctx.noise`.

No token is dropped: tokens are sorted by expert, and each expert multiplies its own. Weights are
laid out as in transformers: `experts.gate_up_proj` (E, 2F, D) gate first, `experts.down_proj`
(E, D, F). The J shared experts are one feed-forward of width J F, which is the same function.

Shapes: B batch, T time, D model width, F hidden width of an expert, E experts, K experts of a
token, N tokens (B T), M choices (N K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, require, require_whole, zeros
from archsearch.cost import Cost
from archsearch.dims import choice, real, whole

LEAST_STD = 1e-2
"""Smallest standard deviation of the noise of noisy top-k."""


def draw_expert(w: Tensor, g: Generator) -> Tensor:
    """Draw stacked matrices (E, out, in) from N(0, 1 / in)."""
    return w.normal_(0.0, w.shape[-1] ** -0.5, generator=g)


class MoE(Block, name="moe", kind="ffn", paper="1701.06538"):
    """Mixture of SwiGLU experts, of which each token uses a few."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        experts: int = whole(1, 256, default=8)
        """Experts to choose from."""
        top_k: int = whole(1, 64, default=2)
        """Experts that a token uses."""
        mult: float = real(0.125, 4.0, default=1.0, step=0.125, fractions=True)
        """Hidden width of one expert over model width; below 1 for fine-grained experts."""
        router: str = choice("softmax", "sigmoid", "noisy_top_k", default="softmax")
        """Scores and balance: softmax (Mixtral), sigmoid (DeepSeek-V3), noisy_top_k (2017)."""
        renormalise: bool = choice(True, False, default=True, when=("router", "softmax"))
        """Whether the gates of a token sum to 1; never where it uses one expert."""
        shared: int = whole(0, 8, default=0)
        """Experts that every token uses besides, without a gate."""
        aux: float = real(0.0, 1.0, default=0.01)
        """Weight of the balance loss; with sigmoid the scale of the gradient of the bias."""
        z_loss: float = real(0.0, 1.0, default=0.001)
        """Weight of the mean squared logsumexp of the router's logits (2202.08906)."""

    roles = {
        "gate.weight": Role.readout(None, "model"),
        "noisy_gate.weight": Role.readout(None, "model", init=zeros),
        "noise.weight": Role.readout(None, "model", init=zeros),
        "bias": Role.small(None, init=zeros),
        "experts.gate_up_proj": Role.hidden(None, "hidden", "model", init=draw_expert),
        "experts.down_proj": Role.hidden(None, "model", "hidden", init=draw_expert),
        "shared_experts.gate_proj.weight": Role.hidden("hidden", "model"),
        "shared_experts.up_proj.weight": Role.hidden("hidden", "model"),
        "shared_experts.down_proj.weight": Role.hidden("model", "hidden"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config, self.normed = config, _normed(config)
        hidden = _hidden(width, config)
        if config.router == "noisy_top_k":
            self.noisy_gate = nn.Linear(width, config.experts, bias=False)
            self.noise = nn.Linear(width, config.experts, bias=False)
        else:
            self.gate = nn.Linear(width, config.experts, bias=False)
        if config.router == "sigmoid":
            self.bias = nn.Parameter(torch.empty(config.experts))
        self.experts = Experts(width, hidden, config.experts)
        if config.shared:
            self.shared_experts = SharedExperts(width, config.shared * hidden)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        x_ND, config = x_BTD.flatten(0, 1), self.config
        logits_NE = clean_NE = self._logits(x_ND)
        std_NE = torch.zeros_like(clean_NE)
        if self.training and config.router == "noisy_top_k":
            std_NE = F.softplus(_fp32(x_ND) @ _fp32(self.noise.weight).T) + LEAST_STD
            if ctx.noise is not None:
                eps_NE = torch.empty_like(clean_NE, device=ctx.noise.device)
                eps_NE = eps_NE.normal_(generator=ctx.noise).to(clean_NE.device)
                logits_NE = torch.addcmul(clean_NE, eps_NE, std_NE)
        chosen_NK, gate_NK = self._choose(logits_NE)
        if self.training and config.aux:
            if config.router == "noisy_top_k":
                gates_M, chosen_M = gate_NK.flatten(), chosen_NK.flatten()
                importance_E = gates_M.new_zeros(config.experts).index_add(0, chosen_M, gates_M)
                load_NE = load_probability(clean_NE, logits_NE, std_NE, config.top_k)
                balance = squared_variation(importance_E) + squared_variation(load_NE.sum(0))
            elif config.router == "softmax":
                balance = switch_loss(logits_NE.softmax(-1), chosen_NK)
            else:
                balance = bias_loss(self.bias, chosen_NK)
            ctx.losses.append(config.aux * balance)
        if self.training and config.z_loss:
            ctx.losses.append(config.z_loss * clean_NE.logsumexp(-1).square().mean())
        return self._mix(x_BTD, chosen_NK, gate_NK)

    def init_state(self, batch: int, context: int) -> State:
        return {}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        return self._mix(x_BD, *self._choose(self._logits(x_BD))), state

    def _logits(self, x_ND: Tensor) -> Tensor:
        """The router's logits without noise, at least in float32."""
        gate = self.noisy_gate if self.config.router == "noisy_top_k" else self.gate
        return _fp32(x_ND) @ _fp32(gate.weight).T

    def _choose(self, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token, best first, and their gates: chosen_NK, gate_NK."""
        sigmoid, scores_NE = self.config.router == "sigmoid", logits_NE.detach()
        if sigmoid:
            scores_NE = scores_NE.sigmoid() + self.bias.detach()
        order_NE = scores_NE.sort(dim=-1, descending=True, stable=True).indices
        chosen_NK = order_NE[:, : self.config.top_k]
        # gates are formed from logarithms: no sum of tiny numbers is ever divided by
        log_NE = F.logsigmoid(logits_NE) if sigmoid else logits_NE
        if self.normed:
            return chosen_NK, log_NE.gather(1, chosen_NK).softmax(-1)
        gate_NE = log_NE.exp() if sigmoid else log_NE.softmax(-1)
        return chosen_NK, gate_NE.gather(1, chosen_NK)

    def _mix(self, x: Tensor, chosen_NK: Tensor, gate_NK: Tensor) -> Tensor:
        """The sum of all experts of each token, in the shape of x: (B, T, D) or (B, D)."""
        y = self.experts(x, chosen_NK, gate_NK.to(x.dtype))
        return y + self.shared_experts(x) if self.config.shared else y

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        config, x_ND = self.config, x_BTD.reshape(-1, x_BTD.shape[-1])
        E, K, router = config.experts, config.top_k, config.router
        weight = self.noisy_gate.weight if router == "noisy_top_k" else self.gate.weight
        clean_NE = l_NE = x_ND @ weight.T
        if self.training and router == "noisy_top_k":
            std_NE = torch.log1p(torch.exp(x_ND @ self.noise.weight.T)) + 1e-2
            if ctx.noise is not None:
                eps_NE = torch.randn(l_NE.shape, generator=ctx.noise, dtype=l_NE.dtype)
                l_NE = clean_NE + eps_NE * std_NE
        p_NE = torch.exp(l_NE) / torch.exp(l_NE).sum(1, keepdim=True)
        if router == "sigmoid":
            p_NE = 1 / (1 + torch.exp(-l_NE))
        by_NE = p_NE + self.bias if router == "sigmoid" else l_NE
        own_NE1, other_N1E = by_NE[:, :, None], by_NE[:, None]
        lower_EE = torch.ones(E, E).tril(-1).bool()
        ahead_NEE = (other_N1E > own_NE1) | ((other_N1E == own_NE1) & lower_EE)
        in_NE = ahead_NEE.sum(2) < K
        g_NE = torch.where(in_NE, p_NE, 0.0)
        if K > 1 and (config.renormalise or router != "softmax"):
            g_NE = g_NE / g_NE.sum(1, keepdim=True)
        if self.training:
            load_E = in_NE.sum(0)
            if router == "noisy_top_k":
                loss = _cv2(g_NE.sum(0)) + _cv2(_expected_load(clean_NE, l_NE, std_NE, K))
            elif router == "softmax":
                loss = E * (load_E.to(x_ND.dtype) / load_E.sum() * p_NE.mean(0)).sum()
            else:
                over_E = torch.sign(E * load_E - load_E.sum())
                loss = ((self.bias - self.bias.detach()) * over_E).sum()
            z_N = torch.log(torch.exp(clean_NE).sum(1))
            ctx.losses.extend((config.aux * loss, config.z_loss * (z_N**2).mean()))
        y_ND = torch.zeros_like(x_ND)
        matrices = zip(self.experts.gate_up_proj, self.experts.down_proj, strict=True)
        for i, (gate_up_FD, down_DF) in enumerate(matrices):
            gate_FD, up_FD = gate_up_FD.chunk(2)
            y_ND = y_ND + g_NE[:, i : i + 1] * _swiglu(x_ND, gate_FD, up_FD, down_DF)
        if config.shared:
            s, J = self.shared_experts, config.shared
            parts = s.gate_proj.weight.chunk(J), s.up_proj.weight.chunk(J)
            downs = s.down_proj.weight.chunk(J, 1)
            for gate_FD, up_FD, down_DF in zip(*parts, downs, strict=True):
                y_ND = y_ND + _swiglu(x_ND, gate_FD, up_FD, down_DF)
        return y_ND.reshape(x_BTD.shape)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        """FLOPs are those of training: noisy top-k computes W_noise only there."""
        expert, E = 3 * width * _hidden(width, config), config.experts
        router = width * E * (2 if config.router == "noisy_top_k" else 1)
        bias = E if config.router == "sigmoid" else 0
        active = router + (config.top_k + config.shared) * expert
        return Cost(
            params=router + bias + (E + config.shared) * expert,
            active_params=bias + active,
            flops=2 * active,
            state_bytes=0,
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        info, E = MoE.info, config.experts
        require(info, "top_k", config.top_k, range(1, E + 1), f"is more than the {E} experts")
        if config.router == "noisy_top_k":
            why = f"leaves nothing to choose among {E} experts, which noisy_top_k needs"
            require(info, "top_k", config.top_k, range(1, E), why)
        require_whole(info, "mult", config.mult, width)


class Experts(nn.Module):
    """E SwiGLU feed-forwards whose matrices are stacked."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, hidden))

    def forward(self, x: Tensor, chosen_NK: Tensor, gate_NK: Tensor) -> Tensor:
        """sum_k gate_k FFN_{chosen_k}(x), in the shape of x."""
        x_ND = x.flatten(0, -2)
        chosen_M, order_M = chosen_NK.flatten().sort(stable=True)
        token_M = order_M.div(chosen_NK.shape[1], rounding_mode="floor")
        counts = torch.bincount(chosen_M, minlength=len(self.down_proj)).tolist()
        parts = x_ND.index_select(0, token_M).split(counts)
        # unbind: indexing in the loop would make a gradient of full size for every expert
        matrices = zip(self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True)
        outputs = []
        for x_CD, (gate_up_FD, down_DF) in zip(parts, matrices, strict=True):
            if len(x_CD):
                gate_CF, up_CF = F.linear(x_CD, gate_up_FD).chunk(2, -1)
                outputs.append(F.linear(F.silu(gate_CF) * up_CF, down_DF))
        gate_M = gate_NK.flatten().index_select(0, order_M)
        y_MD = torch.cat(outputs) * gate_M[:, None]
        return torch.zeros_like(x_ND).index_add(0, token_M, y_MD).view_as(x)


class SharedExperts(nn.Module):
    """The SwiGLU feed-forward of all tokens."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """W_down (silu(W_gate x) * W_up x)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def load_probability(clean_NE: Tensor, noisy_NE: Tensor, std_NE: Tensor, top_k: int) -> Tensor:
    """The probability that an expert is chosen when its own noise alone is drawn again.

    1701.06538, eq. 8 and 9: Phi((clean_i - the K-th largest of the other noisy logits) / std_i).
    """
    largest = noisy_NE.sort(dim=-1, descending=True, stable=True)
    into_N1, out_N1 = largest.values[:, top_k - 1, None], largest.values[:, top_k, None]
    is_in_NE = torch.zeros_like(noisy_NE, dtype=torch.bool)
    is_in_NE.scatter_(1, largest.indices[:, :top_k], True)
    z_NE = (clean_NE - torch.where(is_in_NE, out_N1, into_N1)) / std_NE
    return (1 + torch.erf(z_NE * math.sqrt(0.5))) / 2


def squared_variation(x_E: Tensor) -> Tensor:
    """The squared coefficient of variation: variance over squared mean."""
    return x_E.var(correction=0) / x_E.mean().square().clamp(min=1e-30)


def switch_loss(p_NE: Tensor, chosen_NK: Tensor) -> Tensor:
    """E sum_i f_i P_i: 1 where choices or probabilities are uniform, E where one expert has all."""
    experts = p_NE.shape[1]
    counts_E = torch.bincount(chosen_NK.flatten(), minlength=experts)
    return experts / chosen_NK.numel() * (counts_E * p_NE.mean(0)).sum()


def bias_loss(bias_E: Tensor, chosen_NK: Tensor) -> Tensor:
    """0, with a gradient for the bias of +1 at experts above the mean load and -1 below."""
    counts_E = torch.bincount(chosen_NK.flatten(), minlength=len(bias_E))
    over_E = (counts_E * len(bias_E) - chosen_NK.numel()).sign()
    return ((bias_E - bias_E.detach()) * over_E).sum()


def _fp32(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normed(config: MoE.Config) -> bool:
    """Whether the gates of a token sum to 1."""
    return config.top_k > 1 and (config.renormalise or config.router != "softmax")


def _hidden(width: int, config: MoE.Config) -> int:
    """Hidden width of one expert."""
    return round(config.mult * width)


def _swiglu(x_ND: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """One expert, for the oracle."""
    h_NF = x_ND @ gate_FD.T
    return (h_NF / (1 + torch.exp(-h_NF)) * (x_ND @ up_FD.T)) @ down_DF.T


def _cv2(x_E: Tensor) -> Tensor:
    """Variance over squared mean, for the oracle."""
    return ((x_E - x_E.mean()) ** 2).mean() / x_E.mean() ** 2


def _expected_load(clean_NE: Tensor, noisy_NE: Tensor, std_NE: Tensor, top_k: int) -> Tensor:
    """The sum over tokens of P(i in S), expert by expert, for the oracle."""
    loads = []
    for i in range(clean_NE.shape[1]):
        others = torch.cat((noisy_NE[:, :i], noisy_NE[:, i + 1 :]), 1).topk(top_k)
        z_N = (clean_NE[:, i] - others.values[:, -1]) / std_NE[:, i]
        loads.append((0.5 + 0.5 * torch.erf(z_N / 2**0.5)).sum())
    return torch.stack(loads)

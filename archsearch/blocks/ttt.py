"""TTT-Linear and TTT-MLP: the state is a model in training. Sun et al. 2024, arXiv 2407.04620.

    q, k, v, g, l = W_in x             q, k turned by RoPE at the token's place in its mini-batch
    linear  f(k; W) = k W1 + b1        mlp  f(k; W) = gelu(k W1 + b1) W2 + b2, hidden width 4K
    grad_j = d/dW 1/2 |LN(f(k_j; W)) - (v_j - k_j)|^2 at the W that the mini-batch starts from
    W_i = W - tok_i sum_(j <= i) lr_j grad_j;   lr_j = base sigmoid(l_j + b) / K,
                                                tok_i = max(0, 1 / i + delta_i), i = 1 .. M
    y_i = q_i + LN(f(q_i; W_i));   o = W_out (LayerNorm(y) * gelu(g))

The next mini-batch starts from W_M. Every head has its own f and LN; base is 1 (linear) or 0.1
(mlp). With `conv`, q and k are two causal depthwise convolutions of one projection, as in the
Mamba backbone of the paper (conv 4 and a gate); without, it is that of its Transformer.

`forward` is the dual form (section 2.5): the gradients of a mini-batch are outer products, so that
the outputs are masked matrix products. All that needs no weights of an earlier mini-batch is done
for the whole sequence at once; the loop over mini-batches has its backward pass written by hand.

Shapes: B batch, T time, D model width, H heads, K head width, E = K + 1 (a column of ones beside
keys and queries carries the bias), F hidden width of the inner MLP, I mini-batches, M tokens in
one, N = B H, C rows of W_in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, divisors, normal, ones, require, zeros
from archsearch.cost import Cost
from archsearch.dims import choice, real, whole
from archsearch.kernels.precision import in_full
from archsearch.kernels.ttt import (
    EPS,
    MLPLoop,
    eta_of,
    fit_linear,
    gelu,
    gelu_backward,
    offset_of,
    read,
    weigh,
    with_one,
)
from archsearch.layers.initialisers import draw_conv

THETA = 10_000.0
EXPAND = 4
"""Hidden width of the inner MLP over the head width."""
BASE = {"linear": 1.0, "mlp": 0.1}
"""The published inner learning rates."""


class TTT(Block, name="ttt", kind="mixer", paper="2407.04620"):
    """Test-time training: a linear model or MLP per head that learns the sequence as it reads."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        inner: str = choice("linear", "mlp", default="linear")
        """The model that each head trains."""
        head_dim: int = whole(4, 256, default=32)
        """Channels of a head; the state grows linearly with it, at a fixed width."""
        mini_batch: int = whole(1, 256, default=16)
        """Tokens whose gradients are taken at the same weights."""
        lr: float = real(0.1, 10.0, default=1.0, log=True)
        """Inner learning rate over the published one (1 for linear, 0.1 for mlp)."""
        pos: str = choice("rope", "none", default="rope")
        """Position encoding, counted within the mini-batch."""
        conv: int = whole(0, 16, default=0)
        """Length of the causal convolutions that tell q from k; 0 gives each its own projection."""
        gate: bool = choice(False, True, default=False)
        """Whether a GELU gate multiplies the output."""

    spans = ("mini_batch",)
    roles = {
        "in_proj.weight": Role.hidden("inner", "model"),
        "conv.weight": Role.vector("inner", None, None, init=draw_conv),
        "conv.bias": Role.vector("inner", init=zeros),
        "lr_bias": Role.vector("heads", init=zeros),
        "delta": Role.small(None, init=zeros),
        "W1": Role.vector("heads", None, None, init=normal(0.02)),
        "b1": Role.vector("heads", None, init=zeros),
        "W2": Role.vector("heads", None, None, init=normal(0.02)),
        "b2": Role.vector("heads", None, init=zeros),
        "gain": Role.vector("heads", None, init=ones),
        "bias": Role.vector("heads", None, init=zeros),
        "norm.weight": Role.vector("inner", init=ones),
        "norm.bias": Role.vector("inner", init=zeros),
        "out_proj.weight": Role.hidden("model", "inner"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.heads, K = width // config.head_dim, config.head_dim
        hidden = EXPAND * K if config.inner == "mlp" else K
        self.base = config.lr * BASE[config.inner] / K
        self.split = [_shared(config) * width, width, config.gate * width, self.heads]
        self.in_proj = nn.Linear(width, sum(self.split), bias=False)
        if config.conv:
            # channel c of the projection becomes channel 2c (q) and 2c + 1 (k)
            self.conv = nn.Conv1d(width, 2 * width, config.conv, groups=width)
        self.lr_bias = nn.Parameter(torch.empty(self.heads))
        self.delta = nn.Parameter(torch.empty(config.mini_batch))
        self.W1 = nn.Parameter(torch.empty(self.heads, K, hidden))
        self.b1 = nn.Parameter(torch.empty(self.heads, hidden))
        if config.inner == "mlp":
            self.W2 = nn.Parameter(torch.empty(self.heads, hidden, K))
            self.b2 = nn.Parameter(torch.empty(self.heads, K))
        self.gain = nn.Parameter(torch.empty(self.heads, K))
        self.bias = nn.Parameter(torch.empty(self.heads, K))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        batch, time, width = x_BTD.shape
        M = min(self.config.mini_batch, time)
        qk_BTC, v_BTD, g_BTD, lr_BTH = self.in_proj(x_BTD).split(self.split, -1)
        qk_BTC = self._convolved(qk_BTC)

        def cut(x_BTC: Tensor, *sizes: int) -> Tensor:
            """Mini-batches (*sizes[:-1], I, B, H, M, last size); no token sees the padding."""
            x = F.pad(x_BTC, (0, 0, 0, -time % M)) if time % M else x_BTC
            x = x.unflatten(1, (-1, M)).unflatten(-1, (*sizes[:-1], self.heads, sizes[-1]))
            x = x.to(self._dtype(x))
            return x.permute(*range(3, x.dim() - 2), 1, 0, -2, 2, -1).contiguous()

        place_M = torch.arange(M, device=x_BTD.device)
        q, k = self._turned(cut(qk_BTC, 2, self.config.head_dim), place_M).flatten(2, 3)
        v = cut(v_BTD, self.config.head_dim)
        lr_INM1 = self._rates(cut(lr_BTH, 1)).flatten(1, 2)
        gain_H1K, bias_H1K = (x.to(v.dtype)[:, None] for x in (self.gain, self.bias))
        offset = offset_of(gain_H1K, bias_H1K, k.view_as(v), v).flatten(1, 2)
        square_N1K = gain_H1K.square().repeat(batch, 1, 1)
        tok_M = self._pace(v.dtype)[:M]
        inner = self._read_mlp if self.config.inner == "mlp" else self._read_linear
        out_INMK = inner(q, k, lr_INM1, tok_M, offset, square_N1K)
        out = F.layer_norm(out_INMK, out_INMK.shape[-1:], eps=EPS).view_as(v)
        y = q.view_as(v) + torch.addcmul(bias_H1K, out, gain_H1K)
        y_BTD = y.permute(1, 0, 3, 2, 4).reshape(batch, -1, width)[:, :time]
        return self._finish(y_BTD, g_BTD)

    @in_full
    def _read_linear(
        self, q: Tensor, k: Tensor, lr: Tensor, tok_M: Tensor, offset: Tensor, square: Tensor
    ) -> Tensor:
        """f(q_i; W_i) of the linear model, for all mini-batches."""
        start = self._start(self.W1, self.b1, q.shape[1])
        eta = eta_of(tok_M, lr)
        W, G = fit_linear(k, tok_M[-1] * lr, offset, square, start)
        return read(with_one(q), W, weigh(q, k, eta), G)

    @in_full
    def _read_mlp(
        self, q: Tensor, k: Tensor, lr: Tensor, tok_M: Tensor, offset: Tensor, square: Tensor
    ) -> Tensor:
        """f(q_i; W_i) of the inner MLP, for all mini-batches."""
        starts = (self._start(w, b, q.shape[1]) for w, b in self._layers())
        eta, given = eta_of(tok_M, lr), (with_one(k), tok_M[-1] * lr, offset, square, *starts)
        W1, G1, W2, G2, A = MLPLoop.apply(*given)  # type: ignore[no-untyped-call]
        a = with_one(gelu(read(with_one(q), W1, weigh(q, k, eta), G1)))
        return read(a, W2, (a @ A.mT).mul(eta), G2)

    def init_state(self, batch: int, context: int) -> State:
        state: State = {}
        for i, (w, b) in enumerate(self._layers(), 1):
            weights = self._start(w, b, batch * self.heads).unflatten(0, (batch, -1)).clone()
            state |= {f"weights{i}": weights, f"gradient{i}": torch.zeros_like(weights)}
        if self.config.conv:
            state["conv"] = self.W1.new_zeros(batch, self.width, self.config.conv - 1)
        return state

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        place, state = ctx.seen % self.config.mini_batch, dict(state)
        qk_BC, v_BD, g_BD, lr_BH = self.in_proj(x_BD).split(self.split, -1)
        if self.config.conv:
            seen_BDJ = torch.cat((state["conv"], qk_BC[..., None]), -1)
            state["conv"] = seen_BDJ[..., 1:]
            qk_BC = self.conv(seen_BDJ).unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)
        qk = qk_BC.to(self._dtype(x_BD)).view(len(x_BD), 2, self.heads, 1, -1)
        q, k = self._turned(qk, torch.tensor([place], device=x_BD.device)).unbind(1)
        v = v_BD.to(q.dtype).view_as(k)
        lr = self._rates(lr_BH[..., None, None])
        tok, gain, bias = self._pace(q.dtype)[place], self.gain[:, None], self.bias[:, None]
        inputs, z = [], k
        layers = len(self._layers())
        for i in range(1, layers + 1):
            inputs.append(z)
            z = with_one(gelu(z) if i > 1 else z) @ state[f"weights{i}"]
        norm, _, scale = torch.native_layer_norm(z, z.shape[-1:], None, None, EPS)
        g = gain * (gain * norm + bias - (v - k))
        g = scale * (g - g.mean(-1, True) - norm * (g * norm).mean(-1, True))
        z = q
        for i in range(layers, 0, -1):
            a = with_one(gelu(inputs[i - 1]) if i > 1 else k)
            state[f"gradient{i}"] = torch.addcmul(state[f"gradient{i}"], a.mT, lr * g)
            if i > 1:
                g = gelu_backward(g @ state[f"weights{i}"][..., :-1, :].mT, inputs[i - 1])
        for i in range(1, layers + 1):
            now = state[f"weights{i}"] - tok * state[f"gradient{i}"]
            z = with_one(gelu(z) if i > 1 else z) @ now
            if place == self.config.mini_batch - 1:
                state[f"weights{i}"] = now
                state[f"gradient{i}"] = torch.zeros_like(now)
        y = q + F.layer_norm(z, z.shape[-1:], eps=EPS) * gain + bias
        return self._finish(y.flatten(1), g_BD), state

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        first = (self.W1, self.b1)
        return [first, (self.W2, self.b2)] if self.config.inner == "mlp" else [first]

    def _dtype(self, x: Tensor) -> torch.dtype:
        """What the inner model is trained in."""
        return torch.promote_types(x.dtype, torch.float32)

    def _start(self, weight: Tensor, bias: Tensor, rows: int) -> Tensor:
        """The weights before the first token, the bias below them, for N = `rows`."""
        start = torch.cat((weight, bias[:, None]), 1).to(self._dtype(weight))
        return start.repeat(rows // self.heads, 1, 1)

    def _convolved(self, qk_BTC: Tensor) -> Tensor:
        """Queries beside keys: what the projection gives already where there is no convolution."""
        if not self.config.conv:
            return qk_BTC
        qk_BCT = self.conv(F.pad(qk_BTC.mT, (self.config.conv - 1, 0)))
        return qk_BCT.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2).mT

    def _turned(self, x: Tensor, place_M: Tensor) -> Tensor:
        """RoPE: the channels 2i and 2i + 1 turned by the angle place * theta^(-2i / K)."""
        if self.config.pos == "none":
            return x
        K = x.shape[-1]
        rate = THETA ** (-torch.arange(0, K, 2, device=x.device, dtype=x.dtype) / K)
        angle = place_M.to(rate)[:, None] * rate
        turn = torch.polar(torch.ones_like(angle), angle)
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    def _rates(self, logit: Tensor) -> Tensor:
        """lr_j of logits (..., H, M, 1)."""
        dtype = self._dtype(logit)
        return self.base * torch.sigmoid(logit.to(dtype) + self.lr_bias.to(dtype)[:, None, None])

    def _pace(self, dtype: torch.dtype) -> Tensor:
        """tok_i of every place in a mini-batch."""
        count = torch.arange(1, len(self.delta) + 1, device=self.delta.device)
        return (1 / count.to(dtype) + self.delta).clamp(min=0)

    def _finish(self, y: Tensor, gate: Tensor) -> Tensor:
        y = F.layer_norm(
            y, (self.width,), self.norm.weight.to(y.dtype), self.norm.bias.to(y.dtype), EPS
        )
        if self.config.gate:
            y = y * gelu(gate)
        return self.out_proj(y.to(self.out_proj.weight.dtype))

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        H, K, (rows, D) = self.heads, self.config.head_dim, self.in_proj.weight.shape
        mlp, M = self.config.inner == "mlp", self.config.mini_batch

        def gelu(z: Tensor) -> Tensor:
            return z / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

        def f(x_BHK: Tensor, W: list[Tensor]) -> Tensor:
            z = torch.einsum("bhk,bhkf->bhf", x_BHK, W[0]) + W[1]
            if mlp:
                z = torch.einsum("bhf,bhfk->bhk", gelu(z), W[2]) + W[3]
            centred = z - z.mean(-1, keepdim=True)
            normed = centred / ((centred**2).mean(-1, keepdim=True) + 1e-6).sqrt()
            return normed * self.gain + self.bias

        names = ("W1", "b1", "W2", "b2")[: 4 if mlp else 2]
        W = [self.get_parameter(n).expand(len(x_BTD), *self.get_parameter(n).shape) for n in names]
        u_BTC, outputs = x_BTD @ self.in_proj.weight.T, []
        v_at = D if self.config.conv else 2 * D
        for t in range(x_BTD.shape[1]):
            place, u_BC = t % M, u_BTC[:, t]
            if place == 0:
                total = [torch.zeros_like(w) for w in W]
            q_BD, k_BD = u_BC[:, :D], u_BC[:, D : 2 * D]
            if self.config.conv:
                lags = range(min(self.config.conv, t + 1))
                q_BD, k_BD = (
                    sum(self.conv.weight[s::2, 0, -1 - i] * u_BTC[:, t - i, :D] for i in lags)
                    + self.conv.get_parameter("bias")[s::2]
                    for s in (0, 1)
                )
            q, k = (x.reshape(-1, H, K) for x in (q_BD, k_BD))
            if self.config.pos == "rope":
                q, k = _turned_pairwise(q, place), _turned_pairwise(k, place)
            v = u_BC[:, v_at : v_at + D].reshape(-1, H, K)
            lr_BH = self.base / (1 + torch.exp(-u_BC[:, rows - H :] - self.lr_bias))
            loss_BH = ((f(k, W) - (v - k)) ** 2).sum(-1) / 2
            grads = torch.autograd.grad(loss_BH.sum(), W, create_graph=True)
            total = [
                s + lr_BH.reshape(-1, H, *[1] * (g.dim() - 2)) * g
                for s, g in zip(total, grads, strict=True)
            ]
            tok = torch.relu(1 / (place + 1) + self.delta[place])
            now = [w - tok * s for w, s in zip(W, total, strict=True)]
            y_BD = (q + f(q, now)).reshape(-1, D)
            centred = y_BD - y_BD.mean(-1, keepdim=True)
            y_BD = centred / ((centred**2).mean(-1, keepdim=True) + 1e-6).sqrt()
            y_BD = y_BD * self.norm.weight + self.norm.bias
            if self.config.gate:
                y_BD = y_BD * gelu(u_BC[:, v_at + D : v_at + 2 * D])
            outputs.append(y_BD @ self.out_proj.weight.T)
            if place == M - 1:
                W = now
        return torch.stack(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        K, H, D = config.head_dim, width // config.head_dim, width
        matrices = D * ((_shared(config) + 2 + config.gate) * D + H)
        conv = 2 * config.conv * D
        hidden = EXPAND * K if config.inner == "mlp" else K
        inner = (K + 1) * hidden + ((hidden + 1) * K if config.inner == "mlp" else 0)
        M = min(config.mini_batch, seq_len)
        count = math.ceil(seq_len / M)
        # fit, read, and for all mini-batches but the last update; then queries by keys, eta by G
        flops = 2 * inner * (3 - 1 / count) + 2 * M * (K + hidden)
        if config.inner == "mlp":
            flops += 2 * hidden * K + 2 * M * (hidden + 1 + K)
        params = matrices + conv + 2 * D * bool(config.conv) + H + config.mini_batch
        params += H * (inner + 2 * K) + 2 * D
        return Cost(
            params=params,
            active_params=params,
            flops=2 * (matrices + conv) + H * flops * count * M / seq_len,
            state_bytes=4 * (2 * H * inner + max(config.conv - 1, 0) * D),
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        legal, why = divisors(width), f"does not divide the width {width}"
        if config.pos == "rope":
            legal = [k for k in legal if k % 2 == 0]
            why = f"is odd (for RoPE), or does not divide the width {width}"
        require(TTT.info, "head_dim", config.head_dim, legal, why)


def _shared(config: TTT.Config) -> int:
    """Projections that q and k come from."""
    return 1 if config.conv else 2


def _turned_pairwise(x_BHK: Tensor, place: int) -> Tensor:
    """RoPE of one token, a pair of channels after the other; for the oracle alone."""
    turned, K = [], x_BHK.shape[-1]
    for i in range(K // 2):
        angle = place * 10_000 ** (-2 * i / K)
        a, b = x_BHK[..., 2 * i], x_BHK[..., 2 * i + 1]
        turned.append(a * math.cos(angle) - b * math.sin(angle))
        turned.append(a * math.sin(angle) + b * math.cos(angle))
    return torch.stack(turned, -1)

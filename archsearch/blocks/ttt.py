"""TTT-Linear and TTT-MLP: the state is a model trained on the sequence. Sun et al. 2024, 2407.04620.

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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, divisors, normal, ones, require, zeros
from archsearch.blocks.mamba2 import draw_conv
from archsearch.cost import Cost
from archsearch.dims import choice, real, whole

EPS = 1e-6
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
        tail = -time % M
        qk_BTC, v_BTD, g_BTD, lr_BTH = self.in_proj(x_BTD).split(self.split, -1)
        qk_BTC = self._convolved(qk_BTC)

        def cut(x_BTC: Tensor, *sizes: int) -> Tensor:
            """Whole mini-batches: (*sizes[:-1], I, B, H, M, last size)."""
            x = F.pad(x_BTC, (0, 0, 0, tail)).to(self._dtype(x_BTC))
            x = x.unflatten(1, (-1, M)).unflatten(-1, (*sizes[:-1], self.heads, sizes[-1]))
            return x.permute(*range(3, x.dim() - 2), 1, 0, -2, 2, -1).contiguous()

        q, k = self._turned(cut(qk_BTC, 2, self.config.head_dim), torch.arange(M)).flatten(2, 3)
        v = cut(v_BTD, self.config.head_dim)
        lr_INM1 = self._rates(cut(lr_BTH, 1)).flatten(1, 2)
        if tail:
            lr_INM1 = lr_INM1 * (torch.arange(time + tail) < time).view(-1, 1, M, 1).to(lr_INM1)
        gain_H1K, bias_H1K = (x.to(v.dtype)[:, None] for x in (self.gain, self.bias))
        # the gradient of the loss by the normalised output x is gain (gain x + bias - (v - k))
        offset = (gain_H1K * (bias_H1K + k.view_as(v) - v)).flatten(1, 2)
        square_N1K = gain_H1K.square().repeat(batch, 1, 1)
        tok_M = self._pace(v.dtype)[:M]
        read = self._read_mlp if self.config.inner == "mlp" else self._read_linear
        out_INMK = read(q, k, lr_INM1, tok_M, offset, square_N1K)
        out = F.layer_norm(out_INMK, out_INMK.shape[-1:], eps=EPS).view_as(v)
        y = q.view_as(v) + torch.addcmul(bias_H1K, out, gain_H1K)
        y_BTD = y.permute(1, 0, 3, 2, 4).reshape(batch, -1, width)[:, :time]
        return self._finish(y_BTD, g_BTD)

    def _read_linear(
        self, q: Tensor, k: Tensor, lr: Tensor, tok_M: Tensor, offset: Tensor, square: Tensor
    ) -> Tensor:
        """f(q_i; W_i) of the linear model, for all mini-batches."""
        key = F.pad(k, (0, 1), value=1.0)
        eta_INMM = -tok_M[:, None].expand(-1, len(tok_M)).tril() * lr.mT
        seen = torch.cat((q, torch.ones_like(q[..., :1]), (q @ k.mT + 1) * eta_INMM), -1)
        start = self._start(self.W1, self.b1, q.shape[1])
        return seen @ LinearLoop.apply(key, key * (tok_M[-1] * lr), offset, square, start)

    def _read_mlp(
        self, q: Tensor, k: Tensor, lr: Tensor, tok_M: Tensor, offset: Tensor, square: Tensor
    ) -> Tensor:
        """f(q_i; W_i) of the inner MLP, for all mini-batches."""
        key, last = F.pad(k, (0, 1), value=1.0), tok_M[-1] * lr
        eta_INMM = -tok_M[:, None].expand(-1, len(tok_M)).tril() * lr.mT
        one = torch.ones_like(q[..., :1])
        starts = (
            self._start(self.W1, self.b1, q.shape[1]),
            self._start(self.W2, self.b2, q.shape[1]),
        )
        first, second, hidden = MLPLoop.apply(key, key * last, last, offset, square, *starts)
        seen = torch.cat((q, one, (q @ k.mT + 1) * eta_INMM), -1)
        a = F.gelu(seen @ first, approximate="tanh")
        return torch.cat((a, one, (a @ hidden[..., :-1].mT + 1) * eta_INMM), -1) @ second

    def init_state(self, batch: int, context: int) -> State:
        state = {}
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
        q, k = self._turned(qk, torch.tensor([place])).unbind(1)
        v = v_BD.to(q.dtype).view_as(k)
        lr = self._rates(lr_BH[..., None, None])
        tok, gain, bias = self._pace(q.dtype)[place], self.gain[:, None], self.bias[:, None]
        inputs, z = [], k
        layers = len(self._layers())
        for i in range(1, layers + 1):
            inputs.append(z)
            z = F.pad(_gelu(z) if i > 1 else z, (0, 1), value=1.0) @ state[f"weights{i}"]
        norm, _, scale = torch.native_layer_norm(z, z.shape[-1:], None, None, EPS)
        g = gain * (gain * norm + bias - (v - k))
        g = scale * (g - g.mean(-1, True) - norm * (g * norm).mean(-1, True))
        z = q
        for i in range(layers, 0, -1):
            a = F.pad(_gelu(inputs[i - 1]) if i > 1 else k, (0, 1), value=1.0)
            state[f"gradient{i}"] = torch.addcmul(state[f"gradient{i}"], a.mT, lr * g)
            if i > 1:
                g = _gelu_backward(g @ state[f"weights{i}"][..., :-1, :].mT, inputs[i - 1])
        for i in range(1, layers + 1):
            now = state[f"weights{i}"] - tok * state[f"gradient{i}"]
            z = F.pad(_gelu(z) if i > 1 else z, (0, 1), value=1.0) @ now
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
        """q beside k: what the projection gives already where there is no convolution."""
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
            y = y * _gelu(gate)
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

        def turned(x_BHK: Tensor, place: int) -> Tensor:
            if self.config.pos == "none":
                return x_BHK
            x_BHK = x_BHK.clone()
            for i in range(K // 2):
                angle = torch.tensor(place * 10_000 ** (-2 * i / K), dtype=torch.float64)
                cos, sin = angle.cos().item(), angle.sin().item()
                a, b = x_BHK[..., 2 * i].clone(), x_BHK[..., 2 * i + 1].clone()
                x_BHK[..., 2 * i], x_BHK[..., 2 * i + 1] = a * cos - b * sin, a * sin + b * cos
            return x_BHK

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
            q, k = (turned(x.reshape(-1, H, K), place) for x in (q_BD, k_BD))
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
            flops += 2 * hidden * K + 2 * M * (hidden + K)
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


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


def _gelu_second(z: Tensor) -> Tensor:
    """The second derivative of GELU (tanh); it is 0 in floating point beyond 20."""
    z = z.clamp(-20, 20)
    scale, square = math.sqrt(2 / math.pi), z * z
    t = torch.tanh((square * 0.044715).add_(1).mul_(z).mul_(scale))
    slope = square.mul(3 * 0.044715 * scale).add_(scale)
    bend = (t * slope).mul_(slope).neg_().add_(z, alpha=3 * 0.044715 * scale).mul_(z)
    return slope.add_(bend).mul_(t.mul_(t).neg_().add_(1))


class _Fit:
    """G, the gradient of the loss by the output z of the inner model, and its derivatives.

    x = LN(z) without gain, p = gain^2 x + offset, G = r (p - mean p - x mean(p x)), 1 / r being the
    standard deviation: the backward pass of LN.
    """

    def __init__(self, z: Tensor, offset: Tensor, square: Tensor) -> None:
        self.x, self.mean, self.r = torch.native_layer_norm(z, z.shape[-1:], None, None, EPS)
        self.z, self.square = z, square
        self.p = torch.addcmul(offset, self.x, square)
        self.G = self._through_norm(self.p)

    def _through_norm(self, grad: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            grad, self.z, self.z.shape[-1:], self.mean, self.r, None, None, [True, False, False]
        )[0]
        return found

    def backward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient u by G those by `offset` and by z."""
        by_p = self._through_norm(u)
        ra = self.r * (self.p * self.x).mean(-1, keepdim=True)
        rb = self.r * (u * self.x).mean(-1, keepdim=True)
        re = self.r * (u * self.G).mean(-1, keepdim=True)
        by_x = (self.square * by_p).addcmul_(u, ra, value=-1).addcmul_(self.p, rb, value=-1)
        return by_p, self._through_norm(by_x).addcmul_(self.x, re, value=-1)


class LinearLoop(torch.autograd.Function):
    """The weights W_IN(E)K before each mini-batch, and below them its G_INMK."""

    @staticmethod
    def forward(
        ctx: Any, key: Tensor, step: Tensor, offset: Tensor, square: Tensor, start: Tensor
    ) -> Tensor:
        (count, rows, M, E), K = key.shape, start.shape[-1]
        found = key.new_empty(count, rows, E + M, K)
        found[0, :, :E] = start
        ctx.fits = []
        for i in range(count):
            W = found[i, :, :E]
            fit = _Fit(torch.bmm(key[i], W), offset[i], square)
            found[i, :, E:] = fit.G
            ctx.fits.append(fit)
            if i + 1 < count:
                found[i + 1, :, :E] = torch.baddbmm(W, step[i].mT, fit.G, alpha=-1)
        ctx.save_for_backward(key, step, found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        key, step, found = ctx.saved_tensors
        (count, _, _, E), (by_found,) = key.shape, grads
        by_key, by_step = torch.empty_like(key), torch.zeros_like(step)
        by_offset = key.new_empty(*key.shape[:3], found.shape[-1])
        by_W = torch.zeros_like(by_found[0, :, :E])
        for i in reversed(range(count)):
            fit, u = ctx.fits[i], by_found[i, :, E:]
            if i + 1 < count:
                torch.bmm(fit.G, by_W.mT, out=by_step[i])
                u = torch.baddbmm(u, step[i], by_W, alpha=-1)
            by_offset[i], by_z = fit.backward(u)
            torch.bmm(by_z, found[i, :, :E].mT, out=by_key[i])
            by_W = by_W.add_(by_found[i, :, :E]).baddbmm_(key[i].mT, by_z)
        x = torch.stack([fit.x for fit in ctx.fits])
        by_square = (x * by_offset).sum((0, 2)).unsqueeze(1)
        return by_key, by_step.neg_(), by_offset, by_square, by_W


class MLPLoop(torch.autograd.Function):
    """Both layers' weights before each mini-batch, the gradients by their outputs below them.

    Returns:
        [W1; G1] IN(E+M)F, [W2; G2] IN(F+1+M)K, and gelu of the keys' hidden layer, with the column
        of ones, INM(F+1).
    """

    @staticmethod
    def forward(
        ctx: Any,
        key: Tensor,
        step: Tensor,
        last: Tensor,
        offset: Tensor,
        square: Tensor,
        start1: Tensor,
        start2: Tensor,
    ) -> tuple[Tensor, ...]:
        (count, rows, M, E), (_, hidden, K) = key.shape, start2.shape
        first = key.new_empty(count, rows, E + M, hidden - 1)
        second = key.new_empty(count, rows, hidden + M, K)
        acted = key.new_ones(count, rows, M, hidden)
        first[0, :, :E], second[0, :, :hidden] = start1, start2
        ctx.fits, ctx.hidden = [], []
        for i in range(count):
            W1, W2, a = first[i, :, :E], second[i, :, :hidden], acted[i]
            z = torch.bmm(key[i], W1)
            a[..., :-1] = _gelu(z)
            fit = _Fit(torch.bmm(a, W2), offset[i], square)
            back = torch.bmm(fit.G, W2[:, :-1].mT)
            slope = _gelu_backward(torch.ones_like(z), z)
            G1 = back * slope
            first[i, :, E:], second[i, :, hidden:] = G1, fit.G
            ctx.fits.append(fit)
            ctx.hidden.append((z, back, slope))
            if i + 1 < count:
                first[i + 1, :, :E] = torch.baddbmm(W1, step[i].mT, G1, alpha=-1)
                second[i + 1, :, :hidden] = torch.baddbmm(W2, a.mT, last[i] * fit.G, alpha=-1)
        ctx.save_for_backward(key, step, last, first, second, acted)
        return first, second, acted

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        key, step, last, first, second, acted = ctx.saved_tensors
        by_first, by_second, by_acted = grads
        (count, rows, M, E), hidden = key.shape, acted.shape[-1]
        by_key, by_step, by_last = (torch.zeros_like(x) for x in (key, step, last))
        by_offset = key.new_empty(count, rows, M, second.shape[-1])
        by_W1 = torch.zeros_like(first[0, :, :E])
        by_W2 = torch.zeros_like(second[0, :, :hidden])
        for i in reversed(range(count)):
            fit, (z, back, slope) = ctx.fits[i], ctx.hidden[i]
            W1, W2, a = first[i, :, :E], second[i, :, :hidden], acted[i]
            by_G1, by_G2, by_a = by_first[i, :, E:], by_second[i, :, hidden:], by_acted[i]
            if i + 1 < count:
                by_step[i] = torch.bmm(first[i, :, E:], by_W1.mT).neg_()
                by_G1 = torch.baddbmm(by_G1, step[i], by_W1, alpha=-1)
                back2 = torch.bmm(a, by_W2)
                by_last[i] = -(back2 * fit.G).sum(-1, keepdim=True)
                by_G2 = torch.addcmul(by_G2, back2, last[i], value=-1)
                by_a = torch.baddbmm(by_a, last[i] * fit.G, by_W2.mT, alpha=-1)
            by_back = by_G1 * slope
            by_offset[i], by_out = fit.backward(torch.baddbmm(by_G2, by_back, W2[:, :-1]))
            by_W2 = by_W2.add_(by_second[i, :, :hidden]).baddbmm_(a.mT, by_out)
            by_W2[:, :-1].baddbmm_(by_back.mT, fit.G)
            by_a = torch.baddbmm(by_a, by_out, W2.mT)
            by_z = _gelu_second(z).mul_(back).mul_(by_G1).addcmul_(by_a[..., :-1], slope)
            torch.bmm(by_z, W1.mT, out=by_key[i])
            by_W1 = by_W1.add_(by_first[i, :, :E]).baddbmm_(key[i].mT, by_z)
        x = torch.stack([fit.x for fit in ctx.fits])
        by_square = (x * by_offset).sum((0, 2)).unsqueeze(1)
        return by_key, by_step, by_last, by_offset, by_square, by_W1, by_W2

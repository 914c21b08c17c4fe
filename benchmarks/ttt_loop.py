"""TTT in the formulation of the published PyTorch code, with the weights of our block.

Written from a description of ttt-lm-pytorch (arXiv 2407.04620): the dual form with every operation
under autograd, mini-batch after mini-batch, LN written out, bias and weights apart.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.blocks.ttt import TTT


def ttt_loop(block: TTT, x_BTD: Tensor) -> Tensor:
    """The block as a loop over mini-batches of plain operations."""
    width = x_BTD.shape[-1]
    heads, M = block.heads, block.config.mini_batch
    weights = block.in_proj.weight.split([width, width, width, heads])
    q, k, v = (F.linear(x_BTD, w).unflatten(-1, (heads, -1)).transpose(1, 2) for w in weights[:3])
    q, k = turn(q, M), turn(k, M)
    rate_BHT = block.base * torch.sigmoid(F.linear(x_BTD, weights[3], block.lr_bias)).mT
    pace_M = (1 / torch.arange(1, M + 1) + block.delta).clamp(min=0)
    state = [p.expand(len(x_BTD), *p.shape) for p in (block.W1, block.b1[:, None])]
    if block.config.inner == "mlp":
        state += [p.expand(len(x_BTD), *p.shape) for p in (block.W2, block.b2[:, None])]
    fit = fit_mlp if block.config.inner == "mlp" else fit_linear
    gain, bias = block.gain[:, None], block.bias[:, None]
    outputs = []
    for i in range(0, x_BTD.shape[1], M):
        q_i, k_i, v_i = (x[:, :, i : i + M] for x in (q, k, v))
        eta = pace_M[:, None] * rate_BHT[:, :, None, i : i + M]
        out, state = fit(state, q_i, k_i, v_i - k_i, eta, gain, bias)
        outputs.append(q_i + norm(out, gain, bias)[0])
    y_BTD = torch.cat(outputs, 2).transpose(1, 2).flatten(2)
    return block.out_proj(block.norm(y_BTD))


def turn(x: Tensor, M: int) -> Tensor:
    """RoPE on neighbouring channels, the place counted within the mini-batch."""
    K = x.shape[-1]
    rate = 10_000.0 ** (-torch.arange(0, K, 2) / K)
    angle = (torch.arange(x.shape[2]) % M)[:, None] * rate
    cos, sin = angle.cos().repeat_interleave(2, -1), angle.sin().repeat_interleave(2, -1)
    other = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
    return x * cos + other * sin


def norm(z: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """LN written out, with the normalised input and the standard deviation."""
    mean, var = z.mean(-1, keepdim=True), z.var(-1, keepdim=True, unbiased=False)
    std = torch.sqrt(var + 1e-6)
    x = (z - mean) / std
    return gain * x + bias, x, std


def gradient(z: Tensor, target: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Of 1/2 |LN(z) - target|^2 by z."""
    y, x, std = norm(z, gain, bias)
    g = (y - target) * gain
    K = z.shape[-1]
    inner = K * g - g.sum(-1, keepdim=True) - x * (g * x).sum(-1, keepdim=True)
    return inner / (K * std)


State = list[Tensor]


def fit_linear(
    state: State, q: Tensor, k: Tensor, target: Tensor, eta: Tensor, gain: Tensor, bias: Tensor
) -> tuple[Tensor, State]:
    """One mini-batch of the linear model."""
    W, b = state
    g = gradient(k @ W + b, target, gain, bias)
    last = eta[:, :, -1:].mT
    out = q @ W - (eta * torch.tril(q @ k.mT)) @ g + (b - torch.tril(eta) @ g)
    return out, [W - (last * k).mT @ g, b - (last * g).sum(-2, keepdim=True)]


def fit_mlp(
    state: State, q: Tensor, k: Tensor, target: Tensor, eta: Tensor, gain: Tensor, bias: Tensor
) -> tuple[Tensor, State]:
    """One mini-batch of the inner MLP."""
    W1, b1, W2, b2 = state
    z1 = k @ W1 + b1
    a = F.gelu(z1, approximate="tanh")
    g2 = gradient(a @ W2 + b2, target, gain, bias)
    t = torch.tanh(0.79788456 * z1 * (1 + 0.044715 * z1 * z1))
    slope = 0.5 * z1 * ((1 - t * t) * (0.79788456 + 0.1070322243 * z1 * z1)) + 0.5 * (1 + t)
    g1 = g2 @ W2.mT * slope
    z1 = q @ W1 - (eta * torch.tril(q @ k.mT)) @ g1 + (b1 - torch.tril(eta) @ g1)
    read = F.gelu(z1, approximate="tanh")
    out = read @ W2 - (eta * torch.tril(read @ a.mT)) @ g2 + (b2 - torch.tril(eta) @ g2)
    last = eta[:, :, -1:].mT
    return out, [
        W1 - (last * k).mT @ g1,
        b1 - (last * g1).sum(-2, keepdim=True),
        W2 - (last * a).mT @ g2,
        b2 - (last * g2).sum(-2, keepdim=True),
    ]

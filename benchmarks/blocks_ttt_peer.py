"""How fast is the `ttt` block beside the formulation of the published PyTorch code?

The peer is written here from a description of ttt-lm-pytorch: the dual form with every operation
under autograd, mini-batch after mini-batch, LN written out, bias and weights apart. It uses the
weights of the block and must give the same outputs and gradients before anything is timed.

Forward and backward pass, B=8, D=128, heads of 32, mini-batches of 16, one thread; process time of
interleaved pairs, the ratio is peer over block.

    python benchmarks/blocks_ttt_peer.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from archsearch.block import Ctx, init_weights
from archsearch.blocks.ttt import TTT

BATCH, WIDTH, PAIRS = 8, 128, 9


def main() -> None:
    """Check that both agree, then time them."""
    torch.set_num_threads(1)
    for inner in ("linear", "mlp"):
        for length in (128, 512):
            block = built(inner)
            x_BTD = torch.randn(BATCH, length, WIDTH, generator=Generator().manual_seed(0))
            x_BTD.requires_grad_()
            agree(block, x_BTD)
            pairs = [timed(block, x_BTD) for _ in range(PAIRS + 1)][1:]
            ratios = [theirs / ours for theirs, ours in pairs]
            tokens = BATCH * length
            print(
                f"{inner:6} T={length}  peer {tokens / min(t for t, _ in pairs):7.0f} tok/s  "
                f"block {tokens / min(o for _, o in pairs):7.0f} tok/s  ratio "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def built(inner: str) -> TTT:
    """The block with the weights that training starts from."""
    block = TTT(WIDTH, TTT.Config(inner=inner, head_dim=32, mini_batch=16))
    init_weights(block, block.roles, Generator().manual_seed(0))
    return block


def timed(block: TTT, x_BTD: Tensor) -> tuple[float, float]:
    """Process time of the peer and of the block, one after the other."""
    return (
        seconds(lambda: peer(block, x_BTD), block),
        seconds(lambda: block(x_BTD, Ctx(x_BTD)), block),
    )


def seconds(run: Callable[[], Tensor], block: TTT) -> float:
    """Process time of one forward and backward pass."""
    block.zero_grad()
    start = time.process_time()
    run().sum().backward()
    return time.process_time() - start


def agree(block: TTT, x_BTD: Tensor) -> None:
    """Both have the same outputs and gradients."""
    leaves = [x_BTD, *block.parameters()]
    ours, theirs = block(x_BTD, Ctx(x_BTD)), peer(block, x_BTD)
    weight = torch.randn(ours.shape, generator=Generator().manual_seed(1))
    grads = [torch.autograd.grad((y * weight).sum(), leaves) for y in (ours, theirs)]
    for a, b in zip((ours, *grads[0]), (theirs, *grads[1]), strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max(), "block and peer differ"


def peer(block: TTT, x_BTD: Tensor) -> Tensor:
    """The block as a loop over mini-batches of plain operations."""
    heads, M = block.heads, block.config.mini_batch
    weights = block.in_proj.weight.split([WIDTH, WIDTH, WIDTH, heads])
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


if __name__ == "__main__":
    main()

"""The other side of each row of `benchmarks/blocks.py`: another package's layer, or the floor.

Every peer has the weights of our block where the package can take them, and must then give the
same output before anything is timed.

Shapes: B batch, T time, D model width, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from ttt_loop import ttt_loop

from archsearch.block import Block, Ctx

BATCH, WIDTH = 8, 128
Pass = Callable[[], object]
"""One forward and backward pass."""
Sides = tuple[Pass, Pass]
"""Ours and the peer's."""


def backward(run: Callable[[], Tensor], wanted: Iterable[Tensor]) -> Pass:
    """Forward through `run` and all the gradients that are wanted."""
    leaves, y = list(wanted), run()
    dy = torch.randn(y.shape, generator=Generator().manual_seed(1))
    return lambda: torch.autograd.grad(run(), leaves, dy)


def drawn(*shape: int) -> Tensor:
    """Random numbers that take part in the backward pass."""
    return torch.randn(shape, generator=Generator().manual_seed(0)).requires_grad_()


def ours(block: Block, time: int) -> Pass:
    """The block itself, auxiliary losses included."""
    x_BTD = drawn(BATCH, time, WIDTH)
    dy_BTD, leaves = torch.ones_like(x_BTD), [x_BTD, *block.parameters()]

    def run() -> object:
        ctx = Ctx(x_BTD.detach())
        y_BTD = block(x_BTD, ctx)
        return torch.autograd.grad(
            [y_BTD, *ctx.losses], leaves, [dy_BTD, *[None] * len(ctx.losses)]
        )

    return run


def module(block: Block, peer: nn.Module, time: int, *, same: bool = True) -> Sides:
    """Another module of the same number of parameters, with the same output where `same`."""
    x_BTD = drawn(BATCH, time, WIDTH)
    counts = [sum(p.numel() for p in m.parameters()) for m in (block, peer)]
    assert counts[0] == counts[1], f"another size: {counts}"
    if same:
        agree(block(x_BTD, Ctx(x_BTD)), peer(x_BTD))
    return ours(block, time), backward(lambda: peer(x_BTD), [x_BTD, *peer.parameters()])


def agree(y: Tensor, peer_y: Tensor) -> None:
    """Both are equal up to rounding."""
    assert (y - peer_y).abs().max() <= 2e-3 * peer_y.abs().max(), "block and peer differ"


def floor(block: Block, time: int) -> Sides:
    """Every dense matrix of the block once, on inputs of its own."""
    weights = [m.weight for m in block.modules() if isinstance(m, nn.Linear)]
    return ours(block, time), products(weights, time)


def products(weights: list[Tensor], time: int) -> Pass:
    """Every matrix (outputs x inputs) once, forward and backward."""
    passes = [
        backward(lambda w=w, x=x: F.linear(x, w), [x, w])
        for w in (weight.detach().flatten(1).requires_grad_() for weight in weights)
        for x in (drawn(BATCH, time, w.shape[1]),)
    ]
    return lambda: [run() for run in passes]


def attention_floor(block: Block, time: int) -> Sides:
    """Projections, scores and reads; half the keys, since a token sees only those before it."""
    matrices, K = products([block.qkv.weight, block.out.weight], time), block.head_width
    q_NTK = drawn(BATCH * block.heads, time, K)
    k_NSK, v_NSK = (drawn(BATCH * block.heads, time // 2, K) for _ in range(2))
    score_NTS = drawn(BATCH * block.heads, time, time // 2)
    scores = backward(lambda: q_NTK @ k_NSK.mT, [q_NTK, k_NSK])
    reads = backward(lambda: score_NTS @ v_NSK, [score_NTS, v_NSK])
    return ours(block, time), lambda: [run() for run in (matrices, scores, reads)]


def kan_floor(block: Block, time: int) -> Sides:
    """The products of its two layers, with the functions of every input given."""
    return ours(block, time), products([block.up.weight, block.down.weight], time)


def peer_floor(block: Block, time: int) -> Sides:
    """What any routing by product keys needs: queries, and the scores of half keys."""
    query_OD, keys_HSKQ = block.retrieval.query.weight, block.retrieval.keys
    heads, _, _, half = keys_HSKQ.shape
    x_ND = drawn(BATCH * time, WIDTH)

    def scores() -> Tensor:
        q_HSNQ = (x_ND @ query_OD.T).view(-1, heads, 2, half).permute(1, 2, 0, 3)
        return q_HSNQ @ keys_HSKQ.mT

    return ours(block, time), backward(scores, [x_ND, query_OD, keys_HSKQ])


def transformers_mamba2(block: Block, time: int, *, chunk: int) -> Sides:
    """The Mamba-2 layer of transformers with the default sizes of our row."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=WIDTH, state_size=64, head_dim=64, num_heads=4, n_groups=1, expand=2,
        conv_kernel=4, chunk_size=chunk,
    )  # fmt: skip
    return module(block, Mamba2Mixer(config, layer_idx=0), time, same=False)


def mambapy(block: Block, time: int) -> Sides:
    """Mamba-1 of mambapy, its parallel scan."""
    from mambapy.mamba import MambaBlock, MambaConfig

    peer = MambaBlock(MambaConfig(d_model=WIDTH, n_layers=1))
    peer.load_state_dict(block.state_dict())
    return module(block, peer, time)


def published_ttt(block: Block, time: int) -> Sides:
    """TTT as the published PyTorch code computes it."""
    x_BTD = drawn(BATCH, time, WIDTH)
    agree(block(x_BTD, Ctx(x_BTD)), ttt_loop(block, x_BTD))
    return ours(block, time), backward(lambda: ttt_loop(block, x_BTD), [x_BTD, *block.parameters()])


def peer_pytorch(block: Block, time: int) -> Sides:
    """PEER of peer-pytorch."""
    import PEER_pytorch

    query_OD, keys_HSKQ = block.retrieval.query.weight, block.retrieval.keys
    heads, _, keys, half = keys_HSKQ.shape
    peer = PEER_pytorch.PEER(
        WIDTH, heads=heads, num_experts=keys**2, num_experts_per_head=block.retrieval.top_k,
        dim_key=half, non_competing_scores=False,
    )  # fmt: skip
    turned_OD = query_OD.view(heads, 2, half, WIDTH).transpose(0, 1).reshape(-1, WIDTH)
    with torch.no_grad():
        peer.weight_down_embed.weight.copy_(block.down.weight)
        peer.weight_up_embed.weight.copy_(block.up.weight)
        peer.keys.copy_(keys_HSKQ.transpose(1, 2))
        peer.to_queries[0].weight.copy_(turned_OD)
    return module(block, peer, time)


def efficient_kan(block: Block, time: int) -> Sides:
    """Two layers as efficient-kan forms them: the recursion over a stored grid, bases last."""
    return module(block, nn.Sequential(_Recursion(block.up), _Recursion(block.down)), time)


class _Recursion(nn.Module):
    """The B-splines of an input by the recursion of Cox and de Boor, all at once."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.order, cell = layer.order, 2 * layer.reach / layer.grid
        knots_K = torch.arange(-layer.order, layer.grid + layer.order + 1) * cell - layer.reach
        self.register_buffer("knots_IK", knots_K.repeat(layer.weight.shape[2], 1))
        self.base = nn.Parameter(layer.weight[:, 0].detach().clone())
        self.spline = nn.Parameter(layer.weight[:, 1:].detach().transpose(1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x_NI, t = x.flatten(0, -2), self.knots_IK
        z_NI1 = x_NI[..., None]
        b = ((z_NI1 >= t[:, :-1]) & (z_NI1 < t[:, 1:])).to(x)
        for k in range(1, self.order + 1):
            rising = (z_NI1 - t[:, : -k - 1]) / (t[:, k:-1] - t[:, : -k - 1])
            falling = (t[:, k + 1 :] - z_NI1) / (t[:, k + 1 :] - t[:, 1:-k])
            b = rising * b[..., :-1] + falling * b[..., 1:]
        y_NO = F.linear(F.silu(x_NI), self.base) + F.linear(b.flatten(1), self.spline.flatten(1))
        return y_NO.unflatten(0, x.shape[:-1])


def pykan(block: Block, time: int) -> Sides:
    """Two layers of pykan; it has two scales and a mask for each edge besides."""
    from kan.KANLayer import KANLayer

    sizes = [(layer.weight.shape[2], layer.weight.shape[0]) for layer in (block.up, block.down)]
    reach = [-block.up.reach, block.up.reach]
    layers = [
        KANLayer(*size, num=block.up.grid, k=block.up.order, grid_range=reach) for size in sizes
    ]
    x_ND = drawn(BATCH * time, WIDTH)
    wanted = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    run = backward(lambda: layers[1](layers[0](x_ND)[0])[0], [x_ND, *wanted])
    return ours(block, time), run


def fla_delta_rule(block: Block, time: int) -> Sides:
    """The gated delta rule alone, beside fla's chunked PyTorch reference."""
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule

    from archsearch.blocks.gated_deltanet import gated_delta_rule

    heads, K = block.heads, block.config.head_dim
    q, v = (drawn(BATCH, time, heads, K) for _ in range(2))
    k = F.normalize(drawn(BATCH, time, heads, K).detach(), dim=-1).requires_grad_()
    log_a, beta = (drawn(BATCH, time, heads).detach() for _ in range(2))
    log_a, beta = F.logsigmoid(log_a + 4).requires_grad_(), beta.sigmoid().requires_grad_()

    def run() -> Tensor:
        return gated_delta_rule(q, k, v, log_a, beta)

    def peer() -> Tensor:
        return naive_chunk_gated_delta_rule(q, k, v, log_a, beta, scale=1.0)[0]

    agree(run(), peer())
    leaves = [q, k, v, log_a, beta]
    return backward(run, leaves), backward(peer, leaves)


def dense(block: Block, time: int) -> Sides:
    """What Mixture-of-Depths holds, for all tokens."""
    x_BTD = drawn(BATCH, time, WIDTH)
    wanted = [x_BTD, *block.inner.parameters()]
    peer = backward(lambda: block.inner(x_BTD, Ctx(x_BTD.detach())), wanted)
    return ours(block, time), peer

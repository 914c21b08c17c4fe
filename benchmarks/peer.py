"""How fast is PEER, forward and backward, on one thread?

Against peer-pytorch with the same weights, and against the two products that any implementation
of its routing needs: queries, and the scores of half keys. Interleaved pairs; process CPU time.

    python benchmarks/peer.py            prints a table; needs peer-pytorch
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import PEER_pytorch
import torch
from torch import Tensor

from archsearch.block import Ctx
from archsearch.blocks.peer import PEER
from archsearch.testing.blocks import Case

BATCH, TIME, WIDTH, HEADS, TOP_K, KEY_WIDTH, PAIRS = 8, 256, 128, 8, 16, 64, 7


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    for keys in (32, 64, 128):
        ours, package, floor = contenders(keys)
        seconds = [[timed(run) for run in (ours, package, floor)] for _ in range(PAIRS + 1)][1:]
        rate = BATCH * TIME / statistics.median(own for own, _, _ in seconds)
        print(
            f"{keys**2:6} experts: {rate:6.0f} tokens/s",
            f"  peer-pytorch takes {spread([p / own for own, p, _ in seconds])} times as long",
            f"  {spread([own / f for own, _, f in seconds])} times the floor",
        )


def contenders(keys: int) -> list[Callable[[], Tensor]]:
    """A forward pass of the block, of the package with its weights, and of the products alone."""
    config = PEER.Config(
        keys=keys, heads=HEADS, top_k=TOP_K, key_width=KEY_WIDTH, query_norm="none"
    )
    block = Case(PEER, WIDTH, config).build()
    package = PEER_pytorch.PEER(
        WIDTH, heads=HEADS, num_experts=keys**2, num_experts_per_head=TOP_K, dim_key=KEY_WIDTH,
        non_competing_scores=False,
    )  # fmt: skip
    query_OD, keys_HSKQ = block.retrieval.query.weight, block.retrieval.keys
    turned_OD = query_OD.view(HEADS, 2, KEY_WIDTH, WIDTH).transpose(0, 1).reshape(-1, WIDTH)
    with torch.no_grad():
        package.weight_down_embed.weight.copy_(block.down.weight)
        package.weight_up_embed.weight.copy_(block.up.weight)
        package.keys.copy_(keys_HSKQ.transpose(1, 2))
        package.to_queries[0].weight.copy_(turned_OD)
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(BATCH, TIME, WIDTH, generator=generator).requires_grad_()
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), package(x_BTD), rtol=1e-3, atol=1e-4)

    def products() -> Tensor:
        q_NHSQ = (x_BTD.flatten(0, 1) @ query_OD.T).view(-1, HEADS, 2, KEY_WIDTH)
        return q_NHSQ.permute(1, 2, 0, 3) @ keys_HSKQ.mT

    return [lambda: block(x_BTD, Ctx(x_BTD)), lambda: package(x_BTD), products]


def timed(run: Callable[[], Tensor]) -> float:
    """CPU seconds of a forward and backward pass."""
    began = time.process_time()
    y = run()
    y.backward(torch.ones_like(y))
    return time.process_time() - began


def spread(ratios: list[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


if __name__ == "__main__":
    main()

"""The recurrences that libraries compute too, as cases for `gpu.py`.

Shapes: B batch, T time, H heads, K channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from archsearch.blocks.gated_deltanet import gated_delta_rule
from archsearch.blocks.gla import gated_linear_attention
from archsearch.blocks.rwkv7 import Heads, weighted_delta_rule
from archsearch.kernels.ssd import ssd
from archsearch.testing.kernel_cases import Case, bytes_of


def _sequences(g: torch.Generator, dtype: torch.dtype, op: str, B: int, T: int, H: int, K: int):
    """Inputs of a recurrence with H heads of K channels, as its block makes them."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, device=g.device).to(dtype)

    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(normal(*shape).float(), dim=-1).to(dtype)

    def share(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=g, device=g.device)

    wide, heads = (B, T, H, K), (B, T, H)
    if op == "ssd":
        decay = (-share(*heads)).exp()
        return normal(*wide), share(*heads), decay, normal(B, T, 1, K), unit(B, T, 1, K), normal(H)
    if op == "gla":
        return unit(*wide), unit(*wide), normal(*wide), -share(*wide) / 16
    if op == "gated_deltanet":
        return unit(*wide), unit(*wide), normal(*wide), -share(*heads), share(*heads)
    kap = unit(*wide)
    return (
        unit(*wide),
        -0.6 * share(*wide),
        unit(*wide),
        normal(*wide),
        kap,
        kap * share(*wide).to(dtype),
    )


def _exactly(plain: Callable[..., Any]) -> Callable[..., Any]:
    """In fp32 or better, as the blocks call it."""

    def run(*given: torch.Tensor) -> torch.Tensor:
        exact = torch.promote_types(given[0].dtype, torch.float32)
        return plain(*(x.to(exact) for x in given))

    return run


def _rwkv7(*given: torch.Tensor) -> torch.Tensor:
    return weighted_delta_rule.__wrapped__(Heads(*given))


def _recurrence(op: str, plain: Callable[..., Any]) -> Case:
    def make(g: torch.Generator, dtype: torch.dtype, **sizes: int) -> tuple[Any, ...]:
        return _sequences(g, dtype, op, **sizes)

    sizes = {
        "tiny": {"B": 1, "T": 8, "H": 2, "K": 4},
        "proxy": {"B": 128, "T": 128, "H": 4, "K": 32},
        "real": {"B": 8, "T": 2048, "H": 32, "K": 64},
    }

    def moved(given: tuple[Any, ...]) -> int:
        """Everything is read, and as much as there are values is written."""
        value = {"ssd": 0, "rwkv7": 3}.get(op, 2)
        return bytes_of(given) + bytes_of(given[value])

    return Case(_exactly(plain), make, sizes, (), moved=moved)


RECURRENCES = {
    "ssd": _recurrence("ssd", ssd.__wrapped__),
    "gla": _recurrence("gla", gated_linear_attention.__wrapped__),
    "gated_deltanet": _recurrence("gated_deltanet", gated_delta_rule.__wrapped__),
    "rwkv7": _recurrence("rwkv7", _rwkv7),
}

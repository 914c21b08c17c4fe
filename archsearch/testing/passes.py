"""Passes through a block, and what they give, for the laws that it is held to.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from archsearch.block import Block, Ctx, State
from archsearch.testing.cases import Case, stream


def inputs(
    case: Case,
    time: int,
    dtype: torch.dtype,
    name: str = "inputs",
    *,
    use: int = 0,
    position: int | Tensor = 0,
    std: float = 1.0,
) -> tuple[Tensor, Ctx]:
    """Two random sequences and embeddings that record gradients."""
    generator, shape = stream(name, time), (2, time, case.width)
    x_BTD, embedding_BTD = (
        torch.randn(shape, generator=generator, dtype=dtype).mul_(std).requires_grad_()
        for _ in "xe"
    )
    return x_BTD, Ctx(embedding_BTD, position=position, use=use)


def with_gradients(
    module: Block, run: Callable[[Tensor, Ctx], Tensor], x_BTD: Tensor, ctx: Ctx
) -> dict[str, Tensor]:
    """The output of `run`, its losses, and the gradients of a random projection, by name."""
    ctx = dataclasses.replace(ctx, losses=[])
    y_BTD = run(x_BTD, ctx)
    added = sum(ctx.losses, y_BTD.new_zeros(()))
    weight_BTD = torch.randn(y_BTD.shape, generator=stream("weight"), dtype=y_BTD.dtype)
    leaves = {"x": x_BTD, "embedding": ctx.embedding, **dict(module.named_parameters())}
    loss = (y_BTD * weight_BTD).sum() + added
    grads: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    named = zip(leaves.items(), grads, strict=True)
    found = {f"gradient of {n}": torch.zeros_like(v) if g is None else g for (n, v), g in named}
    return {"output": y_BTD.detach(), "sum of losses": added.detach(), **found}


def decode(module: Block, x_BTD: Tensor, ctx: Ctx, context: int) -> Iterator[tuple[Tensor, State]]:
    """The output and the state after each token; states must keep their shapes."""
    state = module.init_state(len(x_BTD), context)
    shapes = {name: value.shape for name, value in state.items()}
    for position, (x_BD, e_BD) in enumerate(
        zip(x_BTD.unbind(1), ctx.embedding.unbind(1), strict=True)
    ):
        y_BD, state = module.step(
            x_BD, state, Ctx(e_BD, position=position, seen=position, use=ctx.use)
        )
        assert {name: value.shape for name, value in state.items()} == shapes, (
            "a step changed the shape of the state"
        )
        yield y_BD, state


def flops_of(module: Block, x_BTD: Tensor, ctx: Ctx) -> int:
    """FLOPs of a forward pass as `torch.utils.flop_counter` counts them.

    Its table lacks the attention kernel of the CPU. The formula for it here is that of the kernels
    it does know: both products over all pairs of query and key, causal or not.
    """

    def attention(
        q: torch.Size, k: torch.Size, v: torch.Size, *rest: object, **named: object
    ) -> int:
        return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # torch's module tracker does not get over a view that could have a gradient
    x_BTD, ctx = x_BTD.detach(), dataclasses.replace(ctx, embedding=ctx.embedding.detach())
    with FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
        module(x_BTD, ctx)
    return counter.get_total_flops()


def require_close(got: Tensor, want: Tensor, rtol: float, what: str, floor: float = 0.0) -> None:
    """Compare with the largest number of `want` as the scale."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    error, scale = float((got - want).detach().abs().max()), float(want.detach().abs().max())
    allowed = rtol * scale + floor
    assert error <= allowed, f"{what} is off by {error:.1e}, allowed are {allowed:.1e}"

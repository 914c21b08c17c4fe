"""Training in one process or in many: PyTorch's own DDP and FSDP2, started by `torchrun`.

torchrun --nproc-per-node 2 -m archsearch scale RUN --width 1024 --shard
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch import distributed as dist

from archsearch.device import chosen
from archsearch.stack import Branch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archsearch.model import Model


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train one model together."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value


@contextmanager
def join_world() -> Iterator[World]:
    """The world that `torchrun` started this process in; by itself, a world of one.

    Raises:
        RunError: if the device that was asked for is not there.
    """
    kind = chosen().type
    if "RANK" not in os.environ:
        yield World(torch.device(kind))
        return
    place = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield World(place, dist.get_rank(), dist.get_world_size())
        dist.barrier()  # nobody leaves while another still talks
    finally:
        dist.destroy_process_group()


class Cast(nn.Module):
    """A model that computes in another type than it keeps its weights and gradients in."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *inputs: object) -> Tensor:
        """The model with each weight cast."""
        weights = {name: p.to(self.dtype) for name, p in self.model.named_parameters()}
        output: Tensor = torch.func.functional_call(self.model, weights, inputs)
        return output


def spread(model: Model, world: World, *, shard: bool, dtype: torch.dtype) -> nn.Module:
    """The model as all processes of a world train it.

    Args:
        model: Equal in every process.
        world: The processes.
        shard: Whether each keeps a part of the weights and moments alone (FSDP2) instead of all of
            them (DDP). Branches are sharded one by one, shared weights once.
        dtype: What it computes in; weights, gradients and moments stay as they are.
    """
    model.to(world.device)
    if world.size == 1 or not shard:
        whole = model if dtype is torch.float32 else Cast(model, dtype)
        devices = [world.device] if world.device.type == "cuda" else None
        if world.size == 1:
            return whole
        return nn.parallel.DistributedDataParallel(whole, device_ids=devices)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    precision = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # a cast copies `Extras`, and the losses in it would be lost
    )
    inner_first = [module for module in model.modules() if isinstance(module, Branch)][::-1]
    for module in (*inner_first, model):
        # the outermost too: checkpoints are written after an evaluation
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
    return model


@contextmanager
def without_exchange(module: nn.Module, *, only_if: bool) -> Iterator[None]:
    """Gradients stay in their process, for all but the last part of a step."""
    if only_if and isinstance(module, nn.parallel.DistributedDataParallel):
        with module.no_sync():
            yield
        return
    sharded = hasattr(module, "set_requires_gradient_sync")
    if sharded:
        module.set_requires_gradient_sync(not only_if)  # type: ignore[operator]
    yield

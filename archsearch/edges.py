"""Several streams as one input of a branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Role, zeros
from archsearch.cost import Cost

if TYPE_CHECKING:
    from archsearch.genome import Gene


class Combine(nn.Module):
    """Makes one input of several, see `genome.COMBINE`."""

    def __init__(self, gene: Gene, width: int) -> None:
        super().__init__()
        count = len(gene.inputs)
        self.kind = gene.combine
        if gene.combine == "concat":
            self.weight = nn.Parameter(torch.empty(width, count * width))
        if gene.combine == "gate":
            self.gate = nn.Parameter(torch.empty(count, width))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """One tensor of the shape that all of them have."""
        if self.kind == "concat":
            return F.linear(torch.cat(inputs, -1), self.weight)
        if self.kind == "gate":
            weights = self.gate.sigmoid().unbind(0)
            inputs = [weight * x for weight, x in zip(weights, inputs, strict=True)]
        return torch.stack(inputs).sum(0)

    @staticmethod
    def cost(gene: Gene, width: int) -> Cost:
        """What combining the inputs of a gene costs."""
        count = len(gene.inputs)
        params = {"concat": count * width**2, "gate": count * width}.get(gene.combine, 0)
        flops = 2 * params if gene.combine == "concat" else 0
        return Cost(params=params, active_params=params, flops=flops, state_bytes=0)


EDGE_ROLES = {
    "weight": Role.hidden("model", "inputs"),
    "gate": Role.vector(None, "model", init=zeros),
}

"""What blocks with a convolution share."""

from __future__ import annotations

from torch import Tensor, nn


def bias_of(layer: nn.Conv1d) -> Tensor:
    """The bias of a convolution that has one."""
    assert layer.bias is not None
    return layer.bias

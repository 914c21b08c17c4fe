"""What a model costs, before it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of a block or of a whole model at one context length.

    `params` and `state_bytes` are exact. `flops` counts a multiply-add as two and is within 2 % of
    what `torch.utils.flop_counter` measures.
    """

    params: int
    """Trainable parameters; shared weights count once."""
    active_params: int
    """Parameters that one token meets; a block used twice is met twice."""
    flops: float
    """Forward floating-point operations per token, the mean over the context.

    What is done once for a whole batch, such as making a filter, is shared by a batch of two.
    """
    state_bytes: int
    """Bytes that decoding keeps per sequence once the context is full (fp32)."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            params=self.params + other.params,
            active_params=self.active_params + other.active_params,
            flops=self.flops + other.flops,
            state_bytes=self.state_bytes + other.state_bytes,
        )


NOTHING = Cost(params=0, active_params=0, flops=0.0, state_bytes=0)


@dataclass(frozen=True, slots=True)
class Held:
    """What a wrapper holds, as far as its own cost depends on it."""

    count: int
    """Branches."""
    cost: Callable[[int], Cost]
    """Their cost, norms included, at a context of so many tokens."""

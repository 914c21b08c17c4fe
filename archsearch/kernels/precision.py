"""Recurrences keep their precision under autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def in_full(function: Kernel) -> Kernel:
    """Compute in the types of the arguments, whatever autocast is set to.

    A state that passes through thousands of products in bfloat16 forgets what it holds. A backward
    pass that is written out needs this too, as it meets autocast where it is called inside it;
    what autograd derives by itself is rounded there, as all of torch is.
    """

    @functools.wraps(function)
    def run(*given: Any, **named: Any) -> Any:
        every = _flat((*given, *named.values()))
        device = next((x.device.type for x in every if isinstance(x, Tensor)), "meta")
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return function(*given, **named)
        with torch.autocast(device, enabled=False):
            return function(*given, **named)

    whole: Any = run
    return whole


def _flat(given: tuple[Any, ...]) -> Any:
    for x in given:
        yield from _flat(x) if isinstance(x, tuple) else (x,)

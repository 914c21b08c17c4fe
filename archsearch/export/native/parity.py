"""How far a written directory is from the model that it was written from.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archsearch.export.native.hub import transformers
from archsearch.train import generator

if TYPE_CHECKING:
    from pathlib import Path

    from archsearch.model import Model

ROWS, LENGTH, PREFILL = 2, 48, 17
"""Rows and tokens that are compared, and how many of a row are read at once before the others."""

RECURRENT = ("mamba", "mamba2")
"""Types that call their cache `cache_params`; others call it `past_key_values`."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest differences of logits, over the largest logit of the model."""

    logits: float
    """Of whole rows."""
    decode: float | None
    """Of rows that are read token by token, with a cache; None where the config says none."""


@torch.no_grad()
def parity(model: Model, folder: Path) -> Parity:
    """Load a directory that `native` wrote and compare it with its model, in evaluation mode."""
    tokens_BT = torch.randint(model.vocab, (ROWS, LENGTH), generator=generator("parity"))
    want_BTV = model(tokens_BT)
    largest = want_BTV.abs().max()

    def off(got_BTV: Tensor) -> float:
        return float((got_BTV - want_BTV).abs().max() / largest)

    with transformers() as package:
        loaded = package.AutoModelForCausalLM.from_pretrained(folder).eval()
        whole = off(loaded(tokens_BT, use_cache=False).logits)
        cached = off(_decoded(loaded, tokens_BT)) if loaded.config.use_cache else None
    return Parity(whole, cached)


def _decoded(loaded: Any, tokens_BT: Tensor) -> Tensor:
    """The logits_BTV of a few tokens at once, and of the others one by one."""
    name = "cache_params" if loaded.config.model_type in RECURRENT else "past_key_values"
    cache, parts, start = None, [], 0
    for stop in range(PREFILL, tokens_BT.shape[1] + 1):
        # Bamba counts positions from 0 again where it is not told
        place = {"position_ids": torch.arange(start, stop)[None]}
        found = loaded(tokens_BT[:, start:stop], use_cache=True, **{name: cache}, **place)
        cache, start = getattr(found, name), stop
        parts.append(found.logits)
    return torch.cat(parts, 1)

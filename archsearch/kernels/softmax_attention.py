"""Causal softmax attention: of a whole sequence, in a window or not, and of one query over a cache.

Shapes: B batch, T query time, S key time, H query heads, G key heads, K head width. Query head h
reads key head h // (H / G).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.block import State

TILE = 64
"""Fewest queries that share one slice of keys where a window is cut out of the sequence."""


def attend(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Causal softmax attention; `scale` is K^-1/2 unless given.

    SDPA knows no window, and a mask costs as much as no window at all. So a long sequence is cut
    into tiles of queries, each with the slice of keys that it can see.
    """
    time = q_BTHK.shape[1]
    if window is None or window >= time:
        return _sdpa(q_BTHK, k_BTGK, v_BTGK, None, scale)
    tile = _tile(time, window)
    if tile == time:
        return _sdpa(q_BTHK, k_BTGK, v_BTGK, _band(q_BTHK, time, time, window), scale)
    tiles = math.ceil(time / tile)
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, tiles * tile - time)) for x in (q_BTHK, k_BTGK, v_BTGK))
    first = _sdpa(q[:, :tile], k[:, :tile], v[:, :tile], _band(q, tile, tile, window), scale)
    seen = tile + window - 1
    rest = _sdpa(
        q[:, tile:].reshape(-1, tile, *q.shape[2:]),
        _slices(k, tile, window),
        _slices(v, tile, window),
        _band(q, tile, seen, window),
        scale,
    )
    return torch.cat((first, rest.reshape(len(q), -1, *q.shape[2:])), 1)[:, :time]


def pairs(time: int, window: int | None) -> int:
    """Pairs of query and key that `attend` multiplies."""
    if window is None or window >= time:
        return time**2
    return _tiled_pairs(time, window, _tile(time, window))


def recall(
    q_BHK: Tensor,
    k_BGK: Tensor,
    v_BGK: Tensor,
    state: State,
    seen: int,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of one query over the cache, after its own key and value went in.

    The cache, which has met `seen` tokens, is a ring: past its end the newest token takes the place
    of the oldest.
    """
    slots = state["k"].shape[2]
    state["k"][:, :, seen % slots] = k_BGK
    state["v"][:, :, seen % slots] = v_BGK
    k_BGSK, v_BGSK = (state[name][:, :, : seen + 1] for name in ("k", "v"))
    grouped = q_BHK.shape[1] != k_BGK.shape[1]
    y_BHTK = F.scaled_dot_product_attention(
        q_BHK[:, :, None], k_BGSK, v_BGSK, scale=scale, enable_gqa=grouped
    )
    return y_BHTK[:, :, 0]


def recall_all(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    state: State,
    seen: int,
    scale: float | None = None,
) -> Tensor:
    """`recall` of several queries at once, each after its own key and value went in."""
    (time, slots), new = (q_BTHK.shape[1], state["k"].shape[2]), {"k": k_BTGK, "v": v_BTGK}
    kept = min(seen, slots)
    if kept:
        at = torch.arange(seen - kept, seen, device=q_BTHK.device) % slots
        old = (state[name].index_select(2, at).transpose(1, 2) for name in new)
        k_BSGK, v_BSGK = (torch.cat(both, 1) for both in zip(old, new.values(), strict=True))
        y_BTHK = _sdpa(q_BTHK, k_BSGK, v_BSGK, _band(q_BTHK, time, kept + time, slots), scale)
    else:
        y_BTHK = attend(q_BTHK, k_BTGK, v_BTGK, slots, scale)
    last = min(time, slots)
    at = torch.arange(seen + time - last, seen + time, device=q_BTHK.device) % slots
    for name, x_BTGK in new.items():
        state[name].index_copy_(2, at, x_BTGK[:, time - last :].transpose(1, 2))
    return y_BTHK


def _sdpa(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_TS: Tensor | None, scale: float | None
) -> Tensor:
    y_BHTK = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BSGK.transpose(1, 2),
        v_BSGK.transpose(1, 2),
        attn_mask=mask_TS,
        is_causal=mask_TS is None,
        scale=scale,
        enable_gqa=q_BTHK.shape[2] != k_BSGK.shape[2],
    )
    return y_BHTK.transpose(1, 2)


def _band(like: Tensor, time: int, seen: int, window: int) -> Tensor:
    """Which of the last `seen` keys each of the last `time` queries may read."""
    key_S = torch.arange(time - seen, time, device=like.device)
    age_TS = torch.arange(time, device=like.device)[:, None] - key_S
    return (age_TS >= 0) & (age_TS < window)


def _slices(x_BTGK: Tensor, tile: int, window: int) -> Tensor:
    """For every tile but the first: itself, after the window - 1 tokens before it."""
    tiles = x_BTGK.unflatten(1, (-1, tile))
    return torch.cat((tiles[:, :-1, tile - window + 1 :], tiles[:, 1:]), 2).flatten(0, 1)


def _tile(time: int, window: int) -> int:
    """Queries in a tile; all of them where smaller tiles save nothing."""
    tile = max(TILE, window)
    return tile if _tiled_pairs(time, window, tile) < time**2 else time


def _tiled_pairs(time: int, window: int, tile: int) -> int:
    return tile**2 + (math.ceil(time / tile) - 1) * tile * (tile + window - 1)

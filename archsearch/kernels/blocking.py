"""Work on a piece at a time, so that what one pass writes is in the cache for the next."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

CACHED = 2**17
"""Numbers in a piece of a tensor: half a megabyte in fp32."""


def row_pieces(x: Tensor) -> Iterator[slice]:
    """Slices of the first axis of `x` with about `CACHED` numbers each, at least one row."""
    rows = max(1, CACHED // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), rows):
        yield slice(start, min(start + rows, len(x)))

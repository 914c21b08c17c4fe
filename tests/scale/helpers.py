"""What the tests of texts share."""

from __future__ import annotations

import numpy as np

PROSE = "".join(
    f"    indented {i}\n\nThe naïve café № {i} → {i * i}\tends here,  twice {i % 7} spaced.\n"
    for i in range(400)
)


def whole(corpus):
    """All tokens, the validation text last."""
    return np.concatenate([corpus.train, corpus.validation])


def contents(folder):
    return sorted(p.name for p in folder.rglob("*") if p.name != ".lock")

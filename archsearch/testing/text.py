"""Text of known entropy: a model of it can be held against the best that any model can do.

Shapes: S symbols, N bytes drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

ALPHABET = b"abcdefghijklmnopqrstuvwxyz \n.,;:"


@dataclass(frozen=True, eq=False)
class Markov:
    """A source whose next byte depends on the last one alone.

    Args:
        chances: float64, (S, S): of each symbol (columns) after each symbol (rows). The symbols are
            the first S bytes of ALPHABET.
    """

    chances: Tensor

    @classmethod
    def draw(cls, symbols: int, rng: Generator, sharpness: float = 2.0) -> Markov:
        """A random source; the sharper, the farther below its order-0 entropy is its rate."""
        logits_SS = torch.randn(symbols, symbols, generator=rng, dtype=torch.float64)
        return cls((sharpness * logits_SS).softmax(-1))

    @property
    def stationary(self) -> Tensor:
        """How often each symbol occurs in the long run."""
        return torch.linalg.matrix_power(self.chances, 1 << 20)[0]

    @property
    def entropy_rate(self) -> float:
        """The loss that no model can go below, in bits per byte.

        Source: Cover and Thomas 2006, Elements of Information Theory, theorem 4.2.4.
        """
        return float(self.stationary @ _entropy(self.chances))

    @property
    def order0(self) -> float:
        """The loss of a model that knows frequencies alone, in bits per byte."""
        return float(_entropy(self.stationary))

    def sample(self, count: int, rng: Generator) -> bytes:
        """Draw so many bytes, from the long run on."""
        first, draws = torch.rand(1 + count, generator=rng, dtype=torch.float64).split([1, count])
        stops_SS = self.chances.cumsum(-1)
        # What follows each symbol at each draw, all at once; the walk is then mere lookups.
        after_SN = torch.searchsorted(stops_SS, draws.expand(len(stops_SS), -1).contiguous())
        table = after_SN.clamp(max=len(stops_SS) - 1).tolist()
        state = min(int(torch.searchsorted(self.stationary.cumsum(0), first)), len(table) - 1)
        text = bytearray()
        for at in range(count):
            text.append(ALPHABET[state])
            state = table[state][at]
        return bytes(text)


def _entropy(chances: Tensor) -> Tensor:
    """Of each row, in bits."""
    return -torch.special.xlogy(chances, chances).sum(-1) / torch.log(torch.tensor(2.0).double())

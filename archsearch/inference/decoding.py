"""Token by token: reading a prompt, and going on from it greedily or by chance.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from archsearch.errors import BlockError, ModelError

if TYPE_CHECKING:
    from archsearch.model import Model

Choose = Callable[[Tensor], int]
"""The next token, from logits_V."""


def greedy(logits_V: Tensor) -> int:
    """The likeliest token, the first of equals."""
    return int(logits_V.argmax())


def sampler(temperature: float, top_p: float, generator: Generator) -> Choose:
    """Draw from the `top_p` of the likeliest tokens at a temperature; greedy at temperature 0."""
    if temperature == 0:
        return greedy

    def choose(logits_V: Tensor) -> int:
        chances_V = probabilities(logits_V.cpu(), temperature, top_p)
        return int(torch.multinomial(chances_V, 1, generator=generator))

    return choose


def probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Chances along the last axis.

    With `top_p` below 1 only the likeliest tokens that together have at least that chance are left
    (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751, section 3.1).
    """
    # less the largest: a low temperature then overflows nowhere
    chances = ((logits - logits.amax(-1, keepdim=True)).double() / temperature).softmax(-1)
    if top_p >= 1:
        return chances
    ranked, order = chances.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked
    kept = torch.zeros_like(chances).scatter(-1, order, ranked.where(before < top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)


class Reader:
    """A model in the middle of one text; the state is made once, for at most `context` tokens.

    Raises:
        ModelError: if the model cannot decode.
    """

    def __init__(self, model: Model, context: int) -> None:
        self.model = model
        if model.readout_kind == "code":
            raise ModelError(
                "this model rebuilds a row that it has read, and does not go on from it"
            )
        try:
            self.decoding = model.start(1, context)
        except BlockError as error:
            raise ModelError(str(error)) from None
        self._device = model.device

    @property
    def position(self) -> int:
        """Tokens that were read."""
        return self.decoding.position

    @torch.no_grad()
    def read(self, tokens: Sequence[int]) -> Tensor:
        """Logits_TV after each of some more tokens.

        Raises:
            BlockError: if the context is full.
        """
        ids_T1 = torch.tensor(tokens, device=self._device)[:, None]
        at_once = getattr(self.model, "prefill", None)
        if at_once and len(tokens) > 1:
            return at_once(ids_T1.T, self.decoding)[0]
        return torch.cat([self.model.step(token_1, self.decoding) for token_1 in ids_T1])


def generate(
    model: Model,
    prompt: Sequence[int],
    count: int,
    choose: Choose = greedy,
    end: int | None = None,
    context: int | None = None,
) -> Iterator[int]:
    """Go on from a prompt, one token at a time.

    Args:
        model: In eval mode.
        prompt: At least one token.
        count: Most tokens that are given.
        choose: How each is chosen.
        end: A token after which nothing follows; it is not given itself.
        context: Most tokens of prompt and answer; by default as many as are asked for.

    Raises:
        ModelError: if the prompt is empty, the context too short, or the model cannot decode.
    """
    reader = Reader(model, room(prompt, count, context))
    logits_V = reader.read(prompt)[-1]
    for given in range(1, count + 1):
        token = choose(logits_V)
        if token == end:
            return
        yield token
        if given < count:
            logits_V = reader.read([token])[-1]


def room(prompt: Sequence[int], count: int, context: int | None) -> int:
    """Tokens that a state has to have room for.

    Raises:
        ModelError: if there is no prompt, or `context` is less than that.
    """
    if not prompt:
        raise ModelError("the prompt is empty; a model goes on from at least one token")
    needed = len(prompt) + count - 1  # the last token is never read
    if context is not None and context < needed:
        raise ModelError(
            f"a prompt of {len(prompt)} tokens and {count} more do not fit a context of {context}; "
            f"ask for at most {max(0, context - len(prompt) + 1)} tokens, or a larger context"
        )
    return needed if context is None else context

"""A model that is built from plain data, its architecture.

    width, vocab        channels of the stream, and tokens
    norm, norm_place    rms or layer; pre: x + f(norm(x)), sandwich: x + norm(f(norm(x))),
                        post: norm(x + f(x))
    embedding_rank      width of factorised embeddings, or None
    tie_embeddings      whether logits are products with the embeddings
    pause_tokens        learned tokens behind each token; the last one is read out
    readout             token: logits at every position. code: all of them from the last position
    logit_multiplier    what logits are multiplied by, before soft_cap: c tanh(logits / c), or None
    causal              False if some block looks ahead, so that nothing can be decoded
    rewinds             whether what decoding has met can be taken back: full attention alone
    stack               the residual branches in order, each of them
        block, config       what it computes
        of                  the branches that it holds
        share, uses         name of weights that other branches use too, and how many do; the first
                            of them alone says what it is
        use                 how many use the weights before it
        reads, combine      the streams that it reads instead of the last one (n is the one behind
                            the n-th branch, 0 the embeddings), and how they become one
        joins               next: it is added to the input of the next branch, not to the stream
        multiplier          what its output is multiplied by where it joins the stream

Shapes: B batch, T time, D model width, V vocabulary, R rank of factorised embeddings, P pauses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.export.runtime.block import Block, Ctx, Init, State, fan_in, normal, ones, zeros
from archsearch.export.runtime.code import CodeDecoder
from archsearch.export.runtime.stack import Parts, Stack


@dataclass(slots=True)
class Decoding:
    """What decoding carries from token to token."""

    state: State
    context: int
    """Tokens that the state has room for."""
    seen: int = 0
    """Tokens that it has met."""


class Model(nn.Module):
    """A language model of an architecture.

    Args:
        architecture: What it is made of, see the top of this file.
        blocks: The classes of its blocks, by name.
    """

    starts: ClassVar[Mapping[str, Init]] = {
        "embedding.weight": normal(1.0),
        "lift.weight": fan_in,
        "lower.weight": fan_in,
        "readout.weight": fan_in,
        "pause": normal(1.0),
        "final_norm.weight": ones,
        "final_norm.bias": zeros,
        "decoder.*norm.weight": ones,
        "decoder.*.weight": fan_in,
        "decoder.*.bias": zeros,
    }

    def __init__(self, architecture: Mapping[str, Any], blocks: Mapping[str, type[Block]]) -> None:
        super().__init__()
        self.architecture, parts = architecture, Parts(architecture, blocks)
        vocab, width, rank = (architecture[key] for key in ("vocab", "width", "embedding_rank"))
        self.embedding = nn.Embedding(vocab, rank or width)
        if rank:
            self.lift = nn.Linear(rank, width, bias=False)
            self.lower = nn.Linear(width, rank, bias=False)
        self.pauses = architecture["pause_tokens"]
        if self.pauses:
            self.pause = nn.Parameter(torch.empty(self.pauses, width))
        self.stack = Stack(architecture["stack"], parts)
        self.final_norm = parts.norm()
        if architecture["readout"] == "code":
            self.decoder = CodeDecoder(width)
        if not architecture["tie_embeddings"]:
            self.readout = nn.Linear(rank or width, vocab, bias=False)

    def forward(
        self,
        tokens_BT: Tensor,
        losses: list[Tensor] | None = None,
        noise: Generator | None = None,
    ) -> Tensor:
        """Logits_BTV for token ids_BT.

        Args:
            tokens_BT: Token ids.
            losses: In training, collects what blocks add to the loss of the task.
            noise: In training, the random stream of whatever is random; None for nothing.
        """
        return self.logits(self.stream(tokens_BT, losses, noise))

    def stream(
        self,
        tokens_BT: Tensor,
        losses: list[Tensor] | None = None,
        noise: Generator | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """The stream x_BTD that is read out, after the first `depth` branches or all of them."""
        x_BTD = self._embed(tokens_BT)
        ctx = Ctx(x_BTD, losses=[] if losses is None else losses, noise=noise)
        return self.stack(x_BTD, ctx, depth)[:, self.pauses :: 1 + self.pauses]

    def logits(self, x: Tensor) -> Tensor:
        """What is read out of the stream, any leading axes."""
        architecture, x = self.architecture, self.final_norm(x)
        if architecture["readout"] == "code":
            x = self.decoder(x)
        if architecture["embedding_rank"]:
            x = self.lower(x)
        tied = architecture["tie_embeddings"]
        logits = F.linear(x, self.embedding.weight if tied else self.readout.weight)
        if architecture["logit_multiplier"] != 1:
            logits = logits * architecture["logit_multiplier"]
        cap = architecture["soft_cap"]
        return cap * torch.tanh(logits / cap) if cap else logits

    def start(self, batch: int, context: int = 64) -> Decoding:
        """The decode state before the first token.

        Args:
            batch: Sequences.
            context: Tokens to make room for; there is more once it is used up.

        Raises:
            ValueError: if a block always looks ahead.
        """
        if not self.architecture["causal"]:
            raise ValueError("a block of this model looks ahead, so it cannot decode")
        return Decoding(self.stack.init_state(batch, context * (1 + self.pauses)), context)

    def step(self, token_B: Tensor, decoding: Decoding) -> Tensor:
        """Logits_BV after one more token; `decoding` moves on by one."""
        return self.logits(self.advance(token_B[:, None], decoding))[:, 0]

    def advance(self, tokens_BT: Tensor, decoding: Decoding, depth: int | None = None) -> Tensor:
        """`stream` for more tokens behind those that `decoding` has met; it moves on."""
        wanted = decoding.seen + tokens_BT.shape[1]
        if wanted > decoding.context:
            self.grow(decoding, max(wanted, 2 * decoding.context))
        x_BTD, place = self._embed(tokens_BT), decoding.seen * (1 + self.pauses)
        decoding.seen = wanted
        if x_BTD.shape[1] == 1:
            ctx = Ctx(x_BTD[:, 0], position=place, seen=place)
            y_BD, decoding.state = self.stack.step(x_BTD[:, 0], decoding.state, ctx, depth)
            return y_BD[:, None]
        ctx = Ctx(x_BTD, position=place, seen=place)
        y_BTD, decoding.state = self.stack.prefill(x_BTD, decoding.state, ctx, depth)
        return y_BTD[:, self.pauses :: 1 + self.pauses]

    def grow(self, decoding: Decoding, context: int) -> None:
        """Make room for `context` tokens; what was met is kept."""
        batch = len(next(iter(decoding.state.values()), torch.empty(1)))
        wide = self.stack.init_state(batch, context * (1 + self.pauses))
        for name, old in decoding.state.items():
            if wide[name].shape == old.shape:
                wide[name] = old
            else:  # what has an entry for each token fills up from the first
                wide[name][tuple(map(slice, old.shape))] = old
        decoding.state, decoding.context = wide, context

    @torch.no_grad()
    def init(self, generator: Generator | None = None) -> Model:
        """Draw every weight."""
        found, own = dict(self.each_start()), dict(self.named_parameters())
        for name in sorted(own, key=lambda name: (not name.startswith("stack."), name)):
            found[name](own[name], generator)
        return self

    def each_start(self) -> Iterator[tuple[str, Init]]:
        """How each of `named_parameters()` is drawn; the last word on a name counts."""
        for path, module in self.named_modules():
            starts: Mapping[str, Init] = getattr(module, "starts", {})
            for name, _ in module.named_parameters():
                for pattern, init in starts.items():
                    if fnmatchcase(name, pattern):
                        yield f"{path}.{name}".lstrip("."), init
                        break

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        """With the pauses after each token, T becomes T * (1 + P)."""
        x_BTD = self.embedding(tokens_BT)
        if self.architecture["embedding_rank"]:
            x_BTD = self.lift(x_BTD)
        if self.pauses:
            pause_BTPD = self.pause.expand(*x_BTD.shape[:2], -1, -1)
            x_BTD = torch.cat((x_BTD[:, :, None], pause_BTPD), 2).flatten(1, 2)
        return x_BTD

"""From a genome to a model: embeddings, the stack of residual branches, readout.

Shapes: B batch, T time, D model width, V vocabulary, R rank of factorised embeddings, P pauses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Ctx, Role, State, fan_in, normal, ones, role_of, zeros
from archsearch.cost import Cost
from archsearch.errors import BlockError
from archsearch.mup import Base, Scales, branch_multiplier, scale, widened
from archsearch.stack import Stack, Weights, make_norm, norm_params, stack_cost

if TYPE_CHECKING:
    from archsearch.genome import Genome

Readout = Literal["token", "code"]
"""token: logits at every position. code: all tokens rebuilt from the last position (MAD)."""


@dataclass(slots=True)
class Extras:
    """What a forward pass of training takes and gives beside tokens and logits."""

    noise: Generator | None = None
    """Random stream of whatever is random in training; None for nothing."""
    losses: list[Tensor] = field(default_factory=list)
    """Losses that blocks add to that of the task."""
    exits: list[tuple[float, Tensor]] = field(default_factory=list)
    """Weight and logits_BTV of each early exit; the weights are relative to 1 for the last."""


@dataclass(slots=True)
class Decoding:
    """What `Model.step` carries from token to token."""

    state: State
    context: int
    """Most tokens that the state was made for."""
    position: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the state."""
        return sum(t.numel() * t.element_size() for t in self.state.values())


class Model(nn.Module):
    """A language model with the architecture of `genome`.

    Weights are uninitialised until `init` or `load_state_dict`; `build` does both steps.

    Args:
        genome: The architecture.
        vocab: Number of tokens.
        readout: What is read out.
        base: The smaller model that hyper-parameters come from; None if they are its own.

    Raises:
        BlockError: if a block cannot be built at this width.
    """

    def __init__(
        self, genome: Genome, vocab: int, readout: Readout = "token", base: Base | None = None
    ) -> None:
        super().__init__()
        self.genome, self.vocab, self.readout_kind, self.base = genome, vocab, readout, base
        depth = 1.0 if base is None else len(genome.genes) / base.depth
        width, rank = genome.d_model, genome.embedding_rank
        self.embedding = nn.Embedding(vocab, rank or width)
        if rank:
            self.lift = nn.Linear(rank, width, bias=False)
            self.lower = nn.Linear(width, rank, bias=False)
        if genome.pause_tokens:
            self.pause = nn.Parameter(torch.empty(genome.pause_tokens, width))
        multiplier = branch_multiplier(depth, base.scheme) if base else 1.0
        self.stack = Stack(genome, genome.genes, Weights(genome, multiplier))
        self.final_norm = make_norm(genome)
        self.decoder = CodeDecoder(width) if readout == "code" else nn.Identity()
        self.readout = nn.Linear(rank or width, vocab, bias=False)
        self._tie()
        self._set_scales(base, depth)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def forward(self, tokens_BT: Tensor, extras: Extras | None = None) -> Tensor:
        """Logits_BTV for token ids_BT; in training, `extras` collects what else is learned from."""
        extras, training = extras or Extras(), extras is not None and self.training
        x_BTD = self._paused(self._embed(tokens_BT))
        ctx = Ctx(x_BTD, losses=extras.losses, noise=extras.noise if training else None)
        dropout = self.genome.layer_dropout
        streams = list(self.stack.streams(x_BTD, ctx, dropout)) if training else []
        last_BTD = streams[-1] if training else self.stack(x_BTD, ctx)
        if training and self.genome.exit_loss:
            extras.exits = [
                (weight, self._logits(self._answers(stream_BTD)))
                for weight, stream_BTD in zip(
                    self._exit_weights(len(streams)), streams, strict=False
                )
            ]
        return self._logits(self._answers(last_BTD))

    def start(self, batch: int, context: int) -> Decoding:
        """The decode state before the first token, for at most `context` tokens.

        Raises:
            BlockError: if a block always looks ahead.
        """
        if self.genome.bidirectional:
            raise BlockError(f"{self.genome.text()} looks ahead, so it cannot decode")
        places = context * (1 + self.genome.pause_tokens)
        return Decoding(self.stack.init_state(batch, places), context)

    def step(self, token_B: Tensor, decoding: Decoding) -> Tensor:
        """Logits_BV after one more token; `decoding` moves on by one position.

        Raises:
            BlockError: if the context that `start` was told of is full.
        """
        if decoding.position >= decoding.context:
            raise BlockError(f"the context of {decoding.context} tokens is full; start with more")
        inputs_BTD = self._paused(self._embed(token_B)[:, None])
        at = decoding.position * inputs_BTD.shape[1]
        for place, x_BD in enumerate(inputs_BTD.unbind(1), start=at):
            ctx = Ctx(embedding=x_BD, position=place, seen=place)
            y_BD, decoding.state = self.stack.step(x_BD, decoding.state, ctx)
        decoding.position += 1
        return self._logits(y_BD)

    def prefill(self, tokens_BT: Tensor, decoding: Decoding) -> Tensor:
        """Logits_BTV after more tokens at once; `decoding` moves on behind them.

        Raises:
            BlockError: if they are more than the context that `start` was told of leaves.
        """
        wanted = decoding.position + tokens_BT.shape[1]
        if wanted > decoding.context:
            raise BlockError(
                f"{wanted} tokens are more than the context of {decoding.context}; start with more"
            )
        x_BTD = self._paused(self._embed(tokens_BT))
        at = decoding.position * (1 + self.genome.pause_tokens)
        ctx = Ctx(embedding=x_BTD, position=at, seen=at)
        x_BTD, decoding.state = self.stack.prefill(x_BTD, decoding.state, ctx)
        decoding.position = wanted
        return self._logits(self._answers(x_BTD))

    @torch.no_grad()
    def init(self, generator: Generator) -> Model:
        """Start every weight from an explicit random stream, as its role says."""
        own = dict(self.named_parameters())
        for name in sorted(own, key=lambda name: (not name.startswith("stack."), name)):
            self.role_of(name).init(own[name], generator)
            own[name].mul_(self.scales[name].init)
        return self

    def role_of(self, name: str) -> Role:
        """The role of one of `named_parameters()`."""
        if name.startswith("stack."):
            return self.stack.role_of(name.removeprefix("stack."))
        return role_of(ROLES | (FACTORISED_ROLES if self.genome.embedding_rank else {}), name)

    def _set_scales(self, base: Base | None, depth: float) -> None:
        """How each of `named_parameters()` is scaled from the base model.

        Multipliers are folded into the weights, but for the readout's, which may be tied.
        """
        own = dict(self.named_parameters())
        self.scales, self.logit_multiplier = dict.fromkeys(own, Scales()), 1.0
        if base is None:
            return
        with torch.device("meta"):
            twin = Model(widened(self.genome, base.width), self.vocab, self.readout_kind)
        small = dict(twin.named_parameters(remove_duplicate=False))
        last = "lower.weight" if self.genome.embedding_rank else "readout.weight"
        for name, parameter in self.named_parameters(remove_duplicate=False):
            deep = depth if name.startswith("stack.") else 1.0
            role = self.role_of(name)
            found = scale(role, small[name].shape, parameter.shape, deep, base.scheme)
            if name == last:
                self.logit_multiplier = found.multiplier
            if name in own:
                self.scales[name] = found if name == last else found.folded()

    def _apply(self, fn: Any, recurse: bool = True) -> Model:
        """Move every tensor; a move off the meta device parts weights that are one."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tie()
        return self

    def _tie(self) -> None:
        if self.genome.tie_embeddings:
            self.readout.weight = self.embedding.weight

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.lift(x) if self.genome.embedding_rank else x

    def _paused(self, x_BTD: Tensor) -> Tensor:
        """With the pauses after each token, T becomes T * (1 + P)."""
        if not self.genome.pause_tokens:
            return x_BTD
        pause_BTPD = self.pause.expand(*x_BTD.shape[:2], -1, -1)
        return torch.cat((x_BTD[:, :, None], pause_BTPD), 2).flatten(1, 2)

    def _answers(self, x_BTD: Tensor) -> Tensor:
        """What is read out: the last pause of each token."""
        return x_BTD[:, self.genome.pause_tokens :: 1 + self.genome.pause_tokens]

    def _exit_weights(self, count: int) -> list[float]:
        """Weights of all exits but the last, relative to its (LayerSkip, section 4.1.2)."""
        scale = self.genome.exit_loss
        last = count - 1 + scale * sum(range(count))
        return [scale * sum(range(i + 1)) / last for i in range(count - 1)]

    def _logits(self, x: Tensor) -> Tensor:
        x = self.decoder(self.final_norm(x))
        logits: Tensor = self.readout(self.lower(x) if self.genome.embedding_rank else x)
        if self.logit_multiplier != 1:
            logits = logits * self.logit_multiplier
        cap = self.genome.soft_cap
        return cap * torch.tanh(logits / cap) if cap else logits


class CodeDecoder(nn.Module):
    """Rebuild a sequence from the vector at its last position (MAD's autoencoder, 2403.17844).

    The code is added to a sinusoidal position embedding and goes through two layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.last_norm = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The decoded sequence x_BTD; only x[:, -1] is read."""
        length, width = x_BTD.shape[1:]
        rate_K = torch.arange(0, width, 2, dtype=torch.float32, device=x_BTD.device) / width
        angle_TK = torch.arange(length, device=x_BTD.device)[:, None] * 10_000**-rate_K
        position_TD = torch.stack((angle_TK.sin(), angle_TK.cos()), -1).flatten(-2)[:, :width]
        y_BTD = self.norm(x_BTD[:, -1:] + position_TD.to(x_BTD.dtype))
        return self.last_norm(F.gelu(self.outer(F.gelu(self.inner(y_BTD)))))


ROLES: dict[str, Role] = {
    "embedding.weight": Role.embedding(None, "model", init=normal(1.0)),
    "readout.weight": Role.readout(None, "model"),
    "pause": Role.embedding(None, "model", init=normal(1.0)),
    "*norm.weight": Role.vector("model", init=ones),
    "*norm.bias": Role.vector("model", init=zeros),
    "decoder.*.weight": Role.hidden("model", "model"),
    "decoder.*.bias": Role.vector("model", init=zeros),
}
FACTORISED_ROLES: dict[str, Role] = {
    "embedding.weight": Role.small(None, None, init=normal(1.0)),
    "lift.weight": Role.embedding("model", None, init=fan_in),
    "lower.weight": Role.readout(None, "model"),
    "readout.weight": Role.small(None, None, init=fan_in),
}
"""Where embeddings are factorised, the vocabulary meets a rank that does not grow."""


def build(
    genome: Genome,
    vocab: int,
    readout: Readout = "token",
    *,
    generator: Generator,
    base: Base | None = None,
) -> Model:
    """A model with weights drawn from `generator`.

    Raises:
        BlockError: if a block cannot be built, or a parameter has no role.
    """
    with torch.device("meta"):
        model = Model(genome, vocab, readout, base)
    return model.to_empty(device="cpu").init(generator)


def cost(genome: Genome, seq_len: int) -> Cost:
    """Cost of the stack: everything but embeddings and readout, which depend on the task.

    Raises:
        BlockError: if a block cannot be built at this width.
    """
    pauses, norm = genome.pause_tokens, norm_params(genome)
    stack = stack_cost(genome, genome.genes, seq_len * (1 + pauses))
    around = norm + pauses * genome.d_model
    return Cost(
        params=stack.params + around,
        active_params=stack.active_params * (1 + pauses) + around,
        flops=stack.flops * (1 + pauses),
        state_bytes=stack.state_bytes,
    )

"""An exported model as Hugging Face knows language models; for transformers from 5.5 on.

Rows of a batch may be padded on both sides. They are computed as if each stood alone: in a cache,
rows that have met as many tokens go on together, so the fastest batch has texts of one length.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from archsearch.export.runtime.block import Init, State
from archsearch.export.runtime.configuration_archsearch import ArchSearchConfig
from archsearch.export.runtime.model import Decoding, Model

BLOCKS: dict[str, Any] = {}
"""The classes of the blocks, by name."""


class ArchSearchCache(DynamicCache):  # type: ignore[misc]
    """The decode states of all blocks, and how much each row has met.

    Args:
        rewinds: Whether states can go back, which only those of full attention can.
    """

    def __init__(self, rewinds: bool = False) -> None:
        super().__init__()
        self.rewinds = rewinds
        self.length = 0
        """Tokens of each row, padding included."""
        self.met: list[int] = []
        """Tokens of each row, without padding."""
        self.state: State = {}
        self.context = 0
        """Tokens that the state has room for."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that each row has met, padding included."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """There is no bound."""
        return -1

    @property
    def is_croppable(self) -> bool:
        """Whether the last tokens can be taken back."""
        return self.rewinds

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first token."""
        return len(self.met) or -1

    def crop(self, tokens_to_remove: int) -> None:
        """Take back as many of the last tokens as the negative of this; 0 does nothing.

        Raises:
            ValueError: if a state cannot go back.
        """
        count = -tokens_to_remove
        if count == 0:
            return
        if not self.rewinds or not 0 < count <= min(self.met):
            raise ValueError(f"{count} tokens cannot be taken back from the states of this model")
        self.length -= count
        self.met = [met - count for met in self.met]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows become those of these indices."""
        self.met = [self.met[i] for i in beam_idx.tolist()]
        self.state = {k: t.index_select(0, beam_idx.to(t.device)) for k, t in self.state.items()}

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row comes so often, one behind the other."""
        self.reorder_cache(torch.arange(len(self.met)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything."""
        self.length, self.met, self.state, self.context = 0, [], {}, 0


class ArchSearchForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A language model that archsearch found."""

    config_class = ArchSearchConfig
    base_model_prefix = "model"
    _no_split_modules = ["Model"]  # what blocks pass each other would be on several devices

    def __init__(self, config: ArchSearchConfig) -> None:
        super().__init__(config)
        self.model = Model(config.architecture, BLOCKS)
        self._starts: dict[tuple[int, str], Init] = {}
        self.model.config = config  # where early exit sets the number of branches
        self._rewinds = config.architecture["rewinds"]
        self._is_stateful = not self._rewinds  # where it is not said, drafts give wrong text
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the tokens."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """The matrix of the logits; None if it is that of the embeddings."""
        return getattr(self.model, "readout", None)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: ArchSearchCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits, and the loss where there are labels.

        Args:
            input_ids: Token ids_BT.
            attention_mask: 0 for padding, which may stand before and behind a text but not inside;
                of all tokens, those in the cache included.
            past_key_values: What an earlier call has returned.
            labels: Token ids_BT, -100 where nothing is learned; position t is compared with t + 1.
            use_cache: Whether a cache is returned.
            logits_to_keep: How many of the last positions have logits, or which; 0 is all.
            return_dict: False for a tuple.

        Raises:
            ValueError: if padding stands inside a text, or a cache is wanted where none can be.
        """
        if past_key_values is not None and not isinstance(past_key_values, ArchSearchCache):
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}; a cache of this model is "
                "what it returns with use_cache=True"
            )
        losses: list[Tensor] = []
        rows = _rows(attention_mask, input_ids)
        if use_cache and past_key_values is None:
            past_key_values = ArchSearchCache(self._rewinds)
        if past_key_values is None:
            x_BTD = self._whole(input_ids, rows, losses)
        else:
            x_BTD = self._onward(input_ids, rows, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.model.logits(x_BTD[:, kept])
        loss = None
        if labels is not None:
            vocab = self.config.vocab_size
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=vocab)
            loss = sum(losses, loss)
        found = CausalLMOutputWithPast(loss, logits_BTV, past_key_values)
        return found.to_tuple() if return_dict is False else found

    @property
    def _depth(self) -> int:
        return self.config.num_hidden_layers

    def _whole(
        self, tokens_BT: Tensor, rows: list[tuple[int, int]] | None, losses: list[Tensor]
    ) -> Tensor:
        """The stream of whole texts."""
        noise = None
        if self.training:
            seed = int(torch.randint(2**62, ()))
            noise = torch.Generator(tokens_BT.device).manual_seed(seed)

        def stream(tokens_BT: Tensor) -> Tensor:
            return self.model.stream(tokens_BT, losses, noise, self._depth)

        if rows is None:
            return stream(tokens_BT)
        if not self.config.architecture[
            "causal"
        ]:  # what follows is seen: padding must not be there
            return _scattered(tokens_BT, rows, lambda group, texts: stream(texts))
        first_B1 = torch.tensor([[first] for first, _ in rows], device=tokens_BT.device)
        place_T, time = torch.arange(tokens_BT.shape[1], device=tokens_BT.device), len(tokens_BT[0])
        x_BTD = stream(tokens_BT.gather(1, (place_T + first_B1) % time))
        back_BT1 = ((place_T - first_B1) % time)[..., None]
        return x_BTD.gather(1, back_BT1.expand_as(x_BTD))

    def _onward(
        self, tokens_BT: Tensor, rows: list[tuple[int, int]] | None, cache: ArchSearchCache
    ) -> Tensor:
        """The stream of what comes behind the texts in a cache, which moves on."""
        batch, time = tokens_BT.shape
        if not cache.met:
            start = self.model.start(batch, max(64, time))
            cache.state, cache.context, cache.met = start.state, start.context, [0] * batch
        rows = rows or [(0, time)] * batch
        behind = [row for row, (first, stop) in enumerate(rows) if first < stop < time]
        inside = [row for row, (first, stop) in enumerate(rows) if first and cache.met[row]]
        if behind or inside:
            raise ValueError(
                "with a cache, padding stands before a text alone: padding_side='left'"
            )
        wanted = max(met + stop - first for met, (first, stop) in zip(cache.met, rows, strict=True))
        if wanted > cache.context:
            grown = Decoding(cache.state, cache.context)
            self.model.grow(grown, max(wanted, 2 * cache.context))
            cache.state, cache.context = grown.state, grown.context

        def advance(group: list[int], texts_BT: Tensor) -> Tensor:
            alone = len(group) == batch
            index = torch.tensor(group, device=tokens_BT.device)
            own = cache.state if alone else {k: t[index] for k, t in cache.state.items()}
            decoding = Decoding(own, cache.context, cache.met[group[0]])
            x_BTD = self.model.advance(texts_BT, decoding, self._depth)
            for name, tensor in decoding.state.items():
                old = cache.state[name]
                cache.state[name] = tensor if alone else old.index_copy(0, index, tensor)
            for row in group:
                cache.met[row] = decoding.seen
            return x_BTD

        x_BTD = _scattered(tokens_BT, rows, advance, cache.met)
        cache.length += time
        return x_BTD

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *more: Any, **named: Any
    ) -> None:
        """What is generated with has a cache of this model.

        Raises:
            ValueError: if another kind is asked for.
        """
        wanted = generation_config.cache_implementation
        if wanted not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={wanted!r} cannot hold the states of this model"
            )
        if generation_config.use_cache is not False:
            model_kwargs.setdefault("past_key_values", ArchSearchCache(self._rewinds))

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the parameters of one module, those that were loaded not."""
        if not self._starts:
            modules = dict(self.model.named_modules())
            for name, init in self.model.each_start():
                path, _, own = name.rpartition(".")
                self._starts[id(modules[path]), own] = init
        for name, parameter in module.named_parameters(recurse=False):
            if not getattr(parameter, "_is_hf_initialized", False):
                self._starts[id(module), name](parameter, None)


def _rows(mask: Tensor | None, tokens_BT: Tensor) -> list[tuple[int, int]] | None:
    """Where the text of each row begins and ends; None where nothing is padded.

    Raises:
        ValueError: if padding stands inside a text.
    """
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[1] < tokens_BT.shape[1]:
        shape = tuple(mask.shape)
        raise ValueError(f"attention_mask has shape {shape}; it is one number for each token")
    real_BT = mask[:, mask.shape[1] - tokens_BT.shape[1] :] != 0
    if bool(real_BT.all()):
        return None
    counts, firsts = real_BT.sum(1).tolist(), real_BT.int().argmax(1).tolist()
    rows = [(first, first + count) for first, count in zip(firsts, counts, strict=True)]
    for row, (first, stop) in enumerate(rows):
        if not bool(real_BT[row, first:stop].all()):
            raise ValueError(f"row {row} of attention_mask has padding inside its text")
    return rows


def _scattered(
    tokens_BT: Tensor,
    rows: list[tuple[int, int]],
    run: Callable[[list[int], Tensor], Tensor],
    met: list[int] | None = None,
) -> Tensor:
    """What `run` makes of the texts of rows; 0 at padding.

    Rows whose texts stand at the same place, and that have met as many tokens, go together.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, place in enumerate(rows):
        groups.setdefault((*place, met[row] if met else 0), []).append(row)
    found: Tensor | None = None
    for (first, stop, _), group in groups.items():
        if first == stop:
            continue
        index = torch.tensor(group, device=tokens_BT.device)
        x_GTD = run(group, tokens_BT[index, first:stop])
        if len(groups) == 1 and stop - first == tokens_BT.shape[1]:
            return x_GTD
        if found is None:
            found = x_GTD.new_zeros(*tokens_BT.shape, x_GTD.shape[-1])
        found[index, first:stop] = x_GTD
    if found is None:
        raise ValueError("attention_mask has no text, padding alone")
    return found

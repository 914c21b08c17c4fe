"""The config of an exported model as Hugging Face keeps it; for transformers from 5.5 on."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class ArchSearchConfig(PreTrainedConfig):  # type: ignore[misc]
    """What a model is made of.

    Args:
        architecture: What the modelling code builds; its keys are explained there.
        genome: The same as archsearch writes it, to go on with there. Nothing here reads it.
        named: What every config has.
    """

    model_type = "archsearch"

    def __init__(
        self,
        architecture: dict[str, Any] | None = None,
        genome: dict[str, Any] | None = None,
        **named: Any,
    ) -> None:
        self.genome = genome
        self.architecture = known = architecture or {}
        for name, value in {
            "vocab_size": known.get("vocab", 0),
            "hidden_size": known.get("width", 0),
            "num_hidden_layers": len(known.get("stack", ())),
            "tie_word_embeddings": known.get("tie_embeddings", False),
            "use_cache": True,
        }.items():
            named.setdefault(name, value)
        self.vocab_size, self.hidden_size = named.pop("vocab_size"), named.pop("hidden_size")
        self.num_hidden_layers = named.pop("num_hidden_layers")
        self.use_cache = named.pop("use_cache")
        super().__init__(**named)

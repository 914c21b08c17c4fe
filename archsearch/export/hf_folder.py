"""A model as a directory that `AutoModelForCausalLM.from_pretrained` loads, code included."""

from __future__ import annotations

import importlib.resources
import json
from typing import TYPE_CHECKING, Any

from archsearch.errors import ExportError
from archsearch.export.architecture import architecture, blocks_of
from archsearch.export.bundle import RUNTIME, Bundle
from archsearch.export.torch_file import bundled, import_lines, in_words

if TYPE_CHECKING:
    from archsearch.model import Model

CONFIGURATION = "configuration_archsearch"
MODELING = "modeling_archsearch"
LEAST = "5.5.0"
"""The first version of transformers that the code is for."""


def hf_files(model: Model, end: int | None) -> dict[str, str]:
    """The text files of a model, by name; its weights and its tokenizer are not among them.

    Args:
        model: The model.
        end: The id that stands between documents; None if there is none.

    Raises:
        ExportError: if it is no language model, or the source of a block cannot be moved.
    """
    if model.readout_kind != "token":
        raise ExportError(
            "a model that rebuilds its input from a code is no language model; --format torch or "
            "yaml can hold it"
        )
    plain = architecture(model)
    special = {} if end is None else {f"{part}_token_id": end for part in ("bos", "eos", "pad")}
    config: dict[str, Any] = {
        "architectures": ["ArchSearchForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{CONFIGURATION}.ArchSearchConfig",
            "AutoModelForCausalLM": f"{MODELING}.ArchSearchForCausalLM",
        },
        "model_type": "archsearch",
        "dtype": "float32",
        "transformers_version": LEAST,
        "vocab_size": plain["vocab"],
        "hidden_size": plain["width"],
        "num_hidden_layers": len(plain["stack"]),
        "tie_word_embeddings": plain["tie_embeddings"],
        "use_cache": plain["causal"],
        **special,
        "architecture": plain,
        "genome": {"key": model.genome.key, **model.genome.to_json()},
    }
    generation = {"transformers_version": LEAST, **special}
    place = importlib.resources.files("archsearch.export.runtime") / f"{CONFIGURATION}.py"
    return {
        "config.json": json.dumps(config, indent=2) + "\n",
        "generation_config.json": json.dumps(generation, indent=2) + "\n",
        f"{CONFIGURATION}.py": place.read_text().replace("  # type: ignore[misc]", ""),
        f"{MODELING}.py": _modeling(model, plain),
    }


def _modeling(model: Model, plain: dict[str, Any]) -> str:
    bundle = Bundle(
        blocks_of(model), plain, beside=(f"{RUNTIME}.{CONFIGURATION}",), given=("BLOCKS",)
    )
    definitions = bundled(bundle, f"{RUNTIME}.huggingface", "ArchSearchForCausalLM")
    return f'"""{in_words(model)}"""\n\n{import_lines(bundle.imports)}\n\n{definitions}'

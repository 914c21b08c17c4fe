"""Run by path in a process of its own: an exported directory says what it said when it was written.

    python reloaded.py torch|hf DIR PROBE [DIR PROBE ...]

A PROBE holds tokens_BT and the logits_BTV that they must have. The largest deviations of a whole
pass and of a cached decode, over the largest logit or 1, are printed as a line of JSON for each.

Shapes: B batch, T time, V vocabulary.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FIRST = 5
"""Tokens that a decode begins with at once."""


def torch_model(folder: Path) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The model of a Python file: a whole pass, and a decode."""
    spec = importlib.util.spec_from_file_location("exported", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["exported"] = module
    spec.loader.exec_module(module)
    model = module.load()

    def decode(tokens_BT: Tensor) -> Tensor:
        decoding = model.start(len(tokens_BT), FIRST)
        parts = [model.logits(model.advance(tokens_BT[:, :FIRST], decoding))]
        parts += [model.step(token_B, decoding)[:, None] for token_B in tokens_BT.T[FIRST:]]
        return torch.cat(parts, 1)

    return model, decode


def hf_model(folder: Path) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The model of a Hugging Face directory: a whole pass, and a decode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    if (folder / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        assert len(tokenizer) <= model.config.vocab_size, "the tokenizer has more tokens"

    def decode(tokens_BT: Tensor) -> Tensor:
        parts, cache = [], None
        for part_BT in (tokens_BT[:, :FIRST], *tokens_BT[:, FIRST:].split(1, 1)):
            out = model(part_BT, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        return torch.cat(parts, 1)

    return lambda tokens_BT: model(tokens_BT).logits, decode


@torch.no_grad()
def compare(kind: str, folder: Path, probe: Path) -> dict[str, float]:
    """How far off the model in a directory is."""
    whole, decode = {"torch": torch_model, "hf": hf_model}[kind](folder)
    wanted = load_file(probe)
    tokens_BT, logits_BTV = wanted["tokens"], wanted["logits"]
    scale = max(1.0, float(logits_BTV.abs().max()))
    found = {"logits": float((whole(tokens_BT) - logits_BTV).abs().max()) / scale}
    if "decode" in wanted:
        found["decode"] = float((decode(tokens_BT) - logits_BTV).abs().max()) / scale
    return found


if __name__ == "__main__":
    sys.modules["archsearch"] = None  # type: ignore[assignment]
    for folder, probe in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        print(json.dumps(compare(sys.argv[1], Path(folder), Path(probe))))  # noqa: T201

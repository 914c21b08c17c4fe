"""The page that explains an exported model."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from archsearch.model import cost
from archsearch.words import count, size

if TYPE_CHECKING:
    from archsearch.export.origin import Origin
    from archsearch.genome import Genome

PICTURE = "architecture.svg"
CONTEXTS = (1024, 32_768)
HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- archsearch
- custom_code
---
"""
USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place!r}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({place!r}, trust_remote_code=True)
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```
"""
USE_IDS = """\
```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({place!r}, trust_remote_code=True)
logits = model(torch.tensor([[0, 1, 2]])).logits
```

Its tokens are those of a task, the ids 0 to {last}: there is no text and no tokenizer.
"""


def card(origin: Origin, place: str) -> str:
    """A model card in Markdown; the picture stands beside it as `PICTURE`."""
    genome = origin.model.genome
    use = (USE if origin.tokenizer else USE_IDS).format(place=place, last=origin.model.vocab - 1)
    rows = "".join(f"| {name} | {value} |\n" for name, value in _figures(origin).items())
    lines = [
        f"# {place}", "", f"`{genome.text()}`", "",
        f"An architecture found by archsearch {version('archsearch')}; weights: {origin.what}.", "",
        f"![{genome.key}]({PICTURE})", "",
        "| | |\n|---|---|", rows, "## Use", "", use,
        "The code comes with the model, hence `trust_remote_code`; it needs torch and transformers "
        "from 5.5 on. Batches may be padded on the left. " + _decoding(genome), "",
        "Factors that follow from the size of the model (muP) are in the weights and in "
        "`config.json`; nothing has to be set.", "",
        "Code of archsearch is under the Apache License 2.0.", "",
    ]  # fmt: skip
    return HEAD + "\n".join(lines)


def _figures(origin: Origin) -> dict[str, str]:
    model, genome = origin.model, origin.model.genome
    params = sum(p.numel() for p in model.parameters())
    figures = {
        "genome": f"`{genome.key}`",
        "parameters": f"{count(params)}, with embeddings",
        "width, branches": f"{genome.d_model}, {len(genome.genes)}",
        "vocabulary": str(model.vocab),
    }
    for context in CONTEXTS:
        known = cost(genome, context)
        figures[f"FLOPs per token at {context:,}"] = f"{count(known.flops)}, without the readout"
        if not genome.bidirectional:
            figures[f"decode state at {context:,}"] = size(known.state_bytes)
    return {**figures, **origin.figures}


def _decoding(genome: Genome) -> str:
    if genome.bidirectional:
        return "A block looks ahead, so the model gives logits but cannot generate."
    short, long = (cost(genome, context).state_bytes for context in CONTEXTS)
    if short == long:
        return "Decoding keeps a state of constant size, however long the text."
    return "What decoding keeps grows with the text."

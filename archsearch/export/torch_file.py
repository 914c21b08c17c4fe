"""A model as one Python file that needs torch alone."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from archsearch.dims import word
from archsearch.export.architecture import architecture, blocks_of
from archsearch.export.bundle import RUNTIME, Bundle
from archsearch.export.literals import LINE, literal
from archsearch.export.sources import Import
from archsearch.words import count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from archsearch.genome import Gene
    from archsearch.model import Model

NAME = "model.py"
USAGE = """\
    from model import load

    model = load()                              # with the weights in model.safetensors
    logits_BTV = model(tokens_BT)               # of a whole text
    decoding = model.start(batch=1)             # or token by token
    logits_BV = model.step(token_B, decoding)

Model(ARCHITECTURE, BLOCKS).init() has new weights. In training, what blocks add to the loss of the
task is collected by model(tokens_BT, losses=[])."""
LOAD = '''\
def load(weights: str | Path | None = None) -> Model:
    """The model for evaluation, with the weights beside this file unless others are named."""
    from safetensors.torch import load_model

    model = Model(ARCHITECTURE, BLOCKS)
    load_model(model, weights or Path(__file__).with_name("model.safetensors"))
    return model.eval()
'''


def torch_source(model: Model) -> str:
    """The Python file of a model.

    Raises:
        ExportError: if the source of a block is not there or cannot be moved.
    """
    plain = architecture(model)
    given = ("ARCHITECTURE", "BLOCKS", "Path", "load")
    bundle = Bundle(blocks_of(model), plain, given=given)
    definitions = bundled(bundle, f"{RUNTIME}.model", "Model")
    needed = {"Any": Import("typing", "Any"), "Path": Import("pathlib", "Path")}
    return "\n".join((
        f'"""{in_words(model)}\n\n{USAGE}\n"""\n',
        import_lines(bundle.imports | needed),
        f"ARCHITECTURE: dict[str, Any] = {literal(plain, used=34)}",
        '"""What each of them means stands above `Model`."""\n\n',
        definitions,
        "\n\n" + LOAD,
    ))  # fmt: skip


def bundled(bundle: Bundle, module: str, name: str) -> str:
    """Blocks with the model `name` around them, and a table of the blocks at the end."""
    for place in (*bundle.used, (module, name)):
        bundle.need(*place)
    names = bundle.names()
    lines = [f'    "{kind.info.name}": {names[place]},' for place, kind in bundle.kinds.items()]
    table = "\n".join(("BLOCKS: dict[str, type[Block]] = {", *lines, "}"))
    return f"{bundle.render(names)}\n\n\n{table}\n"


def import_lines(imports: Mapping[str, Import]) -> str:
    """Import statements, the standard library first."""
    names: dict[str, list[str]] = {}
    modules = []
    for known_as, found in imports.items():
        module, what = found.line(known_as)
        if module:
            names.setdefault(module, []).append(what)
        else:
            modules.append((what, f"import {what}"))
    lines = modules + [(module, _from(module, sorted(what))) for module, what in names.items()]
    groups: dict[int, list[str]] = {}
    for module, line in sorted(lines, key=lambda item: (not item[1].startswith("import"), item)):
        root = module.split(".")[0].split(" ")[0]
        rank = 2 if not root else 0 if root in sys.stdlib_module_names else 1
        groups.setdefault(rank, []).append(line)
    text = "\n\n".join("\n".join(groups[rank]) for rank in sorted(groups))
    return f"from __future__ import annotations\n\n{text}\n"


def _from(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= LINE:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"


def in_words(model: Model) -> str:
    """What a model is, and what may be done with it."""
    genome = model.genome
    params = count(sum(p.numel() for p in model.parameters()))
    return "\n".join((
        f"Language model {genome.key}, written by archsearch {version('archsearch')}.",
        "",
        f"{params} parameters with embeddings, width {genome.d_model}, {model.vocab} tokens. Its",
        "residual branches, from the embeddings on:",
        "",
        *_branches(genome.genes, ""),
        "",
        "Code of archsearch is under the Apache License 2.0.",
    ))  # fmt: skip


def _branches(genes: Sequence[Gene], within: str) -> Iterator[str]:
    for number, gene in enumerate(genes, 1):
        place, said = f"{within}{number}", [f"{k} {word(v)}" for k, v in gene.changed.items()]
        if gene.share:
            said.insert(0, f"weights {gene.share}")
        if gene.inputs:
            reads = ", ".join("embeddings" if n == 0 else f"after {n}" for n in gene.inputs)
            said.append(f"reads {gene.combine} of {reads}" if len(gene.inputs) > 1 else reads)
        line = f"{place:>6}  {gene.block:<16}  {', '.join(said)}".rstrip()
        yield line if len(line) <= LINE else line[: LINE - 3] + "..."
        yield from _branches(gene.inner, f"{place}.")

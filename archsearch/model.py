"""From a genome to a model: the graph of residual branches, and the module that runs it.

Shapes: B batch, T time, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import networkx as nx
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import (
    Block,
    Ctx,
    Role,
    State,
    block_class,
    init_weights,
    normal,
    ones,
    role_of,
    zeros,
)
from archsearch.catalogue import block_info
from archsearch.cost import NOTHING, Cost
from archsearch.errors import BlockError

if TYPE_CHECKING:
    from archsearch.genome import Gene, Genome

EMBEDDING, READOUT = "embedding", "readout"
Readout = Literal["token", "code"]
"""token: logits at every position. code: all tokens rebuilt from the last position (MAD)."""


def unroll(genome: Genome) -> nx.DiGraph[Any]:
    """The genome as a graph of residual branches, from "embedding" to "readout".

    Nodes 0, 1, ... carry `gene`, `module` (the name of its weights) and `use` (how often these
    weights were used before). An edge carries what it does: a "stream" edge brings the residual
    stream, a "side" edge an output that is added to the input of this one branch alone.
    """
    graph: nx.DiGraph[Any] = nx.DiGraph()
    stream: str | int = EMBEDDING
    sides: list[int] = []
    uses: dict[str, int] = {}
    for index, gene in enumerate(genome.genes):
        module = gene.share or str(index)
        uses[module] = uses.get(module, -1) + 1
        graph.add_node(index, gene=gene, module=module, use=uses[module])
        graph.add_edge(stream, index, kind="stream")
        graph.add_edges_from(((side, index) for side in sides), kind="side")
        if block_info(gene.block).joins == "next":
            sides = [index]
        else:
            stream, sides = index, []
    graph.add_edge(stream, READOUT, kind="stream")
    return graph


@dataclass(frozen=True, slots=True)
class _Node:
    """One residual branch, ready to run."""

    index: int
    module: str
    use: int
    stream: str | int
    sides: tuple[int, ...]
    joins: bool
    prenorm: bool


@dataclass(slots=True)
class Decoding:
    """What `Model.step` carries from token to token."""

    states: list[State]
    context: int
    """Most tokens that the states were made for."""
    position: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of all states."""
        return sum(t.numel() * t.element_size() for s in self.states for t in s.values())


class Model(nn.Module):
    """A language model with the architecture of `genome`.

    Weights are uninitialised until `init` or `load_state_dict`; `build` does both steps.

    Raises:
        BlockError: if a block cannot be built at this width.
    """

    def __init__(self, genome: Genome, vocab: int, readout: Readout = "token") -> None:
        super().__init__()
        self.genome, self.vocab, self.readout_kind = genome, vocab, readout
        graph = unroll(genome)
        self.nodes = tuple(_node(graph, index) for index in range(len(genome.genes)))
        self.embedding = nn.Embedding(vocab, genome.d_model)
        self.blocks = nn.ModuleDict(_modules(genome, self.nodes))
        self.norms = nn.ModuleDict(
            {n.module: _norm(genome) for n in self.nodes if n.prenorm and n.use == 0}
        )
        self.final_norm = _norm(genome)
        self.decoder = CodeDecoder(genome.d_model) if readout == "code" else nn.Identity()
        self.readout = nn.Linear(genome.d_model, vocab, bias=False)
        self._tie()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits_BTV for token ids_BT."""
        embedding_BTD = self.embedding(tokens_BT)
        outputs: dict[str | int, Tensor] = {EMBEDDING: embedding_BTD}
        for node in self.nodes:
            ctx = Ctx(embedding=embedding_BTD, use=node.use)
            stream_BTD = outputs[node.stream]
            y_BTD = self.blocks[node.module](self._input(node, outputs), ctx)
            outputs[node.index] = stream_BTD + y_BTD if node.joins else y_BTD
        return self._logits(outputs)

    def start(self, batch: int, context: int) -> Decoding:
        """The decode state before the first token, for at most `context` tokens."""
        blocks = [self._block(node) for node in self.nodes]
        return Decoding([block.init_state(batch, context) for block in blocks], context)

    def step(self, token_B: Tensor, decoding: Decoding) -> Tensor:
        """Logits_BV after one more token; `decoding` moves on by one position.

        Raises:
            BlockError: if the context that `start` was told of is full.
        """
        if decoding.position >= decoding.context:
            raise BlockError(f"the context of {decoding.context} tokens is full; start with more")
        embedding_BD = self.embedding(token_B)
        outputs: dict[str | int, Tensor] = {EMBEDDING: embedding_BD}
        for node in self.nodes:
            at = decoding.position
            ctx = Ctx(embedding=embedding_BD, position=at, seen=at, use=node.use)
            x_BD, state = self._input(node, outputs), decoding.states[node.index]
            y_BD, decoding.states[node.index] = self._block(node).step(x_BD, state, ctx)
            outputs[node.index] = outputs[node.stream] + y_BD if node.joins else y_BD
        decoding.position += 1
        return self._logits(outputs)

    @torch.no_grad()
    def init(self, generator: Generator) -> Model:
        """Start every weight from an explicit random stream, as its role says."""
        for name in sorted(self.blocks):
            block = self.blocks[name]
            init_weights(block, block.roles, generator)  # type: ignore[arg-type]
        own = {name: child for name, child in self.named_children() if name != "blocks"}
        init_weights(nn.ModuleDict(own), ROLES, generator)
        return self

    def role_of(self, name: str) -> Role:
        """The role of one of `named_parameters()`."""
        if not name.startswith("blocks."):
            return role_of(ROLES, name)
        _, module, rest = name.split(".", 2)
        return role_of(self.blocks[module].roles, rest)  # type: ignore[arg-type]

    def _apply(self, fn: Any, recurse: bool = True) -> Model:
        """Move every tensor; a move off the meta device parts weights that are one."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tie()
        return self

    def _tie(self) -> None:
        if self.genome.tie_embeddings:
            self.readout.weight = self.embedding.weight

    def _block(self, node: _Node) -> Block:
        return self.blocks[node.module]  # type: ignore[return-value]

    def _input(self, node: _Node, outputs: dict[str | int, Tensor]) -> Tensor:
        x = outputs[node.stream]
        for side in node.sides:
            x = x + outputs[side]
        return self.norms[node.module](x) if node.prenorm else x

    def _logits(self, outputs: dict[str | int, Tensor]) -> Tensor:
        last = next(n for n in reversed(self.nodes) if n.joins).index
        return self.readout(self.decoder(self.final_norm(outputs[last])))


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


ROLES = {
    "embedding.weight": Role.embedding(None, "model", init=normal(1.0)),
    "readout.weight": Role.readout(None, "model"),
    "*norm.weight": Role.vector("model", init=ones),
    "*norm.bias": Role.vector("model", init=zeros),
    "norms.*.weight": Role.vector("model", init=ones),
    "norms.*.bias": Role.vector("model", init=zeros),
    "decoder.*.weight": Role.hidden("model", "model"),
    "decoder.*.bias": Role.vector("model", init=zeros),
}


def build(
    genome: Genome,
    vocab: int,
    readout: Readout = "token",
    *,
    generator: Generator,
) -> Model:
    """A model with weights drawn from `generator`.

    Raises:
        BlockError: if a block cannot be built, or a parameter has no role.
    """
    with torch.device("meta"):
        model = Model(genome, vocab, readout)
    return model.to_empty(device="cpu").init(generator)


def cost(genome: Genome, seq_len: int) -> Cost:
    """Cost of the stack: everything but embeddings and readout, which depend on the task.

    Raises:
        BlockError: if a block cannot be built at this width.
    """
    total = NOTHING
    norm_params = genome.d_model * (2 if genome.norm == "layer" else 1)
    seen: set[str] = set()
    for index, gene in enumerate(genome.genes):
        kind, config = configured(gene)
        kind.check(genome.d_model, config)
        one, module = kind.cost(genome.d_model, config, seq_len), gene.share or str(index)
        norm = norm_params if kind.prenorm else 0
        again = kind.params_per_use(genome.d_model, config)
        total += Cost(
            params=again if module in seen else one.params + norm,
            active_params=one.active_params + norm,
            flops=one.flops,
            state_bytes=one.state_bytes,
        )
        seen.add(module)
    return total + Cost(params=norm_params, active_params=norm_params, flops=0.0, state_bytes=0)


def configured(gene: Gene) -> tuple[type[Block], Any]:
    """The class and the config of a gene."""
    kind = block_class(gene.block)
    return kind, kind.Config(**dict(gene.params))


def _modules(genome: Genome, nodes: tuple[_Node, ...]) -> dict[str, Block]:
    uses = {node.module: node.use + 1 for node in nodes}
    modules: dict[str, Block] = {}
    for node, gene in zip(nodes, genome.genes, strict=True):
        if node.use:
            continue
        kind, config = configured(gene)
        kind.check(genome.d_model, config)
        extra = {"uses": uses[node.module]} if kind.per_use else {}
        modules[node.module] = kind(genome.d_model, config, **extra)
    return modules


def _node(graph: nx.DiGraph[Any], index: int) -> _Node:
    data = graph.nodes[index]
    before: dict[str, list[Any]] = {"stream": [], "side": []}
    edges: Any = graph.in_edges(index, data="kind")
    for source, _, does in edges:
        before[does].append(source)
    info, kind = block_info(data["gene"].block), block_class(data["gene"].block)
    return _Node(
        index=index, module=data["module"], use=data["use"], stream=before["stream"][0],
        sides=tuple(before["side"]), joins=info.joins == "stream", prenorm=kind.prenorm,
    )  # fmt: skip


def _norm(genome: Genome) -> nn.Module:
    if genome.norm == "layer":
        return nn.LayerNorm(genome.d_model)
    return nn.RMSNorm(genome.d_model, eps=1e-5)

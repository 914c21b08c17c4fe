"""Residual branches in order: what a model is between embedding and readout, and inside a wrapper.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import torch
from torch import Tensor, nn

from archsearch.block import Block, Ctx, Role, State, block_class, ones, role_of, zeros
from archsearch.canonical import nested, sharing
from archsearch.catalogue import block_info
from archsearch.cost import NOTHING, Cost, Held
from archsearch.edges import EDGE_ROLES, Combine
from archsearch.kernels.rms_norm import RMSNorm
from archsearch.wrapper import Inner

if TYPE_CHECKING:
    from archsearch.genome import Gene, Genome

INPUT, OUTPUT = "input", "output"


def unroll(genes: Sequence[Gene]) -> nx.DiGraph[Any]:
    """Branches as a graph, from "input" to "output".

    Nodes 0, 1, ... carry their `gene`. An edge carries what it does: a "stream" edge brings the
    residual stream, a "side" edge an output that is added to the input of this one branch alone, an
    "input" edge another stream that the branch `reads`.
    """
    graph: nx.DiGraph[Any] = nx.DiGraph()
    stream: str | int = INPUT
    sides: list[int] = []
    for index, gene in enumerate(genes):
        graph.add_node(index, gene=gene)
        graph.add_edge(stream, index, kind="stream")
        reads = [INPUT if n == 0 else n - 1 for n in gene.inputs]
        graph.nodes[index]["reads"] = tuple(reads or [stream])
        graph.add_edges_from(((n, index) for n in reads if n != stream), kind="input")
        graph.add_edges_from(((side, index) for side in sides), kind="side")
        if block_info(gene.block).joins == "next":
            sides = [index]
        else:
            stream, sides = index, []
    graph.add_edge(stream, OUTPUT, kind="stream")
    return graph


class Branch(nn.Module):
    """A block with the norms around it."""

    def __init__(self, block: Block, genome: Genome) -> None:
        super().__init__()
        self.block = block
        self.place = genome.norm_place if block.prenorm else "none"
        if self.place != "none":
            self.norm = make_norm(genome)
        if self.place == "sandwich":
            self.post_norm = make_norm(genome)

    def join(self, x: Tensor, y: Tensor, multiplier: float) -> Tensor:
        """The stream after the branch, from the stream before it and the branch's output."""
        sum_ = torch.add(x, y, alpha=multiplier)
        return self.norm(sum_) if self.place == "post" else sum_

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """The output of the branch."""
        return self._out(self.block(self._in(x_BTD), ctx))

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """The output for one token."""
        y_BD, state = self.block.step(self._in(x_BD), state, ctx)
        return self._out(y_BD), state

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """The outputs for several tokens, and the state behind them."""
        y_BTD, state = self.block.prefill(self._in(x_BTD), state, ctx)
        return self._out(y_BTD), state

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """The output by the block's oracle."""
        return self._out(self.block.oracle(self._in(x_BTD), ctx))

    def _in(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.place in ("pre", "sandwich") else x

    def _out(self, y: Tensor) -> Tensor:
        return self.post_norm(y) if self.place == "sandwich" else y


@dataclass(frozen=True, slots=True)
class _Node:
    """One branch, ready to run."""

    index: int
    name: str
    use: int
    stream: str | int
    reads: tuple[str | int, ...]
    sides: tuple[int, ...]
    joins: bool
    multiplier: float
    """What its output is multiplied by where it joins the stream. 1 for a wrapper that holds a
    chain: the branches in there have joined it already."""


Run = Callable[[_Node, Tensor, Ctx], Tensor]
Go = Callable[[Branch, Tensor, State, Ctx], tuple[Tensor, State]]


class Stack(Inner):
    """The branches of `genes`, as parts of a model of `genome`.

    Raises:
        BlockError: if a block cannot be built at this width.
    """

    def __init__(self, genome: Genome, genes: Sequence[Gene], made: Weights | None = None) -> None:
        super().__init__()
        made = made or Weights(genome)
        graph = unroll(genes)
        self.nodes: tuple[_Node, ...] = ()
        self.branches, self.edges = nn.ModuleDict(), nn.ModuleDict()
        for index, gene in enumerate(genes):
            name = gene.share or str(index)
            self.branches[name], use = made.branch(gene)
            self.nodes += (_node(graph, index, name, use, made.multiplier),)
            if len(gene.inputs) > 1:
                self.edges[str(index)] = Combine(gene, genome.d_model)

    @property
    def count(self) -> int:
        """Number of branches."""
        return len(self.nodes)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """The stream after the last branch."""
        return deque(self.streams(x_BTD, ctx), maxlen=1)[0]

    def streams(self, x_BTD: Tensor, ctx: Ctx, dropout: float = 0.0) -> Iterator[Tensor]:
        """The stream after each branch that joins it.

        With `dropout`, branch l of L is skipped for a sequence with chance
        dropout * (2^(l / (L - 1)) - 1) (LayerSkip, arXiv 2404.16710, section 4.1).
        """

        def run(node: _Node, x: Tensor, ctx: Ctx) -> Tensor:
            y_BTD = self._branch(node)(x, ctx)
            if not dropout or ctx.noise is None:
                return y_BTD
            depth = node.index / max(1, len(self.nodes) - 1)
            draw_B = torch.rand(len(x), generator=ctx.noise, dtype=torch.float32)
            kept_B = (draw_B >= dropout * (2**depth - 1)).to(x)
            return y_BTD * kept_B[:, None, None]

        return self._walk(x_BTD, ctx, run)

    def each(self, x_BTD: Tensor, ctx: Ctx) -> list[Tensor]:
        """The output of every branch for the same input."""
        return [self._branch(node)(x_BTD, _used(ctx, node)) for node in self.nodes]

    def init_state(self, batch: int, context: int) -> State:
        """The decode states of all branches: `<branch>.<name>`."""
        return {
            f"{node.index}.{name}": tensor
            for node in self.nodes
            for name, tensor in self._branch(node).block.init_state(batch, context).items()
        }

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """`forward` for one token."""
        return self._onward(x_BD, state, ctx, Branch.step)

    def step_each(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[list[Tensor], State]:
        """`each` for one token."""
        return self._onward_each(x_BD, state, ctx, Branch.step)

    def prefill(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        """`step` for several tokens at once."""
        return self._onward(x_BTD, state, ctx, Branch.prefill)

    def prefill_each(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[list[Tensor], State]:
        """`step_each` for several tokens at once."""
        return self._onward_each(x_BTD, state, ctx, Branch.prefill)

    def _onward(self, x: Tensor, state: State, ctx: Ctx, go: Go) -> tuple[Tensor, State]:
        parts = _parts(state)

        def run(node: _Node, x: Tensor, ctx: Ctx) -> Tensor:
            y, parts[node.index] = go(self._branch(node), x, parts.get(node.index, {}), ctx)
            return y

        return deque(self._walk(x, ctx, run), maxlen=1)[0], _joined(parts)

    def _onward_each(self, x: Tensor, state: State, ctx: Ctx, go: Go) -> tuple[list[Tensor], State]:
        parts, outputs = _parts(state), []
        for node in self.nodes:
            own = parts.get(node.index, {})
            y, parts[node.index] = go(self._branch(node), x, own, _used(ctx, node))
            outputs.append(y)
        return outputs, _joined(parts)

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        """`forward` with the oracle of every block."""

        def run(node: _Node, x: Tensor, ctx: Ctx) -> Tensor:
            return self._branch(node).oracle(x, ctx)

        return deque(self._walk(x_BTD, ctx, run), maxlen=1)[0]

    def oracle_each(self, x_BTD: Tensor, ctx: Ctx) -> list[Tensor]:
        """`each` with the oracle of every block."""
        return [self._branch(node).oracle(x_BTD, _used(ctx, node)) for node in self.nodes]

    def role_of(self, name: str) -> Role:
        """The role of one of `named_parameters()`."""
        kind, branch, part, *rest_of_it = name.split(".", 3)
        if kind == "edges":
            return role_of(EDGE_ROLES, part)
        rest = rest_of_it[0]
        if part != "block":
            return role_of(NORM_ROLES, rest)
        block = self._named(branch).block
        inner = getattr(block, "inner", None)
        if isinstance(inner, Stack) and rest.startswith("inner."):
            return inner.role_of(rest.removeprefix("inner."))
        return role_of(block.roles, rest)

    def _walk(self, x: Tensor, ctx: Ctx, run: Run) -> Iterator[Tensor]:
        outputs: dict[str | int, Tensor] = {INPUT: x}
        for node in self.nodes:
            stream = outputs[node.stream]
            read = outputs[node.reads[0]]
            if len(node.reads) > 1:
                read = self.edges[str(node.index)]([outputs[name] for name in node.reads])
            for side in node.sides:
                read = read + outputs[side]
            y = run(node, read, _used(ctx, node))
            outputs[node.index] = y
            if node.joins:
                outputs[node.index] = self._branch(node).join(stream, y, node.multiplier)
                yield outputs[node.index]

    def _branch(self, node: _Node) -> Branch:
        return self._named(node.name)

    def _named(self, name: str) -> Branch:
        branch: Any = self.branches[name]
        assert isinstance(branch, Branch)
        return branch


class Weights:
    """Makes each branch of a genome once, for all of its uses.

    Args:
        genome: Whose branches.
        multiplier: What the output of each is multiplied by, see `mup.branch_multiplier`.
    """

    def __init__(self, genome: Genome, multiplier: float = 1.0) -> None:
        self.genome, self.multiplier = genome, multiplier
        self.uses = {share: len(genes) for share, genes in sharing(genome.genes).items()}
        self.made: dict[str, Branch] = {}
        self.met: dict[str, int] = {}

    def branch(self, gene: Gene) -> tuple[Branch, int]:
        """The branch of a gene, and how often its weights were used before."""
        use = self.met.get(gene.share or "", 0)
        if gene.share is None:
            return self._make(gene, 1), 0
        self.met[gene.share] = use + 1
        if gene.share not in self.made:
            self.made[gene.share] = self._make(gene, self.uses[gene.share])
        return self.made[gene.share], use

    def _make(self, gene: Gene, uses: int) -> Branch:
        kind, config = configured(gene)
        kind.check(self.genome.d_model, config)
        extra: dict[str, Any] = {"uses": uses} if kind.per_use else {}
        if gene.inner:
            extra = {"inner": Stack(self.genome, gene.inner, self)}
        return Branch(kind(self.genome.d_model, config, **extra), self.genome)


def configured(gene: Gene) -> tuple[type[Block], Any]:
    """The class and the config of a gene."""
    kind = block_class(gene.block)
    return kind, kind.Config(**dict(gene.params))


def make_norm(genome: Genome) -> nn.Module:
    """The norm that a genome has around its branches."""
    if genome.norm == "layer":
        return nn.LayerNorm(genome.d_model)
    return RMSNorm(genome.d_model, eps=1e-5)


NORM_ROLES = {
    "weight": Role.vector("model", init=ones),
    "bias": Role.vector("model", init=zeros),
}


def stack_cost(
    genome: Genome, genes: Sequence[Gene], seq_len: int, seen: set[str] | None = None
) -> Cost:
    """Cost of branches with their norms; parameters of the shared weights in `seen` are left out.

    Raises:
        BlockError: if a block cannot be built at this width.
    """
    total, met = NOTHING, seen if seen is not None else set()
    norm = norm_params(genome) * (2 if genome.norm_place == "sandwich" else 1)
    for gene in genes:
        kind, config = configured(gene)
        kind.check(genome.d_model, config)
        one = _cost(genome, gene, seq_len, met)
        around = norm if kind.prenorm else 0
        known = gene.share in met
        again = kind.params_per_use(genome.d_model, config)
        total += Cost(
            params=again if known else one.params + around,
            active_params=one.active_params + around,
            flops=one.flops,
            state_bytes=one.state_bytes,
        )
        total += Combine.cost(gene, genome.d_model)
        met |= {g.share for g in nested([gene]) if g.share}
    return total


def norm_params(genome: Genome) -> int:
    """Parameters of one norm."""
    return genome.d_model * (2 if genome.norm == "layer" else 1)


def _cost(genome: Genome, gene: Gene, seq_len: int, met: set[str]) -> Cost:
    kind, config = configured(gene)
    if not gene.inner:
        return kind.cost(genome.d_model, config, seq_len)
    held = Held(len(gene.inner), lambda time: stack_cost(genome, gene.inner, time, set(met)))
    wrapper: Any = kind
    cost: Cost = wrapper.cost(genome.d_model, config, seq_len, held)
    return cost


def _node(graph: nx.DiGraph[Any], index: int, name: str, use: int, multiplier: float) -> _Node:
    before: dict[str, list[Any]] = {"stream": [], "side": [], "input": []}
    edges: Any = graph.in_edges(index, data="kind")
    for source, _, does in edges:
        before[does].append(source)
    data = graph.nodes[index]
    info = block_info(data["gene"].block)
    stream, sides = before["stream"][0], tuple(before["side"])
    once = 1.0 if info.wraps == "chain" else multiplier
    return _Node(index, name, use, stream, data["reads"], sides, info.joins == "stream", once)


def _used(ctx: Ctx, node: _Node) -> Ctx:
    return ctx if ctx.use == node.use else dataclasses.replace(ctx, use=node.use)


def _parts(state: State) -> dict[int, State]:
    """The state of each branch, from that of all."""
    parts: dict[int, State] = {}
    for name, tensor in state.items():
        index, _, own = name.partition(".")
        parts.setdefault(int(index), {})[own] = tensor
    return parts


def _joined(parts: dict[int, State]) -> State:
    return {f"{index}.{name}": t for index, part in parts.items() for name, t in part.items()}

"""Residual branches in order: what a model is between embedding and readout, or a wrapper holds.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.export.runtime.block import Block, Ctx, Init, State, fan_in, ones, zeros


class Branch(nn.Module):
    """A block with the norms around it."""

    starts: ClassVar[Mapping[str, Init]] = {
        "norm.weight": ones,
        "norm.bias": zeros,
        "post_norm.weight": ones,
        "post_norm.bias": zeros,
    }

    def __init__(self, block: Block, parts: Parts) -> None:
        super().__init__()
        self.block = block
        self.place = parts.architecture["norm_place"] if block.prenorm else "none"
        if self.place != "none":
            self.norm = parts.norm()
        if self.place == "sandwich":
            self.post_norm = parts.norm()

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

    def _in(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.place in ("pre", "sandwich") else x

    def _out(self, y: Tensor) -> Tensor:
        return self.post_norm(y) if self.place == "sandwich" else y


class Combine(nn.Module):
    """Makes one input of several.

    add: their sum. concat: a matrix from all channels of all of them. gate: the sum with a learned
    weight from 0 to 1 for each channel.
    """

    starts: ClassVar[Mapping[str, Init]] = {"weight": fan_in, "gate": zeros}

    def __init__(self, kind: str, count: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "concat":
            self.weight = nn.Parameter(torch.empty(width, count * width))
        if kind == "gate":
            self.gate = nn.Parameter(torch.empty(count, width))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """One tensor of the shape that all of them have."""
        if self.kind == "concat":
            return F.linear(torch.cat(inputs, -1), self.weight)
        if self.kind == "gate":
            weights = self.gate.sigmoid().unbind(0)
            inputs = [weight * x for weight, x in zip(weights, inputs, strict=True)]
        return torch.stack(inputs).sum(0)


class Node(NamedTuple):
    """One branch in its place. Not a module: weights that are used again are held but once."""

    branch: Branch
    use: int
    reads: Sequence[int]
    combine: Combine | None
    joins: bool
    multiplier: float


Run = Callable[[int, Node, Tensor, Ctx], Tensor]
Go = Callable[[Branch, Tensor, State, Ctx], tuple[Tensor, State]]


class Stack(nn.Module):
    """Residual branches in order."""

    def __init__(self, entries: Sequence[Mapping[str, Any]], parts: Parts) -> None:
        super().__init__()
        self.branches, self.edges = nn.ModuleDict(), nn.ModuleDict()
        self.nodes: tuple[Node, ...] = ()
        for index, entry in enumerate(entries):
            known = entry.get("share") in parts.made
            branch, reads, combine = parts.branch(entry), entry.get("reads", ()), None
            if not known:
                self.branches[entry.get("share") or str(index)] = branch
            if len(reads) > 1:
                width = parts.architecture["width"]
                combine = self.edges[str(index)] = Combine(entry["combine"], len(reads), width)
            joins, multiplier = entry.get("joins") != "next", entry.get("multiplier", 1.0)
            node = Node(branch, entry.get("use", 0), reads, combine, joins, multiplier)
            self.nodes += (node,)

    @property
    def count(self) -> int:
        """Number of branches."""
        return len(self.nodes)

    def forward(self, x_BTD: Tensor, ctx: Ctx, depth: int | None = None) -> Tensor:
        """The stream after the last branch, or after the first `depth` ones."""
        return self._walk(x_BTD, ctx, lambda i, node, x, own: node.branch(x, own), depth)

    def each(self, x_BTD: Tensor, ctx: Ctx) -> list[Tensor]:
        """The output of every branch for the same input."""
        return [node.branch(x_BTD, _used(ctx, node)) for node in self.nodes]

    def init_state(self, batch: int, context: int) -> State:
        """The decode states of all branches: `<branch>.<name>`."""
        return {
            f"{index}.{name}": tensor
            for index, node in enumerate(self.nodes)
            for name, tensor in node.branch.block.init_state(batch, context).items()
        }

    def step(
        self, x_BD: Tensor, state: State, ctx: Ctx, depth: int | None = None
    ) -> tuple[Tensor, State]:
        """`forward` for one token."""
        return self._onward(x_BD, state, ctx, Branch.step, depth)

    def step_each(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[list[Tensor], State]:
        """`each` for one token."""
        return self._onward_each(x_BD, state, ctx, Branch.step)

    def prefill(
        self, x_BTD: Tensor, state: State, ctx: Ctx, depth: int | None = None
    ) -> tuple[Tensor, State]:
        """`step` for several tokens at once."""
        return self._onward(x_BTD, state, ctx, Branch.prefill, depth)

    def prefill_each(self, x_BTD: Tensor, state: State, ctx: Ctx) -> tuple[list[Tensor], State]:
        """`step_each` for several tokens at once."""
        return self._onward_each(x_BTD, state, ctx, Branch.prefill)

    def _onward(
        self, x: Tensor, state: State, ctx: Ctx, go: Go, depth: int | None
    ) -> tuple[Tensor, State]:
        parts = _parts(state)

        def run(index: int, node: Node, x: Tensor, own: Ctx) -> Tensor:
            y, parts[index] = go(node.branch, x, parts.get(index, {}), own)
            return y

        return self._walk(x, ctx, run, depth), _joined(parts)

    def _onward_each(self, x: Tensor, state: State, ctx: Ctx, go: Go) -> tuple[list[Tensor], State]:
        parts, outputs = _parts(state), []
        for index, node in enumerate(self.nodes):
            y, parts[index] = go(node.branch, x, parts.get(index, {}), _used(ctx, node))
            outputs.append(y)
        return outputs, _joined(parts)

    def _walk(self, x: Tensor, ctx: Ctx, run: Run, depth: int | None) -> Tensor:
        stream, outputs = x, [x]
        side: Tensor | None = None
        for index, node in enumerate(self.nodes[:depth]):
            read = stream
            if node.combine is not None:
                read = node.combine([outputs[n] for n in node.reads])
            elif node.reads:
                read = outputs[node.reads[0]]
            if side is not None:
                read = read + side
            y, side = run(index, node, read, _used(ctx, node)), None
            if node.joins:
                y = stream = node.branch.join(stream, y, node.multiplier)
            else:
                side = y
            outputs.append(y)
        return stream


def _used(ctx: Ctx, node: Node) -> Ctx:
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


class Parts:
    """Makes each branch once, for all of its uses."""

    def __init__(self, architecture: Mapping[str, Any], blocks: Mapping[str, type[Block]]) -> None:
        self.architecture, self.blocks = architecture, blocks
        self.made: dict[str, Branch] = {}

    def branch(self, entry: Mapping[str, Any]) -> Branch:
        """The branch of an entry of the stack."""
        share = entry.get("share")
        if share in self.made:
            return self.made[share]
        kind, extra = self.blocks[entry["block"]], {}
        if kind.per_use:
            extra["uses"] = entry.get("uses", 1)
        if "of" in entry:
            extra["inner"] = Stack(entry["of"], self)
        build: Callable[..., Block] = kind
        block = build(self.architecture["width"], kind.Config(**entry["config"]), **extra)
        branch = Branch(block, self)
        if share:
            self.made[share] = branch
        return branch

    def norm(self) -> nn.Module:
        """The norm around branches, and before the readout."""
        if self.architecture["norm"] == "layer":
            return nn.LayerNorm(self.architecture["width"])
        return nn.RMSNorm(self.architecture["width"], eps=1e-5)

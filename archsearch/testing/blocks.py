"""The contract of every block, as laws that raise AssertionError where a block breaks one.

    from archsearch.testing.blocks import contract

    @pytest.mark.parametrize("law", contract(MyBlock), ids=str)
    def test_my_block(law):
        law()

A case is a block at one width with one config. `cases` makes them from the search dimensions that
the block declares, so nothing has to be added when a block or a dimension is.

A block whose training pass looks ahead (`causal=False`) is held to causality, and to decoding like
its forward pass, in eval mode; one that always does (`bidirectional=True`) to neither.
"""

from __future__ import annotations

import fnmatch
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from archsearch.block import Block, Ctx, role_of
from archsearch.testing.cases import (
    Case,
    affordable,
    cases,
    draw,
    edges,
    holding,
    refusal,
    size,
    stream,
    wider,
)
from archsearch.testing.passes import decode, flops_of, inputs, require_close, with_gradients
from archsearch.testing.slopes import settings
from archsearch.testing.transfer import TRANSFER_LAWS

__all__ = ["BLOCK_LAWS", "CASE_LAWS", "Applied", "Case", "cases", "contract"]

LENGTHS = (1, 2, 7, 65, 150)
"""Lengths of sequence: on both sides of the usual sizes of chunks, tiles and windows."""
LARGE = 20_000
"""Size of a case from which its oracle, a loop over time, is spared the longest sequence."""
MOST_FIELDS = 8

Law = Callable[[Case], None]
BlockLaw = Callable[[type[Block]], None]


def is_documented(block: type[Block]) -> None:
    """Paper, summary, a line for each of at most 8 parameters, and no `**kwargs`."""
    info = block.info
    assert re.fullmatch(r"\d{4}\.\d{4,5}", info.paper), f"'{info.paper}' is not an arXiv number"
    assert info.summary, "the class has no docstring"
    assert block.Config.__dataclass_params__.frozen, "Config is not frozen"
    assert len(info.dims) <= MOST_FIELDS, f"more than {MOST_FIELDS} parameters: split the block"
    silent = [name for name in info.dims if not info.docs.get(name)]
    assert not silent, f"no line under the parameter: {', '.join(silent)}"
    for method in (block.__init__, block.forward, block.step):
        kinds = [p.kind for p in inspect.signature(method).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{method.__qualname__} takes **kwargs"


def has_no_dead_roles(block: type[Block]) -> None:
    """Every declared role belongs to a parameter of some case."""
    modules = [case.empty() for case in cases(block)]
    names = {name for module in modules for name, _ in module.named_parameters()}
    dead = [pattern for pattern in block.roles if not fnmatch.filter(names, pattern)]
    assert not dead, f"roles without a parameter: {', '.join(dead)}"


def refuses_what_does_not_fit(block: type[Block]) -> None:
    """`check` says what is legal, or the block can be built, counted and run."""
    options = [{}, *({name: v} for name, dim in block.info.dims.items() for v in edges(dim))]
    for given in options:
        config = block.Config(**dict(block.info.fill(given)))
        for width in (*range(1, 13), 16, 24, 33, 48):
            case = Case(block, width, config, holding(block))
            why = refusal(case)
            assert "legal" in (why or "legal"), f"does not say what is legal: {why}"
            if why or not affordable(case):
                continue
            try:
                x_BTD, ctx = inputs(case, 3, torch.float32)
                y_BTD = case.build()(x_BTD, ctx)
            except Exception as error:
                error.add_note(f"check() let {case} pass")
                raise
            assert y_BTD.shape == x_BTD.shape, f"{case}: {x_BTD.shape} became {y_BTD.shape}"


def equals_oracle(case: Case) -> None:
    """`forward` equals `oracle` in float64, in value and all gradients, with random parameters.

    So do the losses that both of them collect.
    """
    module = case.build(torch.float64, drawn=True)
    lengths = LENGTHS if size(case) < LARGE else LENGTHS[:-1]
    for index, (training, time) in enumerate(product((True, False), lengths)):
        if not training and case.block.info.causal:
            continue
        module.train(training)
        use, std = index % case.uses, (1.0, 4.0)[index % 2]
        some_BT = torch.arange(time).mul(3).expand(2, time) + torch.tensor([[0], [5]])
        position = some_BT if index % 2 else 3 * index
        x_BTD, ctx = inputs(case, time, torch.float64, use=use, position=position, std=std)
        want = with_gradients(module, module.oracle, x_BTD, ctx)
        got = with_gradients(module, module, x_BTD, ctx)
        largest = max(float(g.abs().max()) for g in want.values())
        for name in want:
            # a gradient that is 0 in exact arithmetic (a bias on keys) is noise in both
            require_close(got[name], want[name], 1e-9, f"{name} at T={time}", floor=1e-12 * largest)


def is_causal(case: Case) -> None:
    """No output depends on a later token or on how many tokens follow."""
    if case.block.info.bidirectional:
        return
    module, time = case.build(torch.float64, drawn=True), LENGTHS[-1]
    x_BTD, ctx = inputs(case, time, torch.float64)
    other_BTD, other = inputs(case, time, torch.float64, "other")
    embedding_BTD = ctx.embedding
    y_BTD = module(x_BTD, ctx)
    for cut in (1, 2, 31, 64, 65, 128, time - 1):
        with torch.no_grad():
            prefix = module(x_BTD[:, :cut], Ctx(embedding_BTD[:, :cut]))
            mixed_x = torch.cat((x_BTD[:, :cut], other_BTD[:, cut:]), 1)
            mixed_embedding = torch.cat((embedding_BTD[:, :cut], other.embedding[:, cut:]), 1)
            changed = module(mixed_x, Ctx(mixed_embedding))[:, :cut]
        require_close(
            changed, y_BTD[:, :cut], 1e-9, f"outputs before {cut} after a change from {cut} on"
        )
        require_close(prefix, y_BTD[:, :cut], 1e-9, f"outputs of the first {cut} tokens alone")
        weight = torch.randn(prefix.shape, generator=stream("weight"), dtype=prefix.dtype)
        loss = (y_BTD[:, :cut] * weight).sum()
        wanted = [x_BTD, embedding_BTD]
        for grad in torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True):
            if grad is not None:
                late, scale = grad[:, cut:].abs().max(), grad.abs().max()
                assert late <= 1e-12 * scale, f"outputs before {cut} have gradients from {cut} on"


def decodes(case: Case) -> None:
    """`step` over a sequence equals `forward`, for every use, and keeps the shape of its state."""
    if case.block.info.bidirectional:
        return
    for dtype, time, rtol in ((torch.float64, 70, 1e-9), (torch.float32, 40, 1e-5)):
        module = case.build(dtype, drawn=dtype == torch.float64)
        for use in range(case.uses):
            x_BTD, ctx = inputs(case, time, dtype, use=use)
            with torch.no_grad():
                want = module(x_BTD, ctx)
                got = torch.stack([y for y, _ in decode(module, x_BTD, ctx, time)], 1)
            require_close(got, want, rtol, f"step against forward in {dtype}, use {use}")


def prefills(case: Case) -> None:
    """`prefill` equals `step` token by token, in outputs and in the state that it leaves.

    So do several of them, one behind the other, and steps behind them.
    """
    if case.block.info.bidirectional:
        return
    module, time = case.build(torch.float64, drawn=True), 40
    for use in range(case.uses):
        x_BTD, ctx = inputs(case, time, torch.float64, use=use)
        with torch.no_grad():
            steps = list(decode(module, x_BTD, ctx, time))
            want_BTD = torch.stack([y for y, _ in steps], 1)
            state = module.init_state(len(x_BTD), time)
            for start, stop in ((0, 33), (33, 34), (34, 39)):
                embedding_BTD = ctx.embedding[:, start:stop]
                own = Ctx(embedding_BTD, position=start, seen=start, use=use)
                got_BTD, state = module.prefill(x_BTD[:, start:stop], state, own)
                what = f"prefill of {start} to {stop} against steps, use {use}"
                require_close(got_BTD, want_BTD[:, start:stop], 1e-9, what)
            for t in range(stop, time):
                own = Ctx(ctx.embedding[:, t], position=t, seen=t, use=use)
                got_BD, state = module.step(x_BTD[:, t], state, own)
                require_close(got_BD, want_BTD[:, t], 1e-9, f"a step behind prefill, use {use}")
        want = steps[-1][1]
        assert state.keys() == want.keys(), "prefill leaves another state than steps"
        for name, tensor in state.items():
            assert tensor.shape == want[name].shape, f"prefill changed the shape of '{name}'"
            if tensor.numel():
                require_close(tensor, want[name], 1e-9, f"state '{name}' behind prefill, use {use}")


def keeps_rows_apart(case: Case) -> None:
    """A sequence has the same output whatever else is in the batch."""
    module = case.build(torch.float64, drawn=True)
    x_BTD, ctx = inputs(case, 20, torch.float64)
    with torch.no_grad():
        both = module(x_BTD, ctx)
        for row in range(len(x_BTD)):
            own_x, own_ctx = x_BTD[row : row + 1], Ctx(ctx.embedding[row : row + 1])
            require_close(module(own_x, own_ctx)[0], both[row], 1e-9, f"row {row} alone")
        if case.block.info.bidirectional:
            return
        steps = [y for y, _ in decode(module, x_BTD, ctx, 20)]
        for row in range(len(x_BTD)):
            own_x, own_ctx = x_BTD[row : row + 1], Ctx(ctx.embedding[row : row + 1])
            alone = [y for y, _ in decode(module, own_x, own_ctx, 20)]
            own_steps = torch.stack(steps, 1)[row]
            require_close(torch.stack(alone, 1)[0], own_steps, 1e-9, f"row {row} decoded alone")


def costs_what_it_says(case: Case) -> None:
    """Parameters and state bytes are exact; FLOPs are within 2 % of a count in a batch of two."""
    block, width, config = case.block, case.width, case.config
    for uses in range(1, case.uses + 1):
        built = sum(p.numel() for p in case.empty(uses).parameters())
        again = block.params_per_use(width, config)
        said = case.cost(16).params + (uses - 1) * again
        assert said == built, f"cost says {said} parameters, built for {uses} uses are {built}"
    module = case.build().train()
    for time in LENGTHS:
        cost, (x_BTD, ctx) = case.cost(time), inputs(case, time, torch.float32)
        most = math.inf if case.inner else cost.params  # a loop meets its parameters often
        assert 0 <= cost.active_params <= most, "more parameters active than there are"
        with torch.no_grad():
            measured = flops_of(module, x_BTD, ctx) / (len(x_BTD) * time)
            error = abs(cost.flops - measured)
            assert error <= 0.02 * measured, (
                f"cost says {cost.flops:.0f} FLOPs per token at T={time}, measured {measured:.0f}"
            )
            if block.info.bidirectional:
                assert cost.state_bytes == 0, "a block that cannot decode has no state"
                continue
            states = [module.init_state(1, time)]
            states += [s for _, s in decode(module, x_BTD[:1], Ctx(ctx.embedding[:1]), time)]
        for step, state in enumerate(states):
            size = sum(t.numel() * t.element_size() for t in state.values())
            assert size == cost.state_bytes, (
                f"cost says {cost.state_bytes} state bytes at T={time}, after {step} steps {size}"
            )


def has_true_roles(case: Case) -> None:
    """Every parameter has a role, and its named axes are those that grow with the width."""
    module = case.empty()
    small, roles = dict(module.named_parameters()), case.roles(module)
    large = dict(wider(case).empty().named_parameters())
    assert small.keys() == large.keys(), "another width has other parameters"
    for name, parameter in small.items():
        role, axes = role_of(roles, name), len(parameter.shape)
        assert len(role.axes) == axes, f"{name} has {axes} axes, its role {len(role.axes)}"
        for axis, (before, after) in enumerate(
            zip(parameter.shape, large[name].shape, strict=True)
        ):
            grows, named = after > before, role.axes[axis] is not None
            assert grows == named, (
                f"axis {axis} of {name} {'grows' if grows else 'does not grow'}, "
                f"but its role calls it {role.axes[axis]}"
            )
        count = sum(axis is not None for axis in role.axes)
        assert (role.kind == "small") == (count == 0), f"{name} is {role.kind}, {count} axes grow"
        assert role.kind != "vector" or count == 1, f"{name} is a vector, {count} axes grow"


def starts_from_roles(case: Case) -> None:
    """Roles alone fill every parameter, from the given random stream and no other."""
    held = list(case.empty().buffers())
    assert not held, "a buffer computed in __init__ is lost when the block leaves the meta device"
    before = torch.get_rng_state()
    first, second = case.build(), case.build()
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert a.isfinite().all(), f"{name} is not initialised"
        assert torch.equal(a, b), f"{name} depends on more than the generator"
    x_BTD, ctx = inputs(case, 7, torch.float32)
    first(x_BTD, ctx)
    assert torch.equal(torch.get_rng_state(), before), "the global random stream was used"


def stays_finite(case: Case) -> None:
    """Outputs and gradients are finite, with extreme parameters and inputs as well."""
    usual, drawn, large, extreme = case.build(), case.build(drawn=True), case.build(), case.build()
    draw(extreme, 10.0)
    for module in (usual, drawn, large, extreme):
        module.train()
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(10)
    trials = {
        "as training starts": (usual, 1.0),
        "inputs 0": (drawn, 0.0),
        "inputs x 100": (drawn, 100.0),
        "parameters x 10": (large, 1.0),
        "drawn parameters x 10": (extreme, 1.0),
    }
    for time in (1, 2, 257, 1000):
        for what, (module, std) in trials.items() if time < 1000 else list(trials.items())[:1]:
            x_BTD, ctx = inputs(case, time, torch.float32, std=std)
            for name, value in with_gradients(module, module, x_BTD, ctx).items():
                assert value.isfinite().all(), f"{name} is not finite at T={time}, {what}"


def runs_in_bf16(case: Case) -> None:
    """The outputs in bfloat16 are within 2 % of those in float32, in root mean square."""
    module = case.build().eval()
    x_BTD, ctx = inputs(case, 65, torch.float32)
    with torch.no_grad():
        for tensor in (x_BTD, ctx.embedding, *module.parameters()):
            tensor.copy_(tensor.bfloat16())
        want_BTD = module(x_BTD, ctx)
        got_BTD = module.bfloat16()(x_BTD.bfloat16(), Ctx(ctx.embedding.bfloat16()))
    assert got_BTD.dtype == torch.bfloat16, f"bfloat16 became {got_BTD.dtype}"
    error, scale = (got_BTD - want_BTD).square().mean().sqrt(), want_BTD.square().mean().sqrt()
    assert error <= 2e-2 * scale, f"bfloat16 is off by {float(error / scale):.1e} of the output"


BLOCK_LAWS: tuple[BlockLaw, ...] = (is_documented, has_no_dead_roles, refuses_what_does_not_fit)
CASE_LAWS: tuple[Law, ...] = (
    equals_oracle,
    is_causal,
    decodes,
    prefills,
    keeps_rows_apart,
    costs_what_it_says,
    has_true_roles,
    starts_from_roles,
    stays_finite,
    runs_in_bf16,
)


@dataclass(frozen=True)
class Applied:
    """A law and what it judges: a block, or a case of one. Calling it raises where it is broken."""

    law: Callable[[Any], None]
    what: type[Block] | Case

    def __str__(self) -> str:
        what = self.what if isinstance(self.what, Case) else self.what.info.name
        return f"{self.law.__name__}-{what}"

    def __call__(self) -> None:
        """Judge it."""
        self.law(self.what)


def contract(block: type[Block]) -> list[Applied]:
    """Every law for one block, those of its cases included."""
    of_cases = [Applied(law, case) for law in CASE_LAWS for case in cases(block)]
    of_cases += [Applied(law, case) for law in TRANSFER_LAWS for case in settings(block)]
    return [*(Applied(law, block) for law in BLOCK_LAWS), *of_cases]

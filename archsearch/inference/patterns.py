"""What the mixers of a model look at: the matrix over time that each of them applies to its values.

Softmax attention is such a matrix by definition. A state space, linear attention, a delta rule and
a long convolution are one too, once everything but the values is given (hidden attention: Ali et
al. 2024, arXiv 2403.01590, section 3): y_t = sum_s M[t, s] v_s + d v_t. Here M is not derived anew
for each of them. While the model runs, the call of the kernel that mixes over time is caught with
all of its arguments; the same call with unit vectors in place of the values gives M, exactly.

What comes before the values (projections, convolutions, gates on the input) and after the output
(norms, gates, projections) is not part of M.

Shapes: B batch, T output time, S value time, H heads, P channels of a value, E channels, N
sequences, U time with zeros in front.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx
from archsearch.errors import ModelError

if TYPE_CHECKING:
    from archsearch.model import Model

MOST_TOKENS = 256
"""Longest text: a matrix for each of a thousand channels gets too large beyond."""

REFUSED = {
    "armt": "its memory is read by all tokens of a segment and written by a few slots",
    "block_recurrent": "its state vectors carry what no matrix over tokens shows",
    "hydra": "it looks ahead and adds two passes up, one of them backwards",
    "liquid_s4": "it multiplies neighbouring inputs, so its output is not linear in them",
    "ttt": "its inner model is trained on the values, so its output is not linear in them",
}
"""Mixers without such a matrix, and why."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One use of one mixer."""

    name: str
    """Where it stands and what it is: `2 mamba2`."""
    weights: Tensor
    """M of each head, or of each channel where channels have different ones: HTS."""
    skip: Tensor
    """d of each head, H. On the diagonal it would outshine all else."""
    values: Tensor
    """HSP."""
    output: Tensor
    """y, HTP."""
    channels: bool
    """Whether H counts channels."""


See = Callable[[Pattern], object]


@torch.no_grad()
def patterns(model: Model, tokens: Sequence[int], see: See) -> dict[str, str]:
    """Run a model on a text, and show what each of its mixers did.

    Inside Mixture-of-Depths a mixer meets chosen tokens alone; other rows and columns are 0. Pauses
    count as tokens.

    Args:
        model: In eval mode.
        tokens: The text.
        see: Called with each pattern, in order; they are large, so it should not keep many.

    Returns:
        The mixers without one, and why.

    Raises:
        ModelError: if the text is too long, or nothing was seen.
    """
    places = len(tokens) * (1 + model.genome.pause_tokens)
    if not 0 < places <= MOST_TOKENS:
        raise ModelError(
            f"the text has {places} tokens; a picture shows 1 to {MOST_TOKENS}, cut it to that"
        )
    refused, seen = dict[str, str](), list[str]()

    def on_pattern(found: Pattern) -> None:
        seen.append(found.name)
        see(found)

    with ExitStack() as stack:
        for name, block in _mixers(model):
            kind = type(block).info.name
            if kind in REFUSED:
                refused[name] = REFUSED[kind]
            elif not (_kernels(block) or _convolution(block)):
                refused[name] = "it calls no kernel that is known to mix over time"
            else:
                stack.enter_context(_watched(block, name, places, on_pattern))
        model(torch.tensor([list(tokens)], device=model.device))
    if not seen:
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ModelError(f"nothing to draw: {why or 'no token went through a mixer'}")
    return refused


def _mixers(model: Model) -> Iterator[tuple[str, Block]]:
    """Every mixer, with its place: the number of the branch, from 1 on, or the name of its weights.

    What a wrapper holds is `<place>.<place inside>`.
    """
    for path, module in model.stack.named_modules():
        if isinstance(module, Block) and type(module).info.kind == "mixer":
            parts = path.split(".")
            named = (b for a, b in pairwise(parts) if a == "branches")
            places = [str(int(b) + 1) if b.isdecimal() else b for b in named]
            yield f"{'.'.join(places)} {type(module).info.name}", module


Call = Callable[..., Tensor]
Read = Callable[[Call, dict[str, Any], Block], tuple[Tensor, ...]]
"""To weights_HTS, skip_H, values_HSP and output_HTP of a `Pattern`. It is given a function that
repeats the call of a kernel, with other arguments where they are named; the arguments of the call;
and the block that called."""


def _heads(values: str, skip: str = "") -> Read:
    """For a kernel whose heads apply one matrix to all channels.

    Args:
        values: The argument that holds the values, v_BTHP.
        skip: The argument with each head's factor on the direct path, if the kernel has that.
    """

    def read(again: Call, given: dict[str, Any], block: Block) -> tuple[Tensor, ...]:
        v_1SHP = given[values]
        _, time, heads, _ = v_1SHP.shape
        unit_SS = torch.eye(time, dtype=v_1SHP.dtype, device=v_1SHP.device)
        units = {values: unit_SS[None, :, None].expand(1, -1, heads, -1).contiguous()}
        if skip:
            units[skip] = torch.zeros_like(given[skip])
        weights_HTS, output_HTP = again(**units)[0].transpose(0, 1), again()[0].transpose(0, 1)
        values_HSP = v_1SHP[0].transpose(0, 1).repeat_interleave(len(weights_HTS) // heads, 0)
        skip_H = given[skip].detach() if skip else weights_HTS.new_zeros(len(weights_HTS))
        return weights_HTS, skip_H, values_HSP, output_HTP

    return read


def _delta(again: Call, given: dict[str, Any], block: Block) -> tuple[Tensor, ...]:
    """For a kernel that takes what heads need as one tuple, the values as its `v`."""
    heads = given["heads"]

    def unpacked(v: Tensor = heads.v) -> Tensor:
        return again(heads=heads._replace(v=v))

    return _heads("v")(unpacked, {"v": heads.v}, block)


def _scan(again: Call, given: dict[str, Any], block: Block) -> tuple[Tensor, ...]:
    """For the scan of Mamba, in which every channel has a matrix: a sequence for each unit."""
    x_S1E, skip_E = given["x_TBE"], block.get_parameter("D").detach()
    time, _, channels = x_S1E.shape
    unit_SS = torch.eye(time, dtype=x_S1E.dtype, device=x_S1E.device)
    units = {"x_TBE": unit_SS[..., None].expand(-1, -1, channels).contiguous()}
    for name in ("dt_TBE", "B_TBN", "C_TBN"):
        units[name] = given[name].expand(-1, time, -1).contiguous()
    weights_ETS = again(**units).permute(2, 0, 1)
    output_ET1 = torch.addcmul(again(), x_S1E, skip_E).permute(2, 0, 1)
    return weights_ETS, skip_E, x_S1E.permute(2, 0, 1), output_ET1


def _filters(again: Call, given: dict[str, Any], block: Block) -> tuple[Tensor, ...]:
    """For Hyena's long convolution, in which every channel has a filter."""
    u_1ES, skip_E = given["u_BDT"], block.get_parameter("bias").detach()
    weights_ETS = again(u_BDT=_units(u_1ES)).permute(1, 2, 0)
    output_1ET = torch.addcmul(again(), u_1ES, skip_E[:, None])
    # an FFT leaves rounding errors ahead
    return weights_ETS.tril(), skip_E, u_1ES[0, ..., None], output_1ET[0, ..., None]


def _taps(again: Call, given: dict[str, Any], block: Block) -> tuple[Tensor, ...]:
    """For a convolution of a few taps, whose input has zeros in front."""
    padded_1EU, output_1ET = given["input"], again()
    front = padded_1EU.shape[-1] - output_1ET.shape[-1]
    u_1ES = padded_1EU[..., front:]
    weights_ETS = again(input=F.pad(_units(u_1ES), (front, 0))).permute(1, 2, 0)
    no_E = weights_ETS.new_zeros(len(weights_ETS))
    return weights_ETS, no_E, u_1ES[0, ..., None], output_1ET[0, ..., None]


def _units(u_1ES: Tensor) -> Tensor:
    """A sequence for each unit vector, the same in all channels: NES with N = S."""
    unit_SS = torch.eye(u_1ES.shape[-1], dtype=u_1ES.dtype, device=u_1ES.device)
    return unit_SS[:, None].expand(-1, u_1ES.shape[1], -1).contiguous()


KERNELS: dict[str, Read] = {
    "attend": _heads("v_BTGK"),
    "ssd": _heads("x_BTHP", skip="D_H"),
    "gated_linear_attention": _heads("v_BTHV"),
    "gated_delta_rule": _heads("v_BTHV"),
    "weighted_delta_rule": _delta,
    "selective_scan": _scan,
    "causal_convolution": _filters,
}
"""Functions that mix over time, by the name that the file of a block calls them by."""
BY_CHANNEL = (_scan, _filters, _taps)


def _kernels(block: Block) -> list[str]:
    """The kernels that the file of a block calls."""
    return [name for name in KERNELS if hasattr(sys.modules[type(block).__module__], name)]


def _convolution(block: Block) -> nn.Conv1d | None:
    """The convolution of a block that mixes by that alone."""
    conv = getattr(block, "conv", None)
    alone = type(block).info.name == "short_conv" and isinstance(conv, nn.Conv1d)
    return conv if alone else None


@contextmanager
def _watched(block: Block, name: str, places: int, see: See) -> Iterator[None]:
    """While this lasts, what a block mixes is shown to `see`."""
    module, forward = sys.modules[type(block).__module__], block.forward
    uses = 0

    def watching(x_BTD: Tensor, ctx: Ctx) -> Tensor:
        nonlocal uses
        uses += 1
        title = name if uses == 1 else f"{name}, use {uses}"

        def caught(kernel: Call, read: Read) -> Call:
            def call(*args: Any, **named: Any) -> Tensor:
                bound = inspect.signature(kernel).bind(*args, **named)
                bound.apply_defaults()
                given = bound.arguments

                def again(**others: Any) -> Tensor:
                    return kernel(*(given | others).values())

                weights, skip, values, output = read(again, given, block)
                found = Pattern(title, weights, skip, values, output, read in BY_CHANNEL)
                see(_spread(found, ctx.position, places))
                return kernel(*args, **named)

            return call

        with ExitStack() as stack:
            for known in _kernels(block):
                caller = caught(getattr(module, known), KERNELS[known])
                stack.enter_context(_set(module, known, caller))
            if conv := _convolution(block):
                stack.enter_context(_set(conv, "forward", caught(conv.forward, _taps)))
            return forward(x_BTD, ctx)

    with _set(block, "forward", watching):
        yield


def _spread(found: Pattern, position: int | Tensor, places: int) -> Pattern:
    """A pattern over chosen tokens as one over all of them."""
    if not isinstance(position, Tensor):
        return found
    place_K = position.reshape(-1)
    weights_HTS = found.weights.new_zeros(len(found.weights), places, places)
    weights_HTS[:, place_K[:, None], place_K] = found.weights

    def wide(x_HKP: Tensor) -> Tensor:
        x_HTP = x_HKP.new_zeros(len(x_HKP), places, x_HKP.shape[-1])
        x_HTP[:, place_K] = x_HKP
        return x_HTP

    values, output = wide(found.values), wide(found.output)
    return replace(found, weights=weights_HTS, values=values, output=output)


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value while this lasts."""
    own = vars(owner)
    known, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if known:
            setattr(owner, name, before)
        else:
            delattr(owner, name)

"""Recurrences keep their precision under autocast, forward and backward."""

import pytest
import torch

from archsearch.kernels.chunked_recurrence import border_states
from archsearch.kernels.precision import in_full
from archsearch.kernels.selective_scan import selective_scan
from archsearch.kernels.ssd import ssd
from archsearch.kernels.ttt import LinearLoop, MLPLoop


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def positive(*shape):
    return drawn(*shape).abs().clamp(0.01, 0.9)


RECURRENCES = {
    "ssd": (
        ssd,
        (drawn(2, 70, 4, 3), positive(2, 70, 4), positive(2, 70, 4), drawn(2, 70, 1, 6),
         drawn(2, 70, 1, 6), drawn(4)),
    ),
    "selective scan": (
        selective_scan,
        (drawn(11, 2, 5), positive(11, 2, 5), drawn(5, 3), drawn(11, 2, 3), drawn(11, 2, 3)),
    ),
    "borders": (border_states, (drawn(2, 3, 2, 4, 4), drawn(2, 3, 2, 4, 5))),
    "TTT, linear": (
        LinearLoop.apply,
        (drawn(3, 2, 4, 6), positive(3, 2, 4, 1) / 20, drawn(3, 2, 4, 5), positive(2, 1, 5),
         drawn(2, 6, 5)),
    ),
    "TTT, MLP": (
        MLPLoop.apply,
        (drawn(3, 2, 4, 6), positive(3, 2, 4, 1) / 20, drawn(3, 2, 4, 5), positive(2, 1, 5),
         drawn(2, 6, 7), drawn(2, 8, 5)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECURRENCES)
def test_a_gradient_that_is_written_out_is_the_same_inside_autocast(name):
    function, given = RECURRENCES[name]

    def everything():
        inputs = [x.clone().requires_grad_() for x in given]
        found = function(*inputs)
        found = found if isinstance(found, tuple) else (found,)
        return [*found, *torch.autograd.grad(sum(x.square().sum() for x in found), inputs)]

    outside = everything()
    if name.startswith(("TTT", "borders")):  # their blocks call them in full
        function = in_full(function)
    with torch.autocast("cpu", torch.bfloat16):
        inside = everything()
    assert all(torch.equal(one, two) for one, two in zip(outside, inside, strict=True))

"""Hydra looks ahead by design: the matrix of its paper, and where a space may name it."""

import torch

from archsearch.block import Ctx
from archsearch.blocks.hydra import Hydra
from archsearch.testing.cases import Case


def case(width=32, **given):
    return Case(Hydra, width, Hydra.Config(**dict(Hydra.info.fill(given))))


def tokens(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def matrix(a_T, dt_T, B_TN, C_TN):
    """Row i reads C of the token before it: below the diagonal, from j to i - 1."""
    time = len(a_T)
    M = a_T.new_zeros(time, time)
    for i in range(time):
        for j in range(i):
            M[i, j] = a_T[j + 1 : i].prod() * (C_TN[i - 1] @ B_TN[j]) * dt_T[j]
    return M


def test_it_is_a_quasiseparable_matrix():
    """One head, convolution and norm taken away: the matrix of the paper (definition 2)."""
    width, N, time = 4, 3, 9
    block = case(width, head_dim=4, expand=1, conv=1, d_state=N).build(torch.float64, drawn=True)
    x_BTD = tokens(1, time, width)
    seen = {}
    block.norm.register_forward_pre_hook(lambda _, args: seen.update(y=args[0]))
    with torch.no_grad():
        block.conv1d.weight.fill_(1.0)
        block.conv1d.bias.zero_()
        block(x_BTD, Ctx(x_BTD))
        u = x_BTD[0] @ block.in_proj.weight.T
        c = torch.nn.functional.silu(u[:, width:-2])
        x, B, C, B2, C2 = c.split([width, N, N, N, N], -1)
        dt, dt2 = torch.nn.functional.softplus(u[:, -2:] + block.dt_bias).unbind(-1)
        a, a2 = (torch.exp(-block.A_log.exp() * v) for v in (dt, dt2))
        lower, upper = matrix(a, dt, B, C), matrix(*(v.flip(0) for v in (a2, dt2, B2, C2)))
        M = lower + upper.flip(0, 1) + torch.diag((block.fc_D(x) + block.D)[:, 0])
    torch.testing.assert_close(seen["y"][0], M @ x)


def test_reversed_tokens_with_exchanged_directions_give_reversed_outputs():
    block = case(groups=2).build(torch.float64, drawn=True)
    x_BTD = tokens(2, 70, 32)
    want = block(x_BTD, Ctx(x_BTD)).flip(1)
    with torch.no_grad():
        rows = torch.arange(len(block.in_proj.weight))
        z_x, first, second, dt, dt2 = rows.split([128, 256, 256, 2, 2])
        block.in_proj.weight.copy_(block.in_proj.weight[torch.cat((z_x, second, first, dt2, dt))])
        order = torch.cat((z_x[:64], first - 64, second - 64))
        swapped = torch.cat((z_x[:64], second - 64, first - 64))
        block.conv1d.weight[order] = block.conv1d.weight[swapped].flip(-1)
        block.conv1d.bias[order] = block.conv1d.bias[swapped]
    torch.testing.assert_close(block(x_BTD.flip(1), Ctx(x_BTD)), want)

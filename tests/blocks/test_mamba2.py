import math

import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.mamba2 import Mamba2
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case
from tests.blocks.parity import distance, with_gradients


def case(width=32, **given):
    return Case(Mamba2, width, Mamba2.Config(**dict(Mamba2.info.fill(given))))


def test_size_is_that_of_the_published_layer():
    # counted on the Mamba2 layer of transformers at d=128, N=64, G=2, P=64
    config = case(128, d_state=64, head_dim=64, groups=2).config
    assert Mamba2.cost(128, config, 1).params == 134_412


def test_parameters_are_named_and_shaped_as_in_mamba_ssm():
    shapes = {
        n: tuple(p.shape) for n, p in case(64, d_state=16, groups=2).build().named_parameters()
    }
    assert shapes == {
        "in_proj.weight": (2 * 128 + 2 * 2 * 16 + 4, 64),
        "conv1d.weight": (192, 1, 4),
        "conv1d.bias": (192,),
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "norm.weight": (128,),
        "out_proj.weight": (64, 128),
    }


def test_start_is_in_the_published_ranges():
    block = case(64, head_dim=1, expand=8).build()
    dt, A = torch.nn.functional.softplus(block.dt_bias), block.A_log.exp()
    assert 0.99e-3 < dt.min() < 1.2e-3
    assert 0.08 < dt.max() < 0.101
    assert abs(dt.log().mean() - math.log(1e-2)) < 0.3
    assert 1 <= A.min() < 1.5
    assert 15.5 < A.max() <= 16
    assert abs(A.mean() - 8.5) < 0.7
    assert block.conv1d.weight.abs().max() <= 0.5
    assert (block.D == 1).all()


def test_extreme_decays_in_the_whole_layer():
    block = case(head_dim=16).build()
    with torch.no_grad():
        block.A_log.fill_(math.log(16))
        block.dt_bias.copy_(torch.tensor([-20.0, -5.0, 5.0, 50.0]))
    x_BTD = torch.randn(2, 200, 32, generator=torch.Generator().manual_seed(0))
    got = block(x_BTD, Ctx(x_BTD))
    want = block.double().oracle(x_BTD.double(), Ctx(x_BTD.double()))
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def parity_layer(neg_eigval):
    """Weights set by hand: the first token writes 1, a bit 1 decays fast and a bit 0 not at all.

    Inputs are (start, bit 0, bit 1, always 1).
    """
    block = case(4, d_state=1, head_dim=4, expand=1, conv=1, neg_eigval=neg_eigval).build()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        z, x, B, C, dt = block.in_proj.weight.split([4, 4, 1, 1, 1])
        z[:, 3] = x[:, 0] = B[:, 0] = C[:, 3] = 3.0
        dt.copy_(torch.tensor([1.0, -40.0, 40.0, 0.0]))
        for ones in (block.conv1d.weight, block.norm.weight, block.out_proj.weight):
            ones.fill_(1.0)
    return block


def test_parity_of_bits_needs_negative_eigenvalues():
    bits = torch.randint(2, (8, 300), generator=torch.Generator().manual_seed(0))
    tokens = torch.cat((torch.zeros(8, 1, dtype=torch.int64), 1 + bits), 1)
    x_BTD = torch.eye(4)[tokens]
    x_BTD[..., 3] = 1.0
    odd = torch.cat((torch.zeros(8, 1), bits.cumsum(1) % 2), 1).bool()
    signs = parity_layer(True)(x_BTD, Ctx(x_BTD))[..., 0].sign()
    assert torch.equal(signs, torch.where(odd, -1.0, 1.0))
    assert parity_layer(False)(x_BTD, Ctx(x_BTD)).min() >= 0


def test_state_keeps_one_column_less_than_the_convolution_is_long():
    for kernel in (1, 2, 4, 16):
        state = case(conv=kernel).build().init_state(3, 100)
        assert state["conv"].shape == (3, 64 + 2 * 64, kernel - 1)
        assert state["ssm"].shape == (3, 2, 32, 64)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"head_dim": 48}, "mamba2.head_dim 48 does not divide the inner width 64 (2 x 32); "
         "legal: 1, 2, 4, 8, 16, 32, 64"),
        ({"groups": 3}, "mamba2.groups 3 does not divide the 2 heads (inner width 64 / 32); "
         "legal: 1, 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(given, text):
    with pytest.raises(BlockError) as error:
        Mamba2.check(32, Mamba2.Config(**given))
    assert str(error.value) == text


def of_transformers(block, x_BTD, limit=(0.0, math.inf)):
    """Output and gradients of the layer of transformers with the weights of `block`."""
    mamba2 = pytest.importorskip(
        "transformers.models.mamba2.modeling_mamba2", reason="transformers needs the extra oracles"
    )
    config = mamba2.Mamba2Config(
        hidden_size=x_BTD.shape[-1], num_heads=block.heads, n_groups=block.groups,
        head_dim=block.norm.normalized_shape[0] // block.heads, layer_norm_epsilon=1e-5,
        state_size=block.init_state(1, 1)["ssm"].shape[-1], conv_kernel=4, chunk_size=16,
        time_step_limit=limit, use_bias=False, num_hidden_layers=1,
    )  # fmt: skip
    theirs = mamba2.Mamba2Mixer(config, 0).double()
    theirs.load_state_dict(block.state_dict())
    return with_gradients(theirs(x_BTD), {"x": x_BTD, **dict(theirs.named_parameters())})


def off(block, limit=(0.0, math.inf)):
    """How far `block` is from the layer of transformers, see `distance`."""
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(2, 70, 32, generator=generator, dtype=torch.float64).requires_grad_()
    want = of_transformers(block, x_BTD, limit)
    leaves = {"x": x_BTD, **dict(block.named_parameters())}
    return distance(with_gradients(block(x_BTD, Ctx(x_BTD)), leaves), want)


# its scan and its norm are rounded to float32
@pytest.mark.parametrize("given", [{}, {"head_dim": 8}, {"head_dim": 8, "groups": 4, "d_state": 5}])
def test_equals_the_layer_of_transformers(given):
    assert off(case(**given).build(torch.float64, drawn=True)) < 5e-6


def test_another_decay_or_step_size_is_noticed():
    block = case(head_dim=8, neg_eigval=True).build(torch.float64, drawn=True)
    assert off(block) > 1e-2
    assert off(case(head_dim=8).build(torch.float64, drawn=True), limit=(0.0, 1.0)) > 1e-2

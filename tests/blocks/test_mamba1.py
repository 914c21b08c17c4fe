import math

import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.mamba1 import Mamba1
from archsearch.testing.blocks import Case


def case(width=32, **given):
    return Case(Mamba1, width, Mamba1.Config(**dict(Mamba1.info.fill(given))))


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_size_is_that_of_the_published_layer():
    # counted on the Mamba layer of transformers at d=128, N=16
    assert Mamba1.cost(128, case(128).config, 1).params == 116_480


def test_start_is_the_published_one():
    block = case(64, expand=8).build()
    assert torch.allclose(block.A_log.exp(), torch.arange(1.0, 17).expand(512, 16))
    dt = torch.nn.functional.softplus(block.dt_proj.bias)
    assert 0.99e-3 < dt.min() < 1.2e-3
    assert 0.08 < dt.max() < 0.101
    assert 0.9 * 4**-0.5 < block.dt_proj.weight.abs().max() <= 4**-0.5
    assert (block.D == 1).all()


def test_with_no_memory_and_no_convolution_tokens_do_not_mix():
    """A decay of exp(-1e9 dt) forgets within one step."""
    block = case(conv=1).build(torch.float64)
    with torch.no_grad():
        block.A_log.fill_(math.log(1e9))
    x_BTD = draw(2, 9, 32)
    alone = torch.stack([block(x[:, None], Ctx(x))[:, 0] for x in x_BTD.unbind(1)], 1)
    torch.testing.assert_close(block(x_BTD, Ctx(x_BTD)), alone)


def test_equals_the_layer_of_transformers():
    mamba = pytest.importorskip(
        "transformers.models.mamba.modeling_mamba", reason="transformers needs the extra oracles"
    )
    theirs = mamba.MambaMixer(mamba.MambaConfig(hidden_size=32, time_step_rank=2), 0).double()
    ours = case().build(torch.float64, drawn=True)
    theirs.load_state_dict(ours.state_dict())
    x_BTD = draw(2, 21, 32)
    torch.testing.assert_close(ours(x_BTD, Ctx(x_BTD)), theirs(x_BTD), rtol=1e-5, atol=1e-6)


def test_equals_the_layer_of_jamba():
    jamba = pytest.importorskip(
        "transformers.models.jamba.modeling_jamba", reason="transformers needs the extra oracles"
    )
    config = jamba.JambaConfig(
        hidden_size=32, mamba_dt_rank=2, mamba_d_state=8, use_mamba_kernels=False
    )
    theirs = jamba.JambaMambaMixer(config, 0).double()
    ours = case(d_state=8, norm=True).build(torch.float64, drawn=True)
    theirs.load_state_dict(ours.state_dict())
    x_BTD = draw(2, 21, 32)
    # its norms and A are rounded to float32
    torch.testing.assert_close(ours(x_BTD, Ctx(x_BTD)), theirs(x_BTD), rtol=1e-4, atol=1e-5)


def test_equals_the_layer_of_mambapy():
    mambapy = pytest.importorskip("mambapy.mamba", reason="mambapy needs the extra oracles")
    theirs = mambapy.MambaBlock(mambapy.MambaConfig(d_model=32, n_layers=1)).double()
    ours = case().build(torch.float64, drawn=True)
    theirs.load_state_dict(ours.state_dict())
    x_BTD = draw(2, 21, 32)
    # it rounds A and D to float32
    torch.testing.assert_close(ours(x_BTD, Ctx(x_BTD)), theirs(x_BTD), rtol=1e-5, atol=1e-6)

"""The adapters say to a library what our op says: its own references compute the same."""

import sys
from importlib import import_module
from types import ModuleType

import pytest
import torch

from archsearch.blocks.gated_deltanet import gated_delta_rule
from archsearch.blocks.gla import gated_linear_attention
from archsearch.blocks.rwkv7 import Heads, weighted_delta_rule
from archsearch.kernels.backends import OPS, Problem
from archsearch.kernels.selective_scan import selective_scan
from archsearch.kernels.ssd import ssd

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library, as it is imported


@pytest.fixture(scope="module")
def fla():
    """The adapters, with fla's readable references in place of its kernels."""
    pytest.importorskip("fla", reason="fla-core is not installed")
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    from archsearch.kernels import _fla

    def dplr(r, w, k, v, a, b, scale):
        heads_first = (x.transpose(1, 2) for x in (r * r.shape[-1] ** 0.5, k, v, a, b, w))
        y_BHTV, _ = dplr_recurrence(*heads_first)
        return (y_BHTV.transpose(1, 2),)

    def gla(q, k, v, g, scale):
        return naive_recurrent_gla(q * q.shape[-1] ** 0.5, k, v, g)

    def delta(q, k, v, g, beta, scale):
        repeat = v.shape[2] // q.shape[2]
        q, k = (x.repeat_interleave(repeat, 2) for x in (q, k))
        return naive_recurrent_gated_delta_rule(q, k, v, beta, g, scale=scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_fla, "chunk_simple_gla", naive_recurrent_simple_gla)
        patch.setattr(_fla, "chunk_gla", gla)
        patch.setattr(_fla, "chunk_gated_delta_rule", delta)
        patch.setattr(_fla, "chunk_rwkv7", dplr)
        yield _fla


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def selective():
    a_BTH = torch.sigmoid(drawn(2, 13, 4))
    x, dt, B, C = drawn(2, 13, 4, 8), drawn(2, 13, 4).abs(), drawn(2, 13, 2, 5), drawn(2, 13, 2, 6)
    return x, dt, a_BTH, B, C[..., :5], drawn(4)


def same(adapter, ours, *given):
    """Value and the gradients by all that is given."""
    results = []
    for function in (adapter, ours):
        inputs = [x.clone().requires_grad_() for x in given]
        y = function(*inputs)
        results.append([y, *torch.autograd.grad((y * drawn(*y.shape)).sum(), inputs)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_simple_gated_linear_attention_is_ssd(fla):
    given = selective()
    same(fla.ssd, ssd, *given)
    with pytest.raises(AssertionError):
        same(lambda *given: fla.ssd(*given[:-1], 2 * given[-1]), ssd, *given)
    with pytest.raises(AssertionError):  # the same values, but no gradient by dt
        same(lambda x, dt, *rest: fla.ssd(x, dt.detach() + 0 * dt, *rest), ssd, *given)


def test_gated_linear_attention_is_ours(fla):
    wide = 2, 13, 3, 8
    given = drawn(*wide), drawn(*wide) / 3, drawn(2, 13, 3, 7), -drawn(*wide).abs()
    same(fla.gla, gated_linear_attention, *given)


def test_the_gated_delta_rule_is_ours_also_with_value_heads_that_share_a_key(fla):
    k_BTGK = torch.nn.functional.normalize(drawn(2, 13, 2, 8), dim=-1)
    given = drawn(2, 13, 2, 8), k_BTGK, drawn(2, 13, 4, 7), -drawn(2, 13, 4).abs()
    beta_BTH = 2 * torch.sigmoid(drawn(2, 13, 4))
    same(fla.gated_deltanet, gated_delta_rule, *given, beta_BTH)


def test_the_delta_rule_of_rwkv7_is_ours(fla):
    wide = 2, 13, 3, 8
    kap = torch.nn.functional.normalize(drawn(*wide), dim=-1)
    share, log_w = torch.sigmoid(drawn(*wide)), -0.6 * torch.sigmoid(drawn(*wide))
    given = drawn(*wide), log_w, drawn(*wide) / 3, drawn(*wide), kap, kap * share

    def of_heads(function):
        return lambda *given: function(Heads(*given))

    same(of_heads(fla.rwkv7), of_heads(weighted_delta_rule), *given)


def test_rates_of_decay_say_to_mamba_ssm_what_decays_say_to_us(monkeypatch):
    """With its scan written out: the package cannot be imported without a GPU."""

    def scan(x, dt, A, B, C, chunk_size):
        return ssd(x, dt, (dt * A).exp(), B, C, torch.zeros(x.shape[2]))

    parts = ["mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"]
    for name in (*parts, "mamba_ssm.ops.triton.ssd_combined"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["mamba_ssm.ops.triton.ssd_combined"].mamba_chunk_scan_combined = scan
    monkeypatch.delitem(sys.modules, "archsearch.kernels._mamba_ssm", raising=False)
    from archsearch.kernels._mamba_ssm import ssd as theirs

    given = [*selective()]
    same(theirs, ssd, *given)
    given[2] = torch.ones_like(given[2])  # no decay at all
    torch.testing.assert_close(theirs(*given), ssd(*given), rtol=1e-4, atol=1e-4)
    monkeypatch.delitem(sys.modules, "archsearch.kernels._mamba_ssm")


def test_the_scan_of_mamba_ssm_is_ours_with_time_last(monkeypatch):
    """With its scan written out: it is CUDA code. Value and all gradients."""

    def scan(u_BDL, delta_BDL, A_DN, B_BNL, C_BNL):
        h_BDN, outputs = 0, []
        for t in range(u_BDL.shape[2]):
            u, delta, B, C = (v[..., t] for v in (u_BDL, delta_BDL, B_BNL, C_BNL))
            a_BDN = torch.exp(delta[..., None] * A_DN)
            h_BDN = a_BDN * h_BDN + (delta * u)[..., None] * B[:, None]
            outputs.append((h_BDN @ C[..., None])[..., 0])
        return torch.stack(outputs, 2)

    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["mamba_ssm.ops.selective_scan_interface"].selective_scan_fn = scan
    adapter, extension = "archsearch.kernels._mamba_ssm_scan", "selective_scan_cuda"
    monkeypatch.delitem(sys.modules, adapter, raising=False)
    monkeypatch.setitem(sys.modules, extension, None)
    with pytest.raises(ImportError, match=extension):  # when it is chosen, not when it is called
        import_module(adapter)
    monkeypatch.setitem(sys.modules, extension, ModuleType(extension))
    theirs = import_module(adapter).selective_scan

    x, dt, A_log, B = drawn(13, 2, 6), drawn(13, 2, 6).abs(), drawn(6, 5), drawn(13, 2, 5)
    C = B.flip(0) + 1

    same(theirs, selective_scan, x, dt, A_log, B, C)
    with pytest.raises(AssertionError):
        same(lambda x, dt, *rest: theirs(x, 2 * dt, *rest), selective_scan, x, dt, A_log, B, C)
    assert theirs(x.bfloat16(), dt, A_log, B, C).dtype == torch.bfloat16
    monkeypatch.delitem(sys.modules, adapter)


def test_the_scan_of_mamba_ssm_says_what_it_cannot_compute():
    scan = next(b for b in OPS["selective_scan"].backends if b.name == "mamba_ssm")

    def reason(dtype, states):
        return scan.supports(Problem("cuda", "sm_90", dtype, {"A_log_EN": states}))

    assert reason(torch.float32, 256) == ""
    assert "fp64" in reason(torch.float64, 16)
    assert "at most 256" in reason(torch.float32, 257)

import pytest
import torch

from archsearch.kernels.fft_convolution import causal_convolution


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def direct(u_BDT, h_DT):
    """The sum itself, as a product with a Toeplitz matrix for each channel."""
    time = u_BDT.shape[-1]
    lag_TT = torch.arange(time)[:, None] - torch.arange(time)
    toeplitz_DTT = h_DT[:, lag_TT.clamp(min=0)] * (lag_TT >= 0)
    return torch.einsum("dts,bds->bdt", toeplitz_DTT, u_BDT)


@pytest.mark.parametrize("time", [1, 2, 3, 64, 65, 257])
def test_convolution_by_fft_is_the_sum(time):
    u_BDT, h_DT = draw(2, 5, time), draw(5, time, seed=1)
    want = direct(u_BDT, h_DT)
    torch.testing.assert_close(causal_convolution(u_BDT, h_DT), want, rtol=1e-12, atol=1e-12)
    got = causal_convolution(u_BDT.float(), h_DT.float())
    assert (got - want).abs().max() < 1e-6 * want.abs().max()


def test_without_padding_the_circle_of_the_fft_would_show():
    """Must fail: a transform of the length of the sequence brings the end back to the start."""
    u_BDT, h_DT = draw(2, 5, 64), draw(5, 64, seed=1)
    wrapped = torch.fft.irfft(torch.fft.rfft(u_BDT) * torch.fft.rfft(h_DT), 64)
    assert (wrapped - direct(u_BDT, h_DT)).abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_is_computed_in_float32_or_finer(dtype):
    u_BDT, h_DT = draw(2, 5, 33).to(dtype), draw(5, 33, seed=1).to(dtype)
    got, want = causal_convolution(u_BDT, h_DT), direct(u_BDT.double(), h_DT.double())
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 1e-6 * want.abs().max()

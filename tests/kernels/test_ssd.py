import pytest
import torch

from archsearch.kernels.ssd import CHUNK, ssd, ssd_ref

NAMES = ("y", "x", "dt", "a", "B", "C", "D")


def draw(time, heads=4, groups=2, width=8, state=6):
    """Inputs in float64, decays of both signs."""
    generator = torch.Generator().manual_seed(time)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, dt = normal(2, time, heads, width), normal(2, time, heads).abs()
    B, C = normal(2, time, groups, state), normal(2, time, groups, state)
    return [x, dt, normal(2, time, heads).tanh(), B, C, normal(heads)]


def value_and_gradients(scan, inputs, dtype=torch.float64):
    inputs = [v.detach().to(dtype).requires_grad_() for v in inputs]
    y = scan(*inputs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad((y * weight.to(dtype)).sum(), inputs)
    return {n: v.detach().double() for n, v in zip(NAMES, (y, *grads), strict=True)}


def assert_close(got, want, rtol):
    for name in NAMES:
        error = (got[name] - want[name]).abs().max()
        assert error <= rtol * want[name].abs().max(), name


@pytest.mark.parametrize("time", [1, 2, 3, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_the_recurrence(time, groups):
    inputs = draw(time, groups=groups)
    got, want = (value_and_gradients(scan, inputs) for scan in (ssd, ssd_ref))
    assert_close(got, want, 1e-13)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, 1e-30, -1e-300])
def test_no_decay_is_a_special_case(decay):
    inputs = draw(2 * CHUNK + 3)
    inputs[2][:, ::3] = decay
    inputs[2][:, :, 0] = decay
    got, want = (value_and_gradients(scan, inputs) for scan in (ssd, ssd_ref))
    assert_close(got, want, 1e-13)


@pytest.mark.parametrize("slowest", [0.0, -1e-4, -1.0])
@pytest.mark.parametrize("fastest", [-1.0, -30.0, -1e4])
def test_fp32_is_accurate_whatever_the_decays(slowest, fastest):
    """Slow and fast decays in turn; the gradient of the decays is as accurate as the rest."""
    inputs = draw(200)
    inputs[2] = torch.where(inputs[2] > 0, slowest, fastest).mul(inputs[1]).exp()
    want = value_and_gradients(ssd_ref, inputs)
    assert_close(value_and_gradients(ssd, inputs, torch.float32), want, 2e-6)


def test_layouts_of_the_inputs_do_not_matter():
    inputs = draw(70)
    strided = [torch.stack((v, v), -1)[..., 0] for v in inputs]
    assert not strided[0].is_contiguous()
    got, want = value_and_gradients(ssd, strided), value_and_gradients(ssd, inputs)
    assert_close(got, want, 1e-14)

import pytest
import torch

from archsearch.kernels.selective_scan import selective_scan


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def recurrence(x_TBE, dt_TBE, A_log_EN, B_TBN, C_TBN):
    h, outputs = 0, []
    for x, dt, B, C in zip(x_TBE, dt_TBE, B_TBN, C_TBN, strict=True):
        decay = torch.exp(-dt[..., None] * A_log_EN.exp())
        h = decay * h + (dt * x)[..., None] * B[:, None]
        outputs.append((h * C[:, None]).sum(-1))
    return torch.stack(outputs)


def inputs(time, dtype=torch.float64):
    x, B, C = draw(time, 2, 6), draw(time, 2, 5, seed=1), draw(time, 2, 5, seed=2)
    given = x, draw(time, 2, 6, seed=3).abs(), draw(6, 5, seed=4), B, C
    return [v.to(dtype).requires_grad_() for v in given]


@pytest.mark.parametrize("time", [1, 7, 8, 9, 16, 41])
def test_gradient_of_the_scan_is_that_of_the_recurrence(time):
    given, weight = inputs(time), draw(time, 2, 6, seed=5)
    y, want = selective_scan(*given), recurrence(*given)
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-13)
    grads = torch.autograd.grad((y * weight).sum(), given)
    wanted = torch.autograd.grad((want * weight).sum(), given)
    torch.testing.assert_close(grads, wanted, rtol=1e-11, atol=1e-12)


def test_gradient_of_the_scan_equals_differences():
    assert torch.autograd.gradcheck(selective_scan, inputs(10))


def test_gradient_of_a_gradient_is_refused():
    given = inputs(3)
    grad = torch.autograd.grad(selective_scan(*given).square().sum(), given[0], create_graph=True)[
        0
    ]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("dt", [1e-6, 1e-2, 1.0, 1e3, 1e20])
def test_scan_is_exact_in_fp32_whatever_the_step_size(dt):
    x, _, A_log, B, C = inputs(300)
    dts = draw(300, 2, 6, seed=3).abs() * dt
    want = recurrence(x, dts, A_log, B, C)
    got = selective_scan(*(v.float() for v in (x, dts, A_log, B, C)))
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_autocast_does_not_round_it():
    given = [v.detach() for v in inputs(9, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = selective_scan(*given)
    assert torch.equal(rounded, selective_scan(*given))

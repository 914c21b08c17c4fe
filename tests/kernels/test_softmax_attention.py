import torch

from archsearch.kernels.softmax_attention import attend


def test_one_head_is_the_textbook_formula():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 9, 1, 32, generator=generator, dtype=torch.float64)
    got = attend(q, k, v)[:, -1, 0]
    weights = torch.softmax((q[:, -1:, 0] @ k[:, :, 0].mT)[:, 0] / 32**0.5, -1)
    torch.testing.assert_close(got, (weights[..., None] * v[:, :, 0]).sum(1))

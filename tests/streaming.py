"""What must hold of every causal model: token by token it says what it says of a whole text."""

import torch

from archsearch.model import cost

LENGTH = 37
"""Tokens that are streamed: more than were trained on, and no multiple of any chunk."""


@torch.no_grad()
def require_that_it_streams(model):
    """Require that a model says token by token what it says of a text as a whole."""
    tokens_BT = torch.randint(model.vocab, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    promised = cost(model.genome, LENGTH)
    outside = sum(p.numel() for name, p in model.named_parameters() if around(name))
    assert sum(p.numel() for p in model.parameters()) - outside == promised.params
    assert model.start(1, LENGTH).bytes == promised.state_bytes
    model.eval()
    assert model(tokens_BT).isfinite().all()
    model.double()
    logits_BTV, decoding = model(tokens_BT), model.start(2, LENGTH)
    decoding.state = {name: doubled(tensor) for name, tensor in decoding.state.items()}
    said_BTV = torch.stack([model.step(token_B, decoding) for token_B in tokens_BT.unbind(1)], 1)
    torch.testing.assert_close(said_BTV, logits_BTV, rtol=1e-6, atol=1e-6)
    decoding = model.start(2, LENGTH)
    decoding.state = {name: doubled(tensor) for name, tensor in decoding.state.items()}
    parts = [
        model.prefill(part_BT, decoding) for part_BT in tokens_BT.split([20, 1, LENGTH - 21], 1)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), logits_BTV, rtol=1e-6, atol=1e-6)


def around(name):
    """Whether a parameter belongs to embeddings or readout, which `cost` leaves out."""
    return name.split(".")[0] in ("embedding", "lift", "lower", "readout", "decoder")


def doubled(tensor):
    return tensor.double() if tensor.is_floating_point() else tensor

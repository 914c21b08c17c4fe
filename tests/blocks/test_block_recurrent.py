import pytest
import torch

from archsearch.block import Ctx
from archsearch.blocks.attention import Attention
from archsearch.blocks.block_recurrent import BlockRecurrent
from archsearch.errors import BlockError
from archsearch.testing.blocks import Case

DOUBLE = torch.float64


def built(width=16, **given):
    config = BlockRecurrent.Config(**dict(BlockRecurrent.info.fill(given)))
    return Case(BlockRecurrent, width, config).build(DOUBLE, drawn=True)


def tokens(time, width=16):
    return torch.randn(2, time, width, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def decoded(block, x_BTD, context, start=0):
    state, outputs, states = block.init_state(len(x_BTD), context), [], []
    for seen, x_BD in enumerate(x_BTD.unbind(1)):
        states.append(state["states"])
        y_BD, state = block.step(x_BD, state, Ctx(x_BD, position=start + seen, seen=seen))
        outputs.append(y_BD)
    return torch.stack(outputs, 1), torch.stack([*states, state["states"]], 1)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("gate", ["fixed", "lstm"])
@pytest.mark.parametrize("pos", ["rope", "none"])
def test_only_distances_matter(gate, pos):
    block, x_BTD = built(window=8, gate=gate, pos=pos), tokens(30)
    y_BTD = block(x_BTD, Ctx(x_BTD))
    close(block(x_BTD, Ctx(x_BTD, position=1000)), y_BTD)
    close(decoded(block, x_BTD, 30, start=77)[0], y_BTD)


def test_without_its_states_it_is_sliding_window_attention():
    block, x_BTD = built(window=8), tokens(30)
    plain = Case(Attention, 16, Attention.Config(heads=4, window=8)).build(DOUBLE)
    q, _, k, v = block.qkv.weight.split(16)
    with torch.no_grad():
        plain.qkv.weight.copy_(torch.cat((q, k, v)))
        plain.out.weight.copy_(block.out.weight[:, :16])
        assert not torch.allclose(block(x_BTD, Ctx(x_BTD)), plain(x_BTD, Ctx(x_BTD)))
        block.out.weight[:, 16:] = 0
    close(block(x_BTD, Ctx(x_BTD)), plain(x_BTD, Ctx(x_BTD)))


def test_tokens_read_beyond_the_window_only_through_finished_blocks():
    block, x_BTD = built(window=8, states=3), tokens(28).requires_grad_()
    with torch.no_grad():
        block.out.weight[:, :16] = 0  # what the window says
    y_BTD = block(x_BTD, Ctx(x_BTD))
    for t in range(28):
        grad = torch.autograd.grad(y_BTD[0, t].sum(), x_BTD, retain_graph=True)[0]
        reached = [s for s in range(28) if grad[0, s].any()]
        assert reached == [*range(t // 8 * 8), t]


def test_states_change_at_the_end_of_a_block_and_nowhere_else():
    states_BTSD = decoded(built(window=8), tokens(26), 26)[1]
    changed = [
        bool((a != b).any()) for a, b in zip(states_BTSD[0], states_BTSD[0, 1:], strict=False)
    ]
    assert [t for t, moved in enumerate(changed) if moved] == [7, 15, 23]


def test_an_open_gate_keeps_the_first_states():
    block, x_BTD = built(window=8), tokens(26)
    with torch.no_grad():
        block.gate_bias.fill_(100.0)
    first_BSD = block.initial.expand(2, -1, -1)
    close(decoded(block, x_BTD, 26)[1], first_BSD[:, None].expand(-1, 27, -1, -1))


def test_order_inside_a_block_does_not_reach_the_states():
    """States read keys that RoPE has not turned; the must-fail swap crosses a border."""
    block, x_BTD = built(window=8), tokens(16)
    states_BTSD = decoded(block, x_BTD, 16)[1]
    close(
        decoded(block, x_BTD[:, [2, 0, 3, 1, 7, 6, 5, 4, *range(8, 16)]], 16)[1][:, -1],
        states_BTSD[:, -1],
    )
    across_BTSD = decoded(block, x_BTD[:, [*range(7), 8, 7, *range(9, 16)]], 16)[1]
    assert not torch.allclose(across_BTSD[:, -1], states_BTSD[:, -1])


def test_the_decode_state_does_not_grow_with_the_context():
    config = BlockRecurrent.Config(window=8)
    short, long = (BlockRecurrent.cost(16, config, time).state_bytes for time in (8, 4096))
    assert short == long


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(BlockError) as error:
        BlockRecurrent.check(16, BlockRecurrent.Config(heads=3, pos="none"))
    expected = "does not divide width 16; legal: 1, 2, 4, 8, 16"
    assert str(error.value) == f"block_recurrent.heads 3 {expected}"

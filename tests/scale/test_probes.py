"""What is noted of a training is what happens in it."""

import pytest
import torch
from torch.nn import functional as F

from archsearch.genome import Gene, Genome
from archsearch.model import Extras, build
from archsearch.scale.probes import AttentionLogits, Probes
from archsearch.sections import Recipe
from archsearch.train import cross_entropy, generator, optimizers

GENOME = Genome(32, (Gene.of("attention", heads=4, kv_heads=2), Gene.of("swiglu")))


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("time", [1, 300])
def test_the_largest_logit_is_that_of_the_definition(time, shared):
    rng = generator("test", "logits")
    q_BHTK = torch.randn(2, 4, time, 8, generator=rng)
    k_BHSK, v_BHSK = torch.randn(2, 2, 4 // shared, time, 8, generator=rng)
    with AttentionLogits() as seen:
        y = F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, enable_gqa=shared > 1)
    logits = q_BHTK @ k_BHSK.repeat_interleave(shared, 1).mT / 8**0.5
    torch.testing.assert_close(seen.most, logits.max())
    again = F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, enable_gqa=shared > 1)
    assert torch.equal(y, again)


def test_ratios_are_those_of_the_step_that_was_made():
    model = build(GENOME, 16, generator=generator("start"))
    made = optimizers(model, Recipe(lr=1e-2))
    rows_BT = torch.randint(16, (2, 9), generator=generator("rows"))
    for _ in range(3):
        before = {name: p.clone() for name, p in model.state_dict().items()}
        cross_entropy(model(rows_BT[:, :-1], Extras()), rows_BT[:, 1:]).backward()
        made[0].step()
        made[0].zero_grad()
    probes = Probes()
    probes.look(3, 1.0, model, rows_BT, made)
    moved = {
        name: (float((p - before[name]).square().sum()), float(p.square().sum()))
        for name, p in model.state_dict().items()
        if model.role_of(name).kind == "hidden"
    }
    ratio = (sum(up for up, _ in moved.values()) / sum(w for _, w in moved.values())) ** 0.5
    assert probes.update_ratio["hidden"] == [pytest.approx(ratio, rel=1e-3)]


def test_branches_and_the_normaliser_are_noted_under_their_names():
    model = build(GENOME, 16, generator=generator("start"))
    rows_BT = torch.randint(16, (2, 9), generator=generator("rows"))
    probes = Probes()
    for step in (1, 2):
        probes.look(step, 2.0, model, rows_BT, optimizers(model, Recipe()))
    log = probes.log()
    assert (log.steps, log.loss) == ((1, 2), (2.0, 2.0))
    assert set(log.rms) == {"0", "1"}
    with torch.no_grad():
        expected = float(model.eval()(rows_BT).logsumexp(-1).mean())
    assert log.log_z == (pytest.approx(expected), pytest.approx(expected))

"""Parametrisations: the table of factors, whole models, equal forms, shared weights, epsilon."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings

from archsearch.block import Role, block_class, zeros
from archsearch.blocks.swiglu import SwiGLU
from archsearch.errors import BlockError, SpaceError
from archsearch.genome import Gene, Genome
from archsearch.model import Model, build
from archsearch.mup import EXPONENTS, Base, Scales, branch_multiplier, scale, widened
from archsearch.testing import slopes
from archsearch.testing.slopes import VOCAB, Net, Text, depths, measured, observe, widths
from archsearch.train import generator
from tests.strategies import genomes

HIDDEN = Role.hidden("out", "in")
READOUT = Role.readout(None, "in")
EMBEDDING = Role.embedding(None, "out", init=zeros)
JOINING = Role.embedding(None, "out", init=zeros, joins=True)
VECTOR = Role.vector("in", init=zeros)
FILTER = Role.vector("in", None, init=zeros)
SMALL = Role.small(None, init=zeros)
STACKED = Role.hidden(None, "out", "in")

TABLE = [
    # role, base shape, target shape; for 4 times the width and 8 times the depth, of plain muP:
    # init, multiplier, lr, weight decay, eps; and whether l^(a-1), l^-a and l^-a on the output hold
    (HIDDEN, (64, 32), (256, 128), Scales(1, 1, 1 / 4, 4, 1 / 4)),
    (HIDDEN, (64, 32), (64, 128), Scales(1, 1, 1 / 4, 4, 1 / 4)),
    (HIDDEN, (64, 32), (256, 32), Scales(1, 1, 1, 1, 1 / 4)),
    (STACKED, (8, 64, 32), (8, 256, 128), Scales(1, 1, 1 / 4, 4, 1 / 4)),
    (READOUT, (8, 32), (8, 128), Scales(2, 1 / 4, 1, 1, 1 / 4)),
    (EMBEDDING, (8, 32), (8, 128), Scales(1, 1, 1, 1, 1 / 4)),
    (VECTOR, (32,), (128,), Scales(1, 1, 1, 1, 1 / 4)),
    (FILTER, (32, 3), (128, 3), Scales(1, 1, 1, 1, 1 / 4)),
    (SMALL, (8,), (8,), Scales(1, 1, 1, 1, 1)),
]


@pytest.mark.parametrize("depth", [1.0, 8.0])
@pytest.mark.parametrize(("role", "base", "target", "mup"), TABLE)
def test_the_table_of_factors(role, base, target, mup, depth):
    assert scale(role, base, target, depth, "sp") == Scales()
    assert scale(role, base, target, depth, "mup") == mup
    for scheme in ("depth_mup", "completep"):
        a = EXPONENTS[scheme]
        deep = dataclasses.replace(mup, lr=mup.lr * depth ** (a - 1), eps=mup.eps * depth**-a)
        found = scale(role, base, target, depth, scheme)
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(deep), rel=1e-12)


def test_the_multiplier_of_a_branch_and_of_what_joins_the_stream_itself():
    for scheme, want in {"sp": 1, "mup": 1, "depth_mup": 1 / 4, "completep": 1 / 16}.items():
        assert branch_multiplier(16, scheme) == want
        joining = scale(JOINING, (8, 32), (8, 64), 16, scheme)
        assert joining.multiplier == want
        assert joining == dataclasses.replace(
            scale(EMBEDDING, (8, 32), (8, 64), 16, scheme), multiplier=want
        )


def test_a_multiplier_goes_into_the_weight_and_what_trains_it():
    assert Scales(2, 1 / 4, 1, 1, 1 / 4).folded() == Scales(1 / 2, 1, 1 / 4, 4, 1)


KINDS = {
    "armt": {"slots": "embedding", "q.weight": "hidden", "beta.weight": "readout"},
    "attention": {"qkv.weight": "hidden", "qkv.bias": "vector", "out.weight": "hidden"},
    "gated_deltanet": {"conv1d.weight": "vector", "A_log": "vector", "norm.weight": "small"},
    "gla": {"low.weight": "hidden", "channel_decay.weight": "embedding"},
    "hyena": {"short_filter.weight": "vector", "filter.out.weight": "embedding"},
    "kan": {"up.weight": "hidden", "down.weight": "hidden"},
    "loop": {"halt.weight": "readout", "halt.bias": "small", "step_embedding": "embedding"},
    "mamba1": {"x_proj.weight": "hidden", "dt_proj.weight": "hidden", "A_log": "vector"},
    "mamba2": {
        "in_proj.weight": "hidden", "conv1d.weight": "vector", "A_log": "vector",
        "dt_bias": "vector", "D": "vector", "norm.weight": "vector",
    },
    "mod": {"router.weight": "readout", "predictor.weight": "readout"},
    "moe": {
        "gate.weight": "readout", "noisy_gate.weight": "readout", "noise.weight": "readout",
        "experts.gate_up_proj": "hidden", "experts.down_proj": "hidden", "bias": "small",
    },
    "parallel": {"gate.weight": "readout", "gain": "vector"},
    "peer": {
        "down.weight": "hidden", "up.weight": "embedding", "retrieval.query.weight": "hidden",
        "retrieval.keys": "small",
    },
    "pkm": {"values.weight": "embedding"},
    "shared_attention": {
        "qkv.weight": "hidden", "mlp_loras.*.a.weight": "hidden",
        "mlp_loras.*.b.weight": "embedding", "qkv_loras.*.b.weight": "embedding",
    },
    "short_conv": {"conv.weight": "vector"},
    "swiglu": {"act.coefficients": "vector", "act.numerator": "small"},
    "ttt": {"W1": "vector", "in_proj.weight": "hidden", "delta": "small"},
}  # fmt: skip


@pytest.mark.parametrize("block", KINDS)
def test_the_classes_that_shapes_do_not_tell(block):
    roles = block_class(block).roles
    assert {name: roles[name].kind for name in KINDS[block]} == KINDS[block]


def axes_that_grow(genome, readout="token"):
    """Of every parameter, whether each axis grows with the width, and whether its role says so."""
    with torch.device("meta"):
        small = Model(genome, VOCAB, readout)
        large = Model(widened(genome, 2 * genome.d_model), VOCAB, readout)
    shapes = dict(large.named_parameters())
    assert shapes.keys() == dict(small.named_parameters()).keys()
    for name, parameter in small.named_parameters():
        grow = [b > a for a, b in zip(parameter.shape, shapes[name].shape, strict=True)]
        role = small.role_of(name)
        # channels of a head that stays as wide as it is do not grow
        said = [axis not in (None, "head") for axis in role.axes]
        yield name, grow, said, role


@settings(max_examples=40, deadline=None)
@given(genome=genomes())
def test_roles_are_true_in_whole_models(genome):
    for readout in ("token", "code"):
        for name, grow, said, role in axes_that_grow(genome, readout):
            assert grow == said, name
            assert (role.kind == "small") == (not any(axis for axis in role.axes)), name
    base = Base(genome.d_model, len(genome.genes))
    with torch.device("meta"):
        model = Model(widened(genome, 2 * genome.d_model), VOCAB, base=base)
    assert model.scales.keys() == dict(model.named_parameters()).keys()


def test_a_role_that_is_missing_or_wrong_is_caught(monkeypatch):
    genome = Genome(16, (Gene.of("mod", of=(Gene.of("swiglu"),)), Gene.of("attention", heads=2)))
    left = {name: role for name, role in SwiGLU.roles.items() if name != "up.weight"}
    monkeypatch.setattr(SwiGLU, "roles", {**left, "up.weight": Role.hidden("hidden", None)})
    wrong = [name for name, grow, said, _ in axes_that_grow(genome) if grow != said]
    assert wrong == ["stack.branches.0.block.inner.branches.0.block.up.weight"]
    monkeypatch.setattr(SwiGLU, "roles", left)
    with pytest.raises(BlockError, match=r"'up\.weight' has no role"):
        build(genome, VOCAB, generator=generator("start"), base=Base(16, 2))


FRAMES = [
    {},
    {"tie_embeddings": True},
    {"embedding_rank": 8},
    {"embedding_rank": 8, "tie_embeddings": True},
    {"norm": "layer", "norm_place": "sandwich"},
]
NET = (Gene.of("attention", heads=2), Gene.of("swiglu"))


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_logits_learn_at_the_same_pace_in_every_frame(frame):
    """The readout's multiplier is where it belongs, also if its weight is tied or factorised."""

    def at(factor):
        genome = widened(Genome(32, NET, **frame), 32 * factor)
        return lambda start: build(
            genome, VOCAB, generator=generator("start", start), base=Base(32, 2)
        )

    found = measured({f: at(f) for f in (1, 4)}, range(2), slopes.learned)
    assert abs(found["logits 5"].slope) <= 0.3
    assert abs(found["stream 5"].slope) <= 0.3


def losses(model, eps, *, scaled=True, steps=10):
    """Of steps of Adam with the groups that the scales of the model make, in float64."""
    inputs_BT, targets_BT = Text().rows
    optimizer = torch.optim.Adam(
        [
            {
                "params": [parameter],
                "lr": slopes.LR * model.scales[name].lr,
                "eps": eps * (model.scales[name].eps if scaled else 1),
            }
            for name, parameter in model.named_parameters()
        ]
    )
    found = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(
            model(inputs_BT).flatten(0, 1), targets_BT.flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("frame", [{}, {"embedding_rank": 8}], ids=str)
def test_a_folded_readout_trains_as_one_with_a_multiplier(frame):
    name = "lower.weight" if frame else "readout.weight"
    genome = widened(Genome(32, NET, **frame), 128)
    model = build(genome, VOCAB, generator=generator("start"), base=Base(32, 2)).double()

    def folded():
        twin = copy.deepcopy(model)
        twin.scales[name] = twin.scales[name].folded()
        with torch.no_grad():
            twin.get_parameter(name).mul_(twin.logit_multiplier)
        twin.logit_multiplier = 1.0
        return twin

    def plain():
        return copy.deepcopy(model)

    assert model.logit_multiplier == 1 / 4
    assert (losses(plain(), 1e-3) - losses(folded(), 1e-3)).abs().max() < 1e-8
    unscaled = losses(plain(), 1e-3, scaled=False) - losses(folded(), 1e-3, scaled=False)
    assert unscaled.abs().max() > 1e-4


@pytest.mark.parametrize("block", ["attention", "mamba2"])
def test_shared_weights_count_as_deep_as_they_are_used(block):
    """CompleteP alone does: depth-muP counts on branches that are independent at the start."""
    (case, *_) = slopes.settings(block_class(block))

    def found(scheme):
        models = depths(Net(case, scheme, wide=1, shared=True), (2, 16))
        slope = measured(models, range(2), slopes.learned)
        return [slope[name].slope for name in ("stream 0", "stream 1", "stream 5")]

    assert all(abs(slope) <= 0.2 for slope in found("completep"))
    assert all(slope >= 0.25 for slope in found("depth_mup"))


def gradients(model, text):
    """log2 of the gradient of every group over its epsilon."""
    observe(model, text).loss.backward()
    sizes = {}
    for name, parameter in model.named_parameters():
        size = parameter.grad.double().square().mean().sqrt() / model.scales[name].eps
        sizes.setdefault(slopes.group(name), []).append(float(size))
    return {name: math.log2(sum(all_) / len(all_)) for name, all_ in sizes.items()}


@pytest.mark.parametrize("block", ["attention", "swiglu"])
@pytest.mark.parametrize(("models", "sizes"), [(widths, (1, 4)), (depths, (2, 16))])
def test_epsilon_follows_the_gradients(models, sizes, block):
    (case, *_) = slopes.settings(block_class(block))
    found = measured(models(Net(case), sizes), range(4), gradients)
    assert all(abs(slope.slope) <= 0.2 for slope in found.values()), found


def test_epsilon_that_is_the_same_everywhere_is_caught(monkeypatch):
    def unscaled(*given):
        return dataclasses.replace(scale(*given), eps=1.0)

    monkeypatch.setattr("archsearch.model.scale", unscaled)
    (case, *_) = slopes.settings(block_class("swiglu"))
    found = measured(widths(Net(case), (1, 4)), range(2), gradients)
    assert all(slope.slope <= -0.6 for slope in found.values()), found


def test_a_large_hybrid_trains_at_the_base_learning_rate():
    motif = (
        Gene.of("mamba2", head_dim=16, d_state=16),
        Gene.of("swiglu"),
        Gene.of("shared_attention", "A", heads=2),
        Gene.of("moe", experts=4),
    )
    genome = widened(Genome(32, motif * 3), 128)
    model = build(genome, VOCAB, generator=generator("start"), base=Base(32, 4))
    points = list(Text().training(model, 50, 5))
    assert all(point.loss < math.log(VOCAB) for point in points)


def test_a_width_that_heads_do_not_fit_names_the_nearest():
    with pytest.raises(SpaceError, match=r"cannot be 36 wide.*legal widths: 32, 40"):
        widened(Genome(16, (Gene.of("attention", heads=2),)), 36)

"""One name for each model: the keys of genomes."""

import copy
import json
import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archsearch.catalogue import block_info, block_names
from archsearch.errors import SpaceError
from archsearch.genome import FRAME, Gene, Genome
from archsearch.model import Extras, build

from .strategies import (
    AROUND,
    FITTING,
    NEXT,
    VALUES,
    WRAPPERS,
    genomes,
    parsed,
    rewritings,
)

few = settings(max_examples=25, deadline=None)
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKENS = torch.randint(0, 11, (2, 24), generator=torch.Generator().manual_seed(1))


def model(genome, seed=0):
    return build(genome, 11, generator=torch.Generator().manual_seed(seed))


def same_model(first, second):
    """Whether two genomes are one model: the same tree of modules, and bit-equal outputs."""
    one, two = model(first), model(second)
    if {n: p.shape for n, p in one.named_parameters()} != {
        n: p.shape for n, p in two.named_parameters()
    }:
        return False
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if name.startswith("stack") and not parameter.any():
                parameter.fill_(0.01)  # the second factor of a LoRA must not hide the first
                dict(two.named_parameters())[name].fill_(0.01)
        said = signals(one), signals(two)
        return len(said[0]) == len(said[1]) and all(map(torch.equal, *said))


def signals(model):
    """All that a model says: answers, and what it is trained on beside them."""
    answers = [model.eval()(TOKENS)]
    extras = Extras(torch.Generator().manual_seed(2))
    answers += [model.train()(TOKENS, extras), *extras.losses]
    return [
        *answers,
        *(logits for pair in extras.exits for logits in (torch.tensor(pair[0]), pair[1])),
    ]


def reworded(gene, names, rng):
    """The gene with other names of shared weights and another order of what stands side by side."""
    inner = [reworded(held, names, rng) for held in gene.inner]
    if block_info(gene.block).wraps == "set":
        rng.shuffle(inner)
    return replace(gene, share=names.get(gene.share), inner=tuple(inner))


def tangled(rng):
    """Wrappers that hold wrappers that hold shared weights, of which some hold shared weights."""
    bodies = [Gene.of("swiglu", share) for share in ("p", "q", "r", None)]
    bodies += [Gene.of("parallel", "v", [bodies[0], bodies[1], bodies[1]])]
    bodies += [Gene.of("loop", "w", [bodies[0], bodies[2]])]

    def one(depth):
        if depth == 0 or rng.random() < 0.5:
            return rng.choice(bodies)
        held = [one(depth - 1) for _ in range(rng.randint(1, 4))]
        return Gene.of(rng.choice(["parallel", "loop", "mod"]), None, held)

    return tuple(one(3) for _ in range(rng.randint(1, 5)))


@pytest.mark.parametrize("seed", range(100))
def test_the_order_of_a_set_and_the_names_of_shared_weights_change_no_key(seed):
    rng = random.Random(seed)
    genes = tangled(rng)
    genome, shares = Genome(16, genes), list("pqrvw")
    for _ in range(3):
        names = dict(zip(shares, rng.sample("abcde", 5), strict=True))
        other = Genome(16, tuple(reworded(gene, names, rng) for gene in genes))
        assert other == genome
        assert other.key == genome.key
    assert replace(genome) == genome
    assert Genome.from_json(genome.to_json()) == genome
    assert parsed(genome.to_space()).space.resolve(lambda path, dim: dim.first) == genome


def test_order_matters_where_one_comes_after_the_other():
    held = [Gene.of("swiglu"), Gene.of("attention", heads=2)]
    chain, other = (Genome(16, (Gene.of("loop", None, h),)) for h in (held, held[::-1]))
    assert chain != other


def test_random_genomes_hold_every_block():
    causal = {name for name in block_names() if not block_info(name).bidirectional}
    assert {*VALUES, *WRAPPERS} == causal


@many
@given(genomes())
def test_the_canonical_form_is_its_own_canonical_form(genome):
    assert replace(genome) == genome
    again = [
        replace(Gene.of(g.block, g.share, g.inner, **dict(g.params)), inputs=g.inputs,
                combine=g.combine)
        for g in genome.genes
    ]  # fmt: skip
    assert tuple(again) == genome.genes


@many
@given(genomes(), st.data())
def test_other_words_for_a_genome_have_its_key(genome, data):
    written = data.draw(rewritings(genome))
    space = parsed(written).space
    assert space.size == 1, yaml.safe_dump(written)
    again = space.replay({})
    assert again == genome, yaml.safe_dump(written)
    assert again.key == genome.key
    assert space.locate(genome) == {}


@few
@given(genomes(most=4), st.data())
def test_one_key_is_one_model_to_the_bit(genome, data):
    again = parsed(data.draw(rewritings(genome))).space.replay({})
    assert repr(model(again)) == repr(model(genome))
    assert same_model(again, genome)


def mutations(genome):
    """Every genome that differs in one gene, in a sharing or in what stands around the stack."""
    listed = list(genome.genes)
    for i, gene in enumerate(listed):
        others = [replace(gene, inputs=reads, combine=combine)
                  for reads in ((), (0,), (0, i), (0, max(0, i - 1)))
                  for combine in ("add", "gate")]  # fmt: skip
        for name, values in (VALUES | WRAPPERS)[gene.block].items():
            for value in values:
                given_params = dict(gene.params) | {name: value}
                if gene.block == "attention" and name == "heads":
                    given_params["kv_heads"] = None
                made = Gene.of(gene.block, **given_params)
                others.append(replace(gene, share=None, params=made.params))
        others += [Gene.of(block, **FITTING.get(block, {})) for block in VALUES]
        others += [replace(gene, inner=(*gene.inner, Gene.of("swiglu")))] if gene.inner else []
        others += [replace(gene, inner=gene.inner[::-1])]
        for other in others:
            yield [*listed[:i], other, *listed[i + 1 :]], {}
        yield [*listed[:i], gene, gene, *listed[i + 1 :]], {}
        yield listed[:i] + listed[i + 1 :], {}
        for j in range(i):
            if listed[j].block == gene.block and listed[j].params == gene.params:
                tied = copy.copy(listed)
                tied[i] = tied[j] = replace(gene, share="new")
                yield tied, {}
                swapped = copy.copy(listed)
                swapped[i], swapped[j] = swapped[j], swapped[i]
                yield swapped, {}
    for name, values in AROUND.items():
        for value in values:
            yield listed, {name: value}
    yield listed, {"d_model": genome.d_model * 2}


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(genomes(most=4), st.data())
def test_keys_are_equal_where_models_are_and_nowhere_else(genome, data):
    changed, around = data.draw(st.sampled_from(list(mutations(genome))))
    try:
        other = replace(genome, genes=tuple(changed), **around)
    except SpaceError:
        return
    equal = same_model(genome, other)
    assert (other.key == genome.key) == equal, f"{genome.text()} / {other.text()}"
    assert (other == genome) == equal


def test_where_the_model_normalises_no_branch_the_place_of_norms_is_nothing():
    skips = (Gene.of("skip"), replace(Gene.of("skip"), inputs=(0,)))
    one, other = (Genome(16, skips, norm_place=place) for place in ("pre", "sandwich"))
    assert one.key == other.key
    assert same_model(one, other)
    normed = (*skips, Gene.of("swiglu"))
    assert Genome(16, normed).key != Genome(16, normed, norm_place="sandwich").key


def test_the_comparison_of_models_sees_a_difference_and_an_equality():
    one, other = Genome(16, (Gene.of("swiglu"),)), Genome(16, (Gene.of("swiglu", act="gelu"),))
    assert same_model(one, one)
    assert not same_model(one, other)


def test_tied_embeddings_are_one_weight_in_the_built_model():
    for tied in (True, False):
        built = model(Genome(16, (Gene.of("swiglu"),), tie_embeddings=tied))
        assert (built.readout.weight is built.embedding.weight) == tied


@pytest.mark.parametrize("block", sorted(VALUES))
def test_every_parameter_with_an_effect_changes_the_key(block):
    info = block_info(block)
    base = Genome(16, (Gene.of(block), Gene.of("swiglu")))
    for name, dim in info.dims.items():
        needed = dict([dim.when]) if dim.when else {}
        ground = Genome(16, (Gene.of(block, **needed), Gene.of("swiglu")))
        other_value = next(
            v
            for v in (dim.options or (dim.low, dim.high))
            if v != dict(ground.genes[0].params)[name]
        )
        other = Genome(16, (Gene.of(block, **needed, **{name: other_value}), Gene.of("swiglu")))
        assert other.key != ground.key
        assert bool(needed) or ground == base


def test_a_parameter_without_effect_does_not_change_the_key():
    with_theta = Gene.of("attention", pos="none", theta=7.0)
    assert Genome(16, (with_theta,)).key == Genome(16, (Gene.of("attention", pos="none"),)).key
    alone = Genome(16, (Gene.of("attention", "A"), Gene.of("swiglu")))
    assert alone == Genome(16, (Gene.of("attention"), Gene.of("swiglu"), Gene.of(NEXT, "A")))


def scan(count):
    """Random genomes over the whole declared ranges: key -> canonical text."""
    rng = random.Random(5)
    found = {}
    for _ in range(count):
        chosen = [Gene.of("swiglu")]
        for _ in range(rng.randrange(1, 5)):
            block = rng.choice(block_names())
            dims = block_info(block).dims
            given_params = {n: d.sample(rng) for n, d in dims.items() if rng.random() < 0.3}
            given_params = {n: v for n, v in given_params.items() if v in dims[n]}
            held = [Gene.of("swiglu", mult=rng.randrange(1, 9))] if block_info(block).wraps else []
            share = rng.choice((None, None, "A", "B"))
            gene = Gene.of(block, share, held, **given_params)
            chosen += [gene] * rng.randrange(1, 3)
        rng.shuffle(chosen)
        try:
            norm = rng.choice(FRAME["norm"].options)
            genome = Genome(8 * rng.randrange(1, 9), tuple(chosen), norm)
        except SpaceError:
            continue
        found.setdefault(genome.key, set()).add(json.dumps(genome.to_json(), sort_keys=True))
    return found


def assert_no_collision(found, least):
    assert len(found) > least
    assert all(len(texts) == 1 for texts in found.values())


def test_no_two_of_20_000_random_genomes_share_a_key():
    assert_no_collision(scan(20_000), 10_000)


@pytest.mark.slow
def test_no_two_of_100_000_random_genomes_share_a_key():
    assert_no_collision(scan(100_000), 50_000)


def test_the_scan_itself_sees_a_collision():
    with pytest.raises(AssertionError):
        assert_no_collision({"g1-x": {"one", "two"}, "g1-y": {"one"}}, 1)


PINNED = """
from archsearch.catalogue import BlockInfo, declare
from archsearch.dims import Dim
from archsearch.genome import Gene, Genome
dims = {"a": Dim(low=1, high=9, step=1, default=2), "b": Dim(low=0.0, high=1.0, default=0.5)}
declare(BlockInfo(name="x", kind="ffn", paper="", summary="", dims=dims))
print(Genome(64, (Gene.of("x", "s", b=0.1), Gene.of("x", a=3), Gene.of("x", "s", b=0.1))).key)
"""


def test_keys_are_the_same_on_every_machine_and_in_every_version():
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", PINNED], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert done.stdout.split() == ["g1-4aep6i7mrd"]

"""Laws of the genome: a value, a file and a text."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archsearch.errors import SpaceError
from archsearch.genome import MOST_GENES, MOST_REPEATS, Gene, Genome, runs
from archsearch.space_yaml import dump, parse

from .strategies import (
    NEXT,
    genes,
    genomes,
)

few = settings(max_examples=25, deadline=None)
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKENS = torch.randint(0, 11, (2, 24), generator=torch.Generator().manual_seed(1))


# A value


@many
@given(genomes())
def test_json_round_trip(genome):
    again = Genome.from_json(json.loads(json.dumps(genome.to_json())))
    assert again == genome
    assert hash(again) == hash(genome)
    assert again.key == genome.key


@many
@given(genomes())
def test_the_file_of_a_genome_is_a_space_with_this_one_member(genome):
    space = parse(dump(genome)).space
    assert space.size == 1
    assert space.replay({}) == genome
    assert space.locate(genome) == {}
    assert dump(space.replay({})) == dump(genome)


@settings(deadline=None)
@given(st.integers(1, 3 * MOST_REPEATS), st.integers(1, 2))
def test_a_deep_genome_is_a_legal_file_too(count, length):
    motif = (Gene.of("swiglu"), Gene.of("swiglu", mult=3))[:length]
    genome = Genome(16, motif * count)
    assert parse(dump(genome)).space.replay({}) == genome


def test_a_genome_with_every_letter_for_shared_weights_is_a_legal_file():
    shared = tuple(Gene.of("swiglu", f"s{i}", mult=1 + i % 16) for i in range(60))
    genome = Genome(16, (*shared, *shared))
    assert len({gene.share for gene in genome.genes}) == 60
    assert parse(dump(genome)).space.replay({}) == genome


@given(genomes())
def test_a_genome_is_frozen(genome):
    with pytest.raises(FrozenInstanceError):
        genome.d_model = 8
    with pytest.raises(FrozenInstanceError):
        genome.genes[0].block = "none"


def test_a_genome_needs_no_torch():
    code = (
        "import sys; from archsearch.genome import Gene, Genome;"
        "from archsearch.catalogue import BlockInfo, declare;"
        "declare(BlockInfo(name='x', kind='ffn', paper='', summary='', dims={}));"
        "g = Genome(8, (Gene.of('x'),)); assert Genome.from_json(g.to_json()).key == g.key;"
        "print('torch' in sys.modules, 'yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


REFUSED = [
    (lambda: Genome(16, ()), "at least one block"),
    (lambda: Genome(16, (Gene.of(NEXT),) * 2), "at least one block"),
    (lambda: Genome(16, (Gene.of("swiglu"),) * (MOST_GENES + 1)), "a genome of 1025 blocks"),
    (lambda: Genome(0, (Gene.of("swiglu"),)), "d_model cannot be 0"),
    (lambda: Genome(16.0, (Gene.of("swiglu"),)), "d_model cannot be 16"),
    (lambda: Genome(16, (Gene.of("swiglu"),), "batch"), "norm cannot be batch; legal: rms, layer"),
    (
        lambda: Genome(16, (Gene.of("swiglu", "A"), Gene.of("swiglu", "A", mult=3))),
        "the blocks that share the weights 'A' differ",
    ),
    (lambda: Gene.of("swigluu"), "unknown block 'swigluu'; did you mean 'swiglu'"),
    (lambda: Gene.of("swiglu", mul=2), "has no parameter 'mul'; did you mean 'mult'"),
    (lambda: Gene.of("swiglu", mult=99), "swiglu.mult cannot be 99; legal: 1 to 16"),
    (lambda: Genome.from_json({"format": 99}), "genome format 99 is not format 1"),
]


@pytest.mark.parametrize(("how", "why"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_what_is_no_genome(how, why):
    with pytest.raises(SpaceError, match=why.replace("(", r"\(")):
        how()


# Its text


@many
@given(st.lists(genes(), max_size=3), st.lists(st.integers(0, 2), max_size=14), st.integers(1, 5))
def test_runs_spell_the_genes_and_repeat_at_most_so_often(alphabet, order, most):
    spelled = tuple(alphabet[i] for i in order if i < len(alphabet))
    found = runs(spelled, most)
    assert tuple(gene for count, motif in found for gene in motif * count) == spelled
    assert all(1 <= count <= max(1, most) for count, _ in found)


def test_runs_find_a_repeated_motif():
    a, b = Gene.of("attention"), Gene.of("swiglu")
    assert runs((a, b, a, b, a, b)) == [(3, (a, b))]
    assert runs((b, a, a, a, b)) == [(1, (b,)), (3, (a,)), (1, (b,))]
    assert runs((a, a, a, a, a), 2) == [(2, (a, a)), (1, (a,))]


def test_the_text_of_a_genome():
    shared = Gene.of(NEXT, "x", heads=2)
    pair = (Gene.of("attention", heads=2, kv_heads=2), Gene.of("swiglu", mult=3))
    genome = Genome(16, (shared, *pair, *pair, shared, Gene.of("attention", window=8)))
    text = "shared_attention*A[heads=2] 2x(attention[heads=2] swiglu[mult=3]) " \
        "shared_attention*A[heads=2] attention[window=8]"  # fmt: skip
    assert genome.text() == text
    assert genome.text({("swiglu", "mult")}) == text.replace("[heads=2]", "").replace(
        "[window=8]", "")  # fmt: skip

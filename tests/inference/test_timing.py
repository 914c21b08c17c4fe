"""What is said of memory is exact, the opponent is fair, and what takes too long is left out."""

from __future__ import annotations

import math

import pytest

from archsearch.errors import ModelError
from archsearch.genome import Gene, Genome
from archsearch.inference import load
from archsearch.inference.decoding import Reader
from archsearch.inference.timing import ROUNDS, measure, opponent, place_at
from archsearch.model import Model, build
from archsearch.space_yaml import load_genome
from archsearch.train import generator
from tests.inference.conftest import HYBRID

RECURRENT = Genome(16, (Gene.of("mamba2", d_state=8, head_dim=8), Gene.of("swiglu")))


def model_of(genome, vocab=16):
    return build(genome, vocab, generator=generator("timing")).eval()


def test_every_cell_is_filled_and_the_state_is_that_of_the_model():
    models = {"hybrid": model_of(HYBRID), "recurrent": model_of(RECURRENT)}
    figures = measure(models, [8, 32], seconds=60)
    for name, model in models.items():
        for figure in figures[name]:
            assert len(figure.decode) == ROUNDS
            assert figure.prefill_rate > 0
            assert figure.decode_rate > 0
            assert figure.state_bytes == model.start(1, figure.context).bytes
    assert figures["recurrent"][0].state_bytes == figures["recurrent"][1].state_bytes
    assert figures["hybrid"][0].state_bytes < figures["hybrid"][1].state_bytes


def test_what_takes_too_long_is_left_out_and_so_is_all_beyond_it():
    (figures,) = measure({"hybrid": model_of(HYBRID)}, [8, 4096, 8192], seconds=1e-9).values()
    assert figures[0].prefill is not None
    assert [f.prefill for f in figures[1:]] == [None, None]
    assert all(f.decode_rate is None for f in figures)


def test_what_does_not_fit_into_memory_is_left_out(monkeypatch):
    model = model_of(HYBRID)
    room = 2 * model.start(1, 64).bytes * 1.5
    monkeypatch.setattr("archsearch.inference.timing.machine_bytes", lambda: room)
    (figures,) = measure({"hybrid": model}, [8, 4096], seconds=60).values()
    assert figures[0].decode
    assert not figures[1].decode
    monkeypatch.setattr("archsearch.inference.timing.machine_bytes", lambda: 1)
    with pytest.raises(ModelError, match="shortest context"):
        measure({"hybrid": model}, [8], seconds=60)


def test_a_state_stands_at_its_context_whatever_counts_tokens_in_it():
    genome = Genome(
        16, (Gene.of("mod", of=(Gene.of("attention", heads=2),)), Gene.of("swiglu")), pause_tokens=1
    )
    reader = Reader(model_of(genome), 40)
    place_at(reader, 39)
    assert reader.position == 39
    assert reader.decoding.state["0.count"].item() == 78
    reader.read([1])


def test_the_opponent_has_as_many_parameters(of_text):
    loaded = load(of_text[0])
    genome = opponent(loaded, load_genome("transformer_pp"))
    own, other = (
        sum(p.numel() for p in Model(g, loaded.model.vocab).parameters())
        for g in (loaded.model.genome, genome)
    )
    assert abs(math.log(own / other)) < 0.25
    assert {gene.block for gene in genome.genes} == {"attention", "swiglu"}

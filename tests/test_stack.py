"""Wrappers, edges and shared layers: random genomes of a space with all of them."""

import random

import pytest
import torch
from torch import Generator

from archsearch.genome import Genome
from archsearch.model import Extras, build, cost
from archsearch.space import plan
from archsearch.space_yaml import dump, parse

SPACE = """
version: 1
name: t
define:
  g: {shared: true, shared_attention: {heads: 4}}
model:
  d_model: [16, 32]
  norm_place: [pre, sandwich, post]
  norm: [rms, layer]
  embedding_rank: [none, 8]
  soft_cap: [none, 30]
  pause_tokens: [0, 2]
  layer_dropout: [0.0, 0.2]
  exit_loss: [0.0, 0.5]
  tie_embeddings: [false, true]
  stack:
    - stage: stem
      repeat: [0, 1, 2]
      pattern:
        - mixer: [attention, none, {mamba2: {head_dim: 8, d_state: 8}}]
    - stage: body
      repeat: [2, 3, 4]
      unique: [1, 2]
      scheme: [sequence, cycle, cycle_rev]
      choose: once
      pattern:
        - layer:
            - mod: {capacity: [0.25, 0.5], of: [mixer: [attention, none], ffn: swiglu]}
            - loop: {times: 2, halting: [act, stick_breaking], of: [mixer: attention]}
            - attention
          inputs: [prev, stage:stem, embedding]
          combine: [add, concat, gate]
        - global: [use: g, none]
        - side:
            parallel:
              combine: [add, norm, gate]
              of: [mixer: [attention, none], other: {mamba2: {head_dim: 8}}, ffn: swiglu]
        - long: [skip, none]
          inputs: [stage:stem]
"""


def genomes(count, seed=0):
    space, rng = parse(SPACE).space, random.Random(seed)
    return [space.replay(space.sample(rng)) for _ in range(count)]


@pytest.mark.parametrize("genome", genomes(6), ids=lambda genome: genome.key)
def test_a_genome_is_the_same_as_json_as_a_file_and_in_its_space(genome):
    assert Genome.from_json(genome.to_json()) == genome
    assert parse(dump(genome)).space.replay({}) == genome
    space = parse(SPACE).space
    assert space.replay(space.locate(genome)) == genome


@pytest.mark.parametrize("genome", genomes(12, 1), ids=lambda genome: genome.key)
def test_a_model_costs_what_is_said_and_decodes_what_it_computes(genome):
    model, said = build(genome, 11, generator=Generator().manual_seed(0)), cost(genome, 12)
    inside = ("stack", "final_norm", "pause")
    built = sum(p.numel() for name, p in model.named_parameters() if name.startswith(inside))
    assert built == said.params
    tokens_BT = torch.randint(11, (2, 12), generator=Generator().manual_seed(1))
    extras = Extras(Generator().manual_seed(2))
    logits_BTV = model.train()(tokens_BT, extras)
    loss = logits_BTV.sum() + sum(extras.losses) + sum(w * e.sum() for w, e in extras.exits)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval().double()
    with torch.no_grad():
        want_BTV, decoding = model(tokens_BT), model.start(2, 12)
        got_BTV = torch.stack([model.step(t_B, decoding) for t_B in tokens_BT.unbind(1)], 1)
    torch.testing.assert_close(got_BTV, want_BTV, rtol=1e-7, atol=1e-9)
    states = model.float().start(2, 12)
    assert states.bytes == 2 * said.state_bytes


def test_the_orders_in_which_repeats_share_weights():
    assert plan(6, 3, "sequence") == (0, 0, 1, 1, 2, 2)
    assert plan(6, 3, "cycle") == (0, 1, 2, 0, 1, 2)
    assert plan(6, 3, "cycle_rev") == (0, 1, 2, 2, 1, 0)
    assert plan(4, 1, "sequence") == plan(4, 1, "cycle_rev") == (0, 0, 0, 0)

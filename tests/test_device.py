"""Training happens where it was asked to, and nothing stays behind on the CPU."""

import dataclasses
import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from archsearch import device
from archsearch.block import Block, block_class, usual_config
from archsearch.catalogue import block_names
from archsearch.errors import RunError
from archsearch.genome import Gene, Genome
from archsearch.model import Extras, Model
from archsearch.processes import side_by_side
from archsearch.testing.cases import holding
from archsearch.train import cross_entropy, objective

SMALL = {"peer": {"keys": 16}, "loop": {"times": 2}, "pkm": {"keys": 16}}
SORTING = {"moe", "mod"}
"""How many tokens go where decides what is computed, so they need tokens that are real."""


def trained_elsewhere(genome):
    """One step and a prompt on a device that is not the CPU.

    Meta is such a device, and fake tensors refuse what a GPU refuses: operands on two devices.
    """
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), torch.device("meta"):
        model = Model(genome, 11)
        tokens_BT = torch.zeros(2, 33, dtype=torch.int64)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        extras = Extras()
        logits_BTV = model(tokens_BT, extras)
        loss = cross_entropy(logits_BTV, tokens_BT)
        objective(loss, logits_BTV, tokens_BT, extras, z_loss=1e-4).backward()
        if not genome.bidirectional:
            decoding = model.start(2, 64)
            with torch.no_grad():
                model.prefill(tokens_BT, decoding)
                model.step(tokens_BT[:, 0], decoding)
    return {p.grad.device.type for p in model.parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [n for n in block_names() if n not in SORTING])
def test_every_block_computes_where_its_input_is(name):
    kind = block_class(name)
    given = dataclasses.asdict(usual_config(kind, 16)) | SMALL.get(name, {})
    genes = Gene.of(name, None, holding(kind), **given), Gene.of("swiglu")
    assert trained_elsewhere(Genome(16, genes)) == {"meta"}


def test_a_tensor_that_stays_on_the_cpu_is_noticed(monkeypatch):
    kind: type[Block] = block_class("swiglu")
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, x, ctx: forward(self, x, ctx) + torch.zeros(16, device="cpu")
    )
    with pytest.raises(RuntimeError, match="on the same device"):
        trained_elsewhere(Genome(16, (Gene.of("swiglu"),)))


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.delenv(device.ASKED, raising=False)
    monkeypatch.delenv(device.PLACE, raising=False)

    def there_are(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there_are


def test_processes_are_dealt_to_the_gpus_in_turn(gpus, monkeypatch):
    gpus(3)
    places = []
    for place in range(7):
        monkeypatch.setenv(device.PLACE, str(place))
        places.append(device.chosen())
    assert places == [torch.device("cuda", place % 3) for place in range(7)]


def test_a_gpu_is_taken_where_there_is_one(gpus, monkeypatch):
    gpus(0)
    assert device.chosen() == torch.device("cpu")
    assert device.at_once(5) == 5
    gpus(1)
    assert device.chosen() == torch.device("cuda", 0)
    assert device.at_once(64) == device.PER_GPU
    assert device.at_once(2) == 2
    monkeypatch.setenv(device.ASKED, "cpu")
    assert device.chosen() == torch.device("cpu")
    assert device.at_once(64) == 64


@pytest.mark.parametrize(
    ("asked", "says"), [("tpu", "'tpu' is unknown; legal: cpu, cuda"), ("cuda", "no GPU here")]
)
def test_a_device_that_is_not_there_is_refused(gpus, monkeypatch, asked, says):
    gpus(0)
    monkeypatch.setenv(device.ASKED, asked)
    with pytest.raises(RunError, match=says):
        device.chosen()


def test_processes_side_by_side_have_numbers_of_their_own():
    numbers = {number for _, number in side_by_side(place_of, range(6), 2)}
    assert numbers
    assert numbers <= {"0", "1"}


def place_of(_):
    return os.environ[device.PLACE]

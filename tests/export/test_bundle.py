"""The one file: the blocks of a model word for word, nothing that only a search needs."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import warnings
from itertools import count

import pytest
import torch

from archsearch import block, catalogue
from archsearch.block import Block
from archsearch.canonical import nested
from archsearch.catalogue import block_names
from archsearch.errors import ExportError
from archsearch.export.architecture import weights
from archsearch.export.literals import literal
from archsearch.export.options import holds
from archsearch.export.runtime import plain
from archsearch.export.sources import Module
from archsearch.export.torch_file import torch_source
from archsearch.genome import Gene, Genome
from archsearch.kernels import conv_silu, gated_ffn, gated_norm, rms_norm, rope
from archsearch.model import build
from archsearch.train import generator
from tests.export.models import ATTENTION, MAMBA, SWIGLU, VOCAB, member

NUMBERS = count()
FITTING = {"gated_deltanet": {"head_dim": 16}, "hydra": {"head_dim": 16}, "rwkv7": {"head_dim": 16}}


def model(*genes, width=32):
    return build(Genome(width, genes), VOCAB, generator=generator("export", "bundle"))


def of_block(name):
    """A model of one block and a feed-forward."""
    inner = (ATTENTION, MAMBA) if name in ("loop", "mod", "parallel") else ()
    return model(Gene.of(name, None, inner, **FITTING.get(name, {})), SWIGLU)


def imported(source, tmp_path):
    """The module that a source makes, with every warning an error."""
    name = f"exported{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(source)
    spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec.loader.exec_module(module)
    return module


def names(source):
    """What a source defines at the top."""
    nodes = ast.parse(source).body
    return {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("name", block_names())
def test_the_file_of_a_block_draws_the_weights_that_archsearch_draws(name, tmp_path):
    made = of_block(name)
    module = imported(torch_source(made), tmp_path)
    drawn = module.Model(module.ARCHITECTURE, module.BLOCKS)
    drawn.init(generator("export", "bundle"))
    for parameter, tensor in weights(made).items():
        assert torch.equal(drawn.get_parameter(parameter), tensor), parameter


def test_files_pass_the_linter_and_know_torch_alone(tmp_path):
    for name in block_names():
        (tmp_path / f"{name}.py").write_text(torch_source(of_block(name)))
    for seed in range(4):
        made = build(member(seed), VOCAB, generator=generator("export", seed))
        (tmp_path / f"member{seed}.py").write_text(torch_source(made))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    for path in tmp_path.glob("*.py"):
        modules = set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
        assert modules - sys.stdlib_module_names == {"torch"}, path.name


def test_what_only_a_search_needs_is_not_in_there():
    genes = [Gene.of(name, **FITTING.get(name, {})) for name in ("attention", "mamba2", "moe")]
    source = torch_source(model(*genes))
    for word in ("def oracle", "def cost", "def check", "Role", "whole(", "choice(", "archsearch."):
        assert word not in source, word


def test_a_file_has_the_blocks_that_are_used_and_no_others():
    source = torch_source(model(ATTENTION, SWIGLU))
    assert {"Attention", "SwiGLU", "rope"} <= names(source)
    assert not names(source) & {"Mamba2", "ssd", "Spline", "Rational", "CodeDecoder", "MoD"}
    assert "left out, as no branch here has it" in source
    learned = torch_source(model(Gene.of("swiglu", act="spline")))
    assert {"Spline", "Rational", "_Cubic"} <= names(learned)
    coded = build(Genome(16, (SWIGLU,)), VOCAB, "code", generator=generator("export"))
    assert "CodeDecoder" in names(torch_source(coded))


def test_names_that_two_modules_have_are_told_apart():
    source = torch_source(model(Gene.of("rwkv7", head_dim=16), Gene.of("gla"), Gene.of("mamba1")))
    assert {"_rwkv7_chunks", "_gla_chunks", "_selective_scan_chunks"} <= names(source)
    assert "def _chunks" not in source
    tops = [n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert len(tops) == len(set(tops))


def test_the_architecture_can_be_edited(tmp_path):
    module = imported(torch_source(model(ATTENTION, SWIGLU)), tmp_path)
    plain_data = module.ARCHITECTURE
    wide = plain_data | {
        "width": 48,
        "vocab": 11,
        "stack": [
            {"block": "attention", "config": {"heads": 4, "qk_norm": True, "window": 3}},
            {"block": "swiglu", "config": {"act": "relu2"}, "share": "F"},
            {"share": "F", "use": 1, "reads": [0, 1], "combine": "gate"},
        ],
    }
    edited = module.Model(wide, module.BLOCKS).init(generator("edited"))
    tokens_BT = torch.randint(11, (2, 9), generator=generator("tokens"))
    logits_BTV = edited(tokens_BT)
    assert logits_BTV.shape == (2, 9, 11)
    decoding = edited.start(2)
    parts = [edited.step(token_B, decoding) for token_B in tokens_BT.T]
    torch.testing.assert_close(torch.stack(parts, 1), logits_BTV, rtol=1e-4, atol=1e-5)


def test_training_collects_what_blocks_add_to_the_loss(tmp_path):
    module = imported(torch_source(model(Gene.of("moe"), SWIGLU)), tmp_path)
    made = module.Model(module.ARCHITECTURE, module.BLOCKS).init(generator("train")).train()
    losses = []
    logits = made(torch.randint(VOCAB, (2, 9), generator=generator("tokens")), losses)
    assert len(losses) == 2
    (logits.square().mean() + sum(losses)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


BLOCK = '''
"""A block from elsewhere: y = scale x."""

from dataclasses import dataclass

import torch
from torch import nn
{imports}
from archsearch.block import Block, Role, ones
from archsearch.cost import Cost
from archsearch.dims import whole

EPS = 1e-6


class Elsewhere(Block, name="{name}", kind="ffn", paper="0000.00000"):
    """Scales."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        power: int = whole(1, 3, default=2)
        """Of the scale."""

    roles = {{"scale": Role.vector("model", init=ones)}}

    def __init__(self, width, config):
        super().__init__()
        self.scale, self.power = nn.Parameter(torch.empty(width)), config.power

    def forward(self, x_BTD, ctx):
        return {call}

    def init_state(self, batch, context):
        return {{}}

    def step(self, x_BD, state, ctx):
        return self.forward(x_BD, ctx), state

    @staticmethod
    def cost(width, config, seq_len):
        return Cost(params=width, active_params=width, flops=0.0, state_bytes=0)
'''


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Makes a package with a block in it, and a model of that; forgotten behind the test."""
    monkeypatch.syspath_prepend(tmp_path)
    for module, name in ((block, "_classes"), (catalogue, "_declared"), (catalogue, "_costs")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))

    def make(name, imports="", call="x_BTD * (self.scale + EPS) ** self.power", **files):
        for file, text in files.items():
            (tmp_path / f"{name}_{file}.py").write_text(text)
        (tmp_path / f"{name}.py").write_text(BLOCK.format(name=name, imports=imports, call=call))
        importlib.import_module(name)
        return model(Gene.of(name), SWIGLU)

    yield make
    catalogue.block_info.cache_clear()
    catalogue.block_costs.cache_clear()


def test_a_block_of_another_package_is_bundled_too(elsewhere, tmp_path):
    made = elsewhere("mine")
    module = imported(torch_source(made), tmp_path)
    assert issubclass(module.Elsewhere, module.Block)
    assert not issubclass(module.Elsewhere, Block)
    assert module.Elsewhere.Config().power == 2
    assert module.BLOCKS["mine"] is module.Elsewhere


def test_what_cannot_be_moved_is_refused_in_words(elsewhere):
    made = elsewhere("other", "import other", "other.EPS * x_BTD * self.scale")
    with pytest.raises(ExportError, match="import what it uses by name"):
        torch_source(made)


def test_a_block_without_a_source_is_refused_in_words():
    with pytest.raises(ExportError, match=r"the source of .* is not there"):
        Module("builtins")


@pytest.mark.parametrize(
    ("test", "holding"),
    [
        ("config.act == 'silu'", True),
        ("self.config.act in ('spline', 'rational')", False),
        ("config.act not in ('spline', 'rational')", True),
        ("config.window", False),
        ("architecture['act'] != 'silu'", False),
        ("config.unknown == 1", None),
        ("other.act == 'silu'", None),
        ("config.act == config.act", None),
        ("1 < config.act < 3", None),
    ],
)
def test_options_are_decided_only_where_they_are_known(test, holding):
    known = {"act": "silu", "window": None}
    assert holds(ast.parse(test, mode="eval").body, known) is holding


def test_literals_are_the_data():
    data = {"a": [1, 2.5, None, True, 'it\'s "so"'], "b": {"c": [{"d": "x" * 40}] * 4}, "e": {}}
    assert ast.literal_eval(literal(data)) == data
    assert max(map(len, literal(data).splitlines())) <= 100


def random(*shape):
    return torch.randn(shape, generator=generator("plain"), dtype=torch.float64, requires_grad=True)


PAIRS = {
    "rope": (lambda f, x: f(x, 3, 100.0, 0.5), rope.rope, plain.rope, (2, 5, 3, 8)),
    "conv_silu": (
        lambda f, x: torch.cat(f(x, x[0, :3].T.contiguous(), x[0, 0], [2, 4]), -1),
        conv_silu.conv_silu, plain.conv_silu, (2, 5, 6),
    ),
    "gated_norm": (
        lambda f, x: f(x, x.flip(0), 2), gated_norm.gated_norm, plain.gated_norm, (3, 5, 8)
    ),
    "gated_ffn": (
        lambda f, x: f(x, x[0, :4], x[1, :4], x[0, :4].T.contiguous(), "gelu"),
        gated_ffn.gated_ffn, plain.gated_ffn, (2, 5, 6),
    ),
    "rms_norm": (
        lambda f, x: f(6, eps=1e-5, dtype=torch.float64)(x), rms_norm.RMSNorm, plain.RMSNorm,
        (2, 5, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_plain_torch_is_what_the_kernels_compute(name):
    run, kernel, simple, shape = PAIRS[name]
    found = []
    for function in (kernel, simple):
        x = random(*shape)
        y = run(function, x)
        (gradient,) = torch.autograd.grad((y * y.detach().cos()).sum(), x)
        found.append((y, gradient))
    torch.testing.assert_close(found[0], found[1])


def test_shared_weights_are_defined_once():
    made = model(Gene.of("swiglu", "F"), ATTENTION, Gene.of("swiglu", "F"))
    source = torch_source(made)
    stack = next(
        ast.literal_eval(node.value)["stack"]
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and node.target.id == "ARCHITECTURE"
    )
    assert [entry.get("block") for entry in stack] == ["swiglu", "attention", None]
    assert stack[2] == {"share": "A", "use": 1}
    assert len(list(nested(made.genome.genes))) == len(stack)

"""Every law of the contract catches a block that breaks it, and lets the original pass."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from archsearch.block import Role
from archsearch.blocks.attention import Attention
from archsearch.blocks.mamba2 import Mamba2
from archsearch.blocks.shared_attention import SharedAttention
from archsearch.blocks.swiglu import SwiGLU
from archsearch.catalogue import block_names
from archsearch.cost import Cost
from archsearch.dims import whole
from archsearch.errors import BlockError
from archsearch.testing import blocks as laws
from archsearch.testing.blocks import Case

TOY = {"name": "toy", "kind": "mixer", "paper": "0000.00000", "register": False}


def case(block, **given):
    return Case(block, 32, block.Config(**dict(block.info.fill(given))))


def wrapped(parent, *, forward=None, step=None, **members):
    """A block like `parent` whose `forward` or `step` gets the answer of the original."""
    toy = type("Toy", (parent,), members, **TOY)
    if forward:
        toy.forward = lambda self, x, ctx: forward(parent.forward(self, x, ctx), x, ctx)
    if step:
        toy.step = lambda self, x, state, ctx: step(self, x, state, ctx)
    return toy


def costing(parent, **more):
    def cost(width, config, seq_len):
        true = parent.cost(width, config, seq_len)
        said = {name: getattr(true, name) for name in Cost.__slots__}
        return Cost(**{name: value + more.get(name, 0) for name, value in said.items()})

    return wrapped(parent, cost=staticmethod(cost))


def with_role(parent, name, role):
    return wrapped(parent, roles={**parent.roles, name: role})


def test_a_block_made_for_a_test_is_not_registered():
    wrapped(SwiGLU)
    assert "toy" not in block_names()


@pytest.mark.parametrize("parent", [Attention, Mamba2, SharedAttention, SwiGLU])
@pytest.mark.parametrize("law", laws.CASE_LAWS)
def test_an_unchanged_copy_passes(law, parent):
    law(case(wrapped(parent)))


def off_by_little(y, x, ctx):
    return y * (1 + 1e-7)


def wrong_gradient(y, x, ctx):
    return y.detach() + 0.999 * (y - y.detach())


def sees_next_input(y, x, ctx):
    return y + 1e-6 * x.roll(-1, 1)


def sees_next_embedding(y, x, ctx):
    return y + 1e-6 * ctx.embedding.roll(-1, 1)


def knows_the_length(y, x, ctx):
    return y * (1 + 1e-6 * y.shape[1])


def mixes_rows(y, x, ctx):
    return y - 1e-6 * y.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("law", "forward", "what"),
    [
        (laws.equals_oracle, off_by_little, "output at T=1 is off"),
        (laws.equals_oracle, wrong_gradient, "gradient of x at T=1 is off"),
        (laws.is_causal, sees_next_input, "after a change from"),
        (laws.is_causal, sees_next_embedding, "after a change from"),
        (laws.is_causal, knows_the_length, "tokens alone"),
        (laws.decodes, sees_next_input, "step against forward"),
        (laws.keeps_rows_apart, mixes_rows, "row 0 alone"),
    ],
)
@pytest.mark.parametrize("parent", [Attention, Mamba2, SharedAttention, SwiGLU])
def test_a_wrong_forward_is_caught(law, forward, what, parent):
    with pytest.raises(AssertionError, match=what):
        law(case(wrapped(parent, forward=forward)))


class LeakingGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad + 1e-6 * grad.roll(1, 1)


def test_a_leak_in_the_gradient_alone_is_caught():
    toy = wrapped(SwiGLU, forward=lambda y, x, ctx: LeakingGradient.apply(y))
    with pytest.raises(AssertionError, match="have gradients from"):
        laws.is_causal(case(toy))


@pytest.mark.parametrize("law", laws.CASE_LAWS)
def test_a_block_that_looks_ahead_in_training_alone_passes_when_it_says_so(law):
    class Ahead(SwiGLU, causal=False, **TOY):
        def forward(self, x_BTD, ctx):
            return super().forward(x_BTD.roll(-1, 1) if self.training else x_BTD, ctx)

        def oracle(self, x_BTD, ctx):
            return super().oracle(x_BTD.roll(-1, 1) if self.training else x_BTD, ctx)

    law(case(Ahead))
    if law in (laws.is_causal, laws.decodes):
        Ahead.info = SwiGLU.info
        with pytest.raises(AssertionError):
            law(case(Ahead))


def test_a_wrong_gradient_of_one_parameter_is_caught():
    def forward(self, x, ctx):
        up = self.up(x)
        with torch.no_grad():
            gate = self.gate(x)
        return self.down(nn.functional.silu(gate) * up)

    toy = type("Toy", (SwiGLU,), {"forward": forward}, **TOY)
    with pytest.raises(AssertionError, match="gradient of"):
        laws.equals_oracle(case(toy))


def forgetful(self, x, state, ctx):
    y, new = Mamba2.step(self, x, state, ctx)
    return y, new | {"conv": state["conv"]}


def late(self, x, state, ctx):
    return Attention.step(self, x, state, dataclasses.replace(ctx, seen=max(0, ctx.seen - 1)))


def shared_cache(self, x, state, ctx):
    return SharedAttention.step(self, x, state, dataclasses.replace(ctx, use=0))


def growing(self, x, state, ctx):
    y, state = Mamba2.step(self, x, state, ctx)
    return y, state | {"ssm": torch.cat((state["ssm"], state["ssm"]), 1)}


@pytest.mark.parametrize(
    ("law", "parent", "step", "what"),
    [
        (laws.decodes, Mamba2, forgetful, "step against forward"),
        (laws.decodes, Attention, late, "step against forward"),
        (laws.decodes, SharedAttention, shared_cache, "use 1 is off"),
        (laws.decodes, Mamba2, growing, "changed the shape of the state"),
        (laws.costs_what_it_says, Mamba2, growing, "changed the shape of the state"),
    ],
)
def test_a_wrong_step_is_caught(law, parent, step, what):
    with pytest.raises(AssertionError, match=what):
        law(case(wrapped(parent, step=step)))


def off_in_the_state(self, x_BTD, state, ctx):
    y_BTD, state = Mamba2.prefill(self, x_BTD, state, ctx)
    return y_BTD, state | {"ssm": state["ssm"] * (1 + 1e-6)}


def new_each_time(self, x_BTD, state, ctx):
    return self.forward(x_BTD, ctx), Mamba2.prefill(self, x_BTD, state, ctx)[1]


def at_the_start(self, x_BTD, state, ctx):
    return Attention.prefill(self, x_BTD, state, dataclasses.replace(ctx, position=0))


@pytest.mark.parametrize(
    ("parent", "prefill", "what"),
    [
        (Mamba2, off_in_the_state, "prefill of 33 to 34"),
        (Mamba2, new_each_time, "prefill of 33 to 34"),
        (Attention, at_the_start, "prefill of 33 to 34"),
    ],
)
def test_a_wrong_prefill_is_caught(parent, prefill, what):
    with pytest.raises(AssertionError, match=what):
        laws.prefills(case(wrapped(parent, prefill=prefill)))


def test_a_window_that_the_cache_forgets_too_early_is_caught():
    def init_state(self, batch, context):
        return Attention.init_state(self, batch, min(context, 7))

    with pytest.raises(AssertionError, match="step against forward"):
        laws.decodes(case(wrapped(Attention, init_state=init_state), window=8))


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"params": 1}, "parameters, built for 1 uses"),
        ({"params": -1, "active_params": -1}, "parameters, built for 1 uses"),
        ({"active_params": 1}, "more parameters active"),
        ({"state_bytes": 4}, "state bytes at T=1"),
        ({"flops": 2000}, "FLOPs per token at T=1"),
    ],
)
@pytest.mark.parametrize("parent", [Attention, Mamba2, SharedAttention, SwiGLU])
def test_a_wrong_cost_is_caught(more, what, parent):
    with pytest.raises(AssertionError, match=what):
        laws.costs_what_it_says(case(costing(parent, **more)))


def test_a_wrong_cost_of_further_uses_is_caught():
    toy = wrapped(SharedAttention, params_per_use=staticmethod(lambda width, config: width**2))
    laws.costs_what_it_says(case(toy))
    with pytest.raises(AssertionError, match="built for 2 uses"):
        laws.costs_what_it_says(case(toy, lora_rank=2))


def test_a_parameter_with_the_name_of_something_else_is_refused():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        share: int = whole(1, 2, default=1)
        """A name that genes use otherwise."""

    with pytest.raises(BlockError, match="'toy': a parameter cannot be called 'share'"):
        wrapped(SwiGLU, Config=Config)


def test_a_missing_role_is_caught():
    toy = wrapped(SwiGLU, roles={"up.weight": Role.hidden("hidden", "model")})
    for law in (laws.has_true_roles, laws.starts_from_roles):
        with pytest.raises(BlockError, match="has no role; declared: up"):
            law(case(toy))


@pytest.mark.parametrize(
    ("role", "what"),
    [
        (Role.hidden("hidden", None), "axis 1 of up.weight grows"),
        (Role.hidden("hidden"), "has 2 axes, its role 1"),
        (Role("vector", ("hidden", "model"), nn.init.zeros_), "is a vector, 2 axes grow"),
        (Role("small", ("hidden", "model"), nn.init.zeros_), "is small, 2 axes grow"),
    ],
)
def test_a_wrong_role_is_caught(role, what):
    with pytest.raises(AssertionError, match=what):
        laws.has_true_roles(case(with_role(SwiGLU, "up.weight", role)))


def test_an_axis_that_does_not_grow_as_said_is_caught():
    toy = with_role(Mamba2, "conv1d.weight", Role.hidden("inner", None, "model"))
    with pytest.raises(AssertionError, match=r"axis 2 of conv1d\.weight does not grow"):
        laws.has_true_roles(case(toy))


@pytest.mark.parametrize(
    ("init", "what"),
    [
        (lambda w, g: w, "up.weight is not initialised"),
        (lambda w, g: w.normal_(), "depends on more than the generator"),
        (lambda w, g: w.zero_().add_(w.new_empty(1).normal_() * 0), "global random stream"),
    ],
)
def test_a_wrong_start_is_caught(init, what):
    with pytest.raises(AssertionError, match=what):
        laws.starts_from_roles(
            case(with_role(SwiGLU, "up.weight", Role.hidden(None, None, init=init)))
        )


def test_a_buffer_and_a_constant_made_too_early_are_caught():
    def with_buffer(self, width, config):
        SwiGLU.__init__(self, width, config)
        self.register_buffer("mask", torch.ones(3))

    with pytest.raises(AssertionError, match="lost when the block leaves the meta device"):
        laws.starts_from_roles(case(wrapped(SwiGLU, __init__=with_buffer)))

    def with_constant(self, width, config):
        SwiGLU.__init__(self, width, config)
        self.gain = torch.ones(width)

    toy = wrapped(SwiGLU, __init__=with_constant)
    toy.forward = lambda self, x, ctx: SwiGLU.forward(self, x * self.gain, ctx)
    with pytest.raises(RuntimeError, match="meta"):
        laws.starts_from_roles(case(toy))


def divides_by_the_norm(y, x, ctx):
    return y / x.norm(dim=-1, keepdim=True)


def has_no_slope_at_0(y, x, ctx):
    return y + (x * x).sqrt()


def overflows(y, x, ctx):
    return y.exp()


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (divides_by_the_norm, "output is not finite at T=1, inputs 0"),
        (has_no_slope_at_0, "gradient of x is not finite at T=1, inputs 0"),
        (overflows, "output is not finite at T=1, inputs x 100"),
    ],
)
def test_what_is_not_finite_is_caught(forward, what):
    with pytest.raises(AssertionError, match=what):
        laws.stays_finite(case(wrapped(SwiGLU, forward=forward)))


def test_a_check_that_lets_too_much_pass_is_caught():
    toy = wrapped(Attention, check=staticmethod(lambda width, config: None))
    with pytest.raises((RuntimeError, UserWarning)) as error:
        laws.refuses_what_does_not_fit(toy)
    assert "check() let toy-" in "".join(error.value.__notes__)


def test_a_check_that_does_not_help_is_caught():
    def check(width, config):
        if width % config.heads:
            raise BlockError("bad number of heads")

    with pytest.raises(AssertionError, match="does not say what is legal: bad number of heads"):
        laws.refuses_what_does_not_fit(wrapped(Attention, check=staticmethod(check)))


def test_a_role_without_a_parameter_is_caught():
    with pytest.raises(AssertionError, match=r"roles without a parameter: norm\.weight"):
        laws.has_no_dead_roles(with_role(SwiGLU, "norm.weight", SwiGLU.roles["up.weight"]))


def test_missing_documentation_is_caught():
    class Silent(SwiGLU, **TOY):
        """A block."""

        @dataclass(frozen=True)
        class Config:
            mult: int = whole(1, 16, default=2)
            act: str = whole(1, 16, default=2)
            """Nonlinearity."""

    class Wide(SwiGLU, **TOY):
        """A block."""

        Config = dataclass(frozen=True)(
            type(
                "Config",
                (),
                {
                    "__annotations__": {f"a{i}": int for i in range(9)},
                    **{f"a{i}": whole(1, 2, default=1) for i in range(9)},
                },
            )
        )

    class Sink(SwiGLU, **TOY):
        """A block."""

        def forward(self, x_BTD, ctx, **rest):
            return super().forward(x_BTD, ctx)

    for toy, what in (
        (Silent, "no line under the parameter: mult"),
        (Wide, "more than 8 parameters"),
        (Sink, r"forward takes \*\*kwargs"),
        (wrapped(SwiGLU), "no docstring"),
    ):
        with pytest.raises(AssertionError, match=what):
            laws.is_documented(toy)

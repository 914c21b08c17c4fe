"""Genomes at several sizes: the laws that made the losses are found again."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from archsearch.genome import Gene, Genome
from archsearch.mup import Base
from archsearch.report.fit import show, told
from archsearch.scale.family import Cell, Family, fit
from archsearch.scale.plan import ScalePlan, enlarged
from archsearch.scale.pretrain import Mark, Settings
from archsearch.scale.stability import Stability
from archsearch.scale.trainings import Ended
from archsearch.sections import Recipe

WIDTHS = (32, 64, 128, 256)
VOCAB = 64
NETS = {
    "convolution": Genome(32, (Gene.of("short_conv"), Gene.of("swiglu"))),
    "attention": Genome(32, (Gene.of("attention", heads=2), Gene.of("swiglu"))),
}


def family(names=("convolution", "attention"), **more):
    def plan(genome, width):
        return ScalePlan(
            genome=enlarged(genome, width, 2), base=Base(32, 2), recipe=Recipe(steps=100, batch=8),
            context=16, vocab=VOCAB,
        )  # fmt: skip

    plans = {name: tuple(plan(NETS[name], width) for width in WIDTHS) for name in names}
    told = {"seeds": 3, "settings": Settings(context=16)} | more
    return Family(plans=plans, **told)


def ended(loss, *, unstable=False):
    if math.isinf(loss):
        return Ended((), Stability(), "the loss is nan")
    stability = Stability(("attention logits",)) if unstable else Stability()
    return Ended((Mark(100, loss, loss, 1.0),), stability)


def trained(family, loss, noise=0.002, **states):
    """How everything ended if losses are `loss(name, plan, recipe)` with a little noise."""
    rng = np.random.default_rng(0)
    return {
        training: ended(
            loss(name, plan, training.recipe) + noise * rng.normal(),
            **{k: of(name, plan, training.recipe) for k, of in states.items()},
        )
        for training, (name, plan) in family.trainings().items()
    }


def power(exponent, level=1.5):
    return lambda name, plan, recipe: level + 8 * plan.params**-exponent


def by_name(fits):
    return {of.name: of for of in fits.of}


def test_every_model_meets_as_many_tokens():
    wanted = family(batches=(4, 8, 16)).trainings()
    assert {t.recipe.steps * t.recipe.batch for t in wanted} == {800}
    assert len(wanted) == 2 * 4 * 3 * 3
    assert {t.settings.seed for t in wanted} == {0, 1, 2}


def test_the_power_law_that_made_the_losses_is_found():
    of = by_name(fit(made := family(), trained(made, power(0.2)), math.log(VOCAB)))["attention"]
    assert 0.2 in of.law.exponent
    assert 1.5 in of.law.floor
    assert of.trend.slope.value > 0
    assert of.drift is None
    assert of.hyper is None


def test_lines_that_cross_are_flagged_and_others_are_not():
    def cross(name, plan, recipe):
        # the convolution is better at all four widths and gains less
        fast, slow = 8 * plan.params**-0.2, 3.87 * plan.params**-0.15
        return 1.0 + (fast if name == "attention" else slow)

    made = family()
    (crossing,) = fit(made, trained(made, cross, noise=1e-4), math.log(VOCAB)).crossings
    assert (crossing.ahead, crossing.behind) == ("convolution", "attention")
    assert crossing.clear
    above = trained(made, lambda name, *of: power(0.2)(name, *of) + (name == "attention"))
    assert fit(made, above, math.log(VOCAB)).crossings == ()


def page(fits):
    console = Console(width=80, file=io.StringIO())
    show(fits, console)
    return console.file.getvalue()


def test_a_crossing_is_said_where_it_lies_and_what_is_not_known_why():
    """One seed at two widths, where the order changes."""

    def cross(name, plan, recipe):
        wide = plan.genome.d_model > 32
        return 2.0 - (0.2 if name == "attention" else 0.1) * wide + 0.05 * (name == "attention")

    made = family(seeds=1)
    two = replace(made, plans={name: plans[:2] for name, plans in made.plans.items()})
    said = page(fit(two, trained(two, cross, noise=0), math.log(VOCAB)))
    assert "convolution is ahead at the smallest size, attention at the largest" in said
    assert "within the noise of seeds" in said
    assert "?: one seed shows no noise" in said
    assert "two sizes leave the floor open" in said
    seeds = replace(two, seeds=2)
    said = page(fit(seeds, trained(seeds, power(0.2)), math.log(VOCAB)))
    assert "?" not in said


@pytest.mark.parametrize("slope", [0.0, -1.0])
def test_how_the_best_learning_rate_moves_is_found(slope):
    def loss(name, plan, recipe):
        best = -6 + slope * math.log2(plan.genome.d_model / 32)
        return power(0.2)(name, plan, recipe) + 0.02 * (math.log2(recipe.lr) - best) ** 2

    made = family(names=("attention",), log2_lrs=tuple(range(-11, -2)))
    (of,) = fit(made, trained(made, loss), math.log(VOCAB)).of
    assert abs(of.drift.slope.value - slope) < 0.1
    best = [math.log2(size.best.lr) for size in of.sizes]
    assert best == pytest.approx([-6 + slope * k for k in range(4)])


def test_the_laws_of_hyper_parameters_are_found():
    def loss(name, plan, recipe):
        compute = plan.flops * plan.tokens
        lr, batch = -6 - 0.25 * math.log2(compute / 1e9), 3 + 0.3 * math.log2(compute / 1e9)
        off = (math.log2(recipe.lr) - lr) ** 2 + (math.log2(recipe.batch) - batch) ** 2
        return power(0.2)(name, plan, recipe) + 0.02 * off

    made = family(
        names=("attention",), seeds=1, batches=(2, 4, 8, 16, 32, 64),
        log2_lrs=tuple(k / 2 for k in range(-24, -8)),
    )  # fmt: skip
    (of,) = fit(made, trained(made, loss, noise=0), math.log(VOCAB)).of
    assert of.hyper.lr.exponent.value == pytest.approx(-0.25, abs=0.05)
    assert of.hyper.batch.exponent.value == pytest.approx(0.3, abs=0.05)
    assert of.law.exponent.high == math.inf, "one seed knows no noise"


def test_what_was_unstable_is_not_the_best_and_what_broke_off_is_left_out():
    def loss(name, plan, recipe):
        if plan.genome.d_model == 256 or recipe.lr > 2**-3:
            return math.inf
        return power(0.2)(name, plan, recipe) - 0.1 * (recipe.lr == 2**-4)

    made = family(names=("attention",), log2_lrs=(-5.0, -4.0, -3.0, -2.0))
    states = {"unstable": lambda name, plan, recipe: recipe.lr == 2**-4}
    (of,) = fit(made, trained(made, loss, **states), math.log(VOCAB)).of
    assert {size.best.lr for size in of.sizes[:3]} <= {2**-5, 2**-3}
    assert not of.sizes[0].stable(Cell(2**-4, 8))
    assert of.law.measured[1] == of.sizes[2].plan.params


def test_the_page_says_what_is_known_and_data_are_plain():
    def loss(name, plan, recipe):
        if name == "convolution" and plan.genome.d_model > 32:
            return math.inf
        return power(0.2)(name, plan, recipe)

    made = family(log2_lrs=(-6.0, -5.0, -4.0))
    fits = fit(made, trained(made, loss), math.log(VOCAB))
    said = page(fits)
    assert "too few sizes ended well" in said
    assert "the sweep is too narrow" in said
    json.dumps(told(fits), allow_nan=False)

"""Which members may be trained: solved widths against brute force, rules, draws and listings."""

import dataclasses
import random
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archsearch.canonical import nested
from archsearch.errors import BlockError, SpaceError
from archsearch.expr import QUANTITIES, Expr
from archsearch.genome import Gene, Genome
from archsearch.model import build, cost
from archsearch.rules import Infeasible, Survey, draw, measure, members, settle, survey
from archsearch.space import Match
from archsearch.space_yaml import load

from .strategies import NEXT, genomes, parsed, spaces

some = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
CONTEXT = 64
TARGETS = ("params", "active_params", "flops", "state_bytes")


def with_match(space, target, value, tolerance):
    """The space with its width solved for a size."""
    quantity = Expr.parse(target, QUANTITIES)
    return dataclasses.replace(space, match=Match(quantity, value, tolerance))


STACK = {"stack": [{"pattern": [{"mixer": "swiglu"}]}]}


def sizes(space, genome, target):
    """The size at every legal width that can be built, by brute force."""
    found = {}
    for width in space.d_model.values:
        try:
            found[width] = getattr(
                cost(dataclasses.replace(genome, d_model=width), CONTEXT), target
            )
        except BlockError:
            continue
    return found


WIDTHS = st.one_of(
    st.lists(st.integers(8, 90), min_size=1, max_size=9, unique=True),
    st.builds(lambda low, step, n: {"from": low, "to": low + n * step, "step": step},
              st.integers(8, 40), st.integers(1, 16), st.integers(0, 40)),
)  # fmt: skip


@some
@given(spaces(most=500), WIDTHS, st.sampled_from(TARGETS), st.data())
def test_the_solved_width_is_the_best_of_all_legal_ones(experiment, widths, target, data):
    legal = parsed({"model": STACK | {"d_model": widths}}).space.d_model
    space = dataclasses.replace(experiment.space, d_model=legal)
    rng = random.Random(len(legal.values))
    for _ in range(4):
        try:
            genome = space.replay(space.sample(rng))
        except SpaceError:
            continue
        possible = sizes(space, genome, target)
        near = data.draw(st.sampled_from(sorted(possible.values()) or [1000]))
        wanted = max(1.0, near * data.draw(st.floats(0.9, 1.1)))
        tolerance = data.draw(st.sampled_from([0.01, 0.03, 0.05, 0.5]))
        matched = with_match(space, target, wanted, tolerance)
        off = {width: abs(size / wanted - 1) for width, size in possible.items()}
        best = min(off.values(), default=2.0)
        try:
            solved = settle(matched, genome, CONTEXT)
        except Infeasible as error:
            assert best > tolerance
            if possible:
                assert error.rule == f"match {target}"
                assert error.reach == (min(possible.values()), max(possible.values()))
            else:
                assert re.fullmatch(r"\w+ refuses every width|no width suits .+", error.rule)
            continue
        assert off[solved.d_model] == best <= tolerance
        assert getattr(cost(solved, CONTEXT), target) == possible[solved.d_model]
        assert solved.genes == genome.genes


def test_solving_is_quick_over_every_width():
    text = {"model": {"d_model": {"from": 8, "to": 65_536}, "stack": STACK["stack"]},
            "match": {"params": "400M", "tolerance": 0.01}}  # fmt: skip
    space = parsed(text).space
    assert len(space.widths) > 65_000
    solved = settle(space, space.replay({}), CONTEXT)
    params = cost(solved, CONTEXT).params
    wider = dataclasses.replace(solved, d_model=solved.d_model + 1)
    assert params <= 400e6 * 1.01
    assert abs(params - 400e6) <= abs(cost(wider, CONTEXT).params - 400e6)


RULES = [
    "layers >= 3", "count(attention) >= 1", "not adjacent(swiglu, swiglu)", "params < 9K",
    "state_bytes(128) <= 4KiB or d_model > 16", "flops(32) / active_params < 2.5",
    "(layers - 1) * 2 <= 3",
]  # fmt: skip


@some
@given(spaces(), st.lists(st.sampled_from(RULES), min_size=1, max_size=3, unique=True))
def test_what_is_settled_meets_every_rule_and_the_rest_names_one(experiment, texts):
    rules = tuple(Expr.parse(text, QUANTITIES) for text in texts)
    space, rng = dataclasses.replace(experiment.space, require=rules), random.Random(1)
    for _ in range(8):
        try:
            genome = space.replay(space.sample(rng))
        except SpaceError:
            continue
        broken = [rule.text for rule in rules if not measure(rule, genome, CONTEXT)]
        try:
            assert settle(space, genome, CONTEXT) == genome
            assert not broken
        except Infeasible as error:
            assert error.rule == broken[0]
            assert str(error) == f"{genome.text()} breaks the rule {broken[0]}"


def test_a_genome_that_cannot_be_built_is_infeasible():
    space = parsed({"model": STACK}).space
    with pytest.raises(Infeasible, match=r"attention.heads 5 does not") as caught:
        settle(space, Genome(16, (Gene.of("attention", heads=5),)), CONTEXT)
    assert caught.value.rule == "attention refuses its width or parameters"


def test_the_block_that_refuses_is_named_inside_a_wrapper_too():
    space = parsed({"model": STACK}).space
    held = dataclasses.replace(Gene.of("mod"), inner=(Gene.of("moe", mult=0.125),))
    with pytest.raises(Infeasible, match=r"moe.mult 0.125 x 20 is not whole") as caught:
        settle(space, Genome(20, (Gene.of("swiglu"), held)), CONTEXT)
    assert caught.value.rule == "moe refuses its width or parameters"


def test_a_match_that_no_width_allows_names_the_blocks():
    space = parsed({"model": STACK | {"d_model": [18, 20]}}).space
    space = with_match(space, "params", 1000, 1.0)
    picky = {"attention": Gene.of("attention", heads=9), "moe": Gene.of("moe", mult=0.25)}
    rules = {
        ("moe",): "moe refuses every width",
        ("attention", "moe"): "no width suits attention and moe",
    }
    for widths, names in (((18, 22), ("moe",)), ((18, 20), ("attention", "moe"))):
        narrow = parsed({"model": STACK | {"d_model": list(widths)}}).space.d_model
        genome = Genome(18, tuple(picky[name] for name in (*names, *names)))
        with pytest.raises(Infeasible, match="no legal width fits") as caught:
            settle(dataclasses.replace(space, d_model=narrow), genome, CONTEXT)
        assert caught.value.rule == rules[names]


@some
@given(genomes(), st.sampled_from([1, 16, 100]))
def test_quantities_are_what_the_genome_and_its_cost_say(genome, length):
    def value(text):
        return measure(Expr.parse(text, QUANTITIES), genome, CONTEXT)

    here, there = cost(genome, CONTEXT), cost(genome, length)
    blocks = [gene.block for gene in genome.branches]
    every = [gene.block for gene in nested(genome.genes)]
    for name in TARGETS:
        assert value(name) == getattr(here, name)
    for name in ("flops", "state_bytes"):
        assert value(f"{name}({length})") == getattr(there, name)
    assert value("layers") == len(blocks)
    assert value("d_model") == genome.d_model
    pairs = {frozenset(pair) for pair in pairwise(blocks)}
    for one in set(every) | {"mamba2"}:
        assert value(f"count({one})") == every.count(one)
        for other in set(blocks):
            assert value(f"adjacent({one}, {other})") == (frozenset((one, other)) in pairs)


@settings(max_examples=20, deadline=None)
@given(genomes(most=4))
def test_params_are_those_of_the_built_model_without_its_embeddings(genome):
    model = build(genome, 11, generator=torch.Generator().manual_seed(0))
    around = ("embedding", "readout", "lift", "lower")
    inner = [p for n, p in model.named_parameters() if not n.startswith(around)]
    assert measure(Expr.parse("params", QUANTITIES), genome, CONTEXT) == sum(
        p.numel() for p in inner)  # fmt: skip


def test_what_only_training_tells_is_handed_in():
    score = Expr("score + layers", False, Expr.parse("score + layers", QUANTITIES | {
        "score": ()}).root)  # fmt: skip
    genome = Genome(16, (Gene.of("swiglu"),))
    assert measure(score, genome, CONTEXT, {"score": 0.5}) == 1.5


@some
@given(spaces(most=60))
def test_the_members_are_the_distinct_genomes_that_settle(experiment):
    space = dataclasses.replace(experiment.space, require=(Expr.parse("layers > 1", QUANTITIES),))
    expected = set()
    for decisions in space.every():
        try:
            expected.add(settle(space, space.replay(decisions), CONTEXT))
        except SpaceError:
            continue
    listed = members(space, CONTEXT)
    assert [c.genome for c in listed] == list(dict.fromkeys(c.genome for c in listed))
    assert {candidate.genome for candidate in listed} == expected
    for candidate in listed:
        assert settle(space, space.replay(dict(candidate.decisions)), CONTEXT) == candidate.genome


def test_a_large_space_is_not_listed():
    stack = [{"repeat": 10, "choose": "per_repeat", "pattern": [
        {"a": ["swiglu", "attention", "none"]}]}]  # fmt: skip
    assert members(parsed({"model": {"stack": stack}}).space, CONTEXT) is None


def half_and_half(**more):
    stack = [{"pattern": [{"a": ["swiglu", "attention"]}, {"b": ["none", NEXT]}]}]
    return parsed({"name": "half", "model": {"d_model": 16, "stack": stack}, **more}).space


def test_a_draw_is_wanted_and_feasible():
    space = half_and_half(require=["count(swiglu) > 0"])
    candidate = draw(space, random.Random(0), CONTEXT, lambda genome: True)
    assert candidate.genome.text() == "swiglu"
    assert space.replay(dict(candidate.decisions)) == candidate.genome


def test_a_draw_that_finds_nothing_names_the_rules_and_their_shares():
    space = half_and_half(require=["count(swiglu) > 0", "layers > 2"])
    with pytest.raises(SpaceError) as caught:
        draw(space, random.Random(0), CONTEXT, lambda genome: True)
    head, *lines = str(caught.value).splitlines()
    assert head == "half: no new member that may be trained in 2000 draws; rejected by"
    shares = {line.split("%  ")[1]: float(line.split("%")[0]) for line in lines[::2]}
    assert set(shares) == {"count(swiglu) > 0", "layers > 2"}
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)
    assert all(abs(share - 50) < 5 for share in shares.values())
    assert lines[1::2] == [
        f"          e.g. {'attention' if 'count' in rule else 'swiglu'} breaks the rule {rule}"
        for rule in shares
    ]


def test_what_blocks_refuse_is_counted_block_by_block_with_one_reason_each():
    stack = [{"pattern": [{"mixer": ["swiglu", {"attention": {"heads": 5}}, {"mamba2": {
        "head_dim": 12}}]}]}]  # fmt: skip
    space = parsed({"name": "picky", "model": {"d_model": 16, "stack": stack}}).space
    seen = survey(space, random.Random(0), CONTEXT, 300)
    refused = [f"{block} refuses its width or parameters" for block in ("attention", "mamba2")]
    assert set(seen.rejected) == {"", *refused}
    for rule, reason in seen.reasons.items():
        assert reason.startswith(rule.split()[0] + ".")
    space = dataclasses.replace(space, require=(Expr.parse("count(swiglu) < 1", QUANTITIES),))
    with pytest.raises(SpaceError) as caught:
        draw(space, random.Random(0), CONTEXT, lambda genome: True)
    for rule in refused:
        assert f"%  {rule}\n          e.g. {rule.split()[0]}." in str(caught.value)


def test_a_draw_that_finds_nothing_new_says_so():
    with pytest.raises(SpaceError, match=r"100.0%  trained before"):
        draw(half_and_half(), random.Random(0), CONTEXT, lambda genome: False)


def test_an_unreachable_size_is_reported_with_what_is_in_reach():
    space = half_and_half(match={"params": "1G"})
    with pytest.raises(SpaceError) as caught:
        draw(space, random.Random(0), CONTEXT, lambda genome: True)
    message = str(caught.value)
    assert "100.0%  match params" in message
    smallest = cost(Genome(16, (Gene.of("attention"),)), CONTEXT).params
    largest = cost(Genome(16, (Gene.of("swiglu"),)), CONTEXT).params
    assert message.splitlines()[-1] == (
        f"  within reach: params {smallest} to {largest}; match wants 1e+09"
    )


def test_a_survey_counts_what_each_rule_rejects():
    space = half_and_half(require=["count(swiglu) > 0"])
    seen = survey(space, random.Random(0), CONTEXT, 400)
    assert sum(seen.rejected.values()) == seen.draws == 400
    assert set(seen.rejected) == {"", "count(swiglu) > 0"}
    assert seen.reasons == {
        "count(swiglu) > 0": "attention breaks the rule count(swiglu) > 0"}  # fmt: skip
    share, low, high = seen.feasible
    assert low < 0.5 < high
    assert low < share < high
    assert [(genome.text(), c.params) for genome, c in seen.costs] == [
        ("swiglu", cost(Genome(16, (Gene.of("swiglu"),)), CONTEXT).params)]  # fmt: skip


@given(st.integers(1, 500), st.data())
def test_the_interval_of_the_feasible_share_holds_the_share(draws, data):
    feasible = data.draw(st.integers(0, draws))
    share, low, high = Survey(draws, {"": feasible, "x": draws - feasible}, ()).feasible
    assert 0 <= low <= share + 1e-12
    assert share <= high + 1e-12 <= 1 + 1e-12
    wider = Survey(4 * draws, {"": 4 * feasible, "x": 4 * (draws - feasible)}, ()).feasible
    assert wider[2] - wider[1] < high - low


def test_every_candidate_of_a_matched_space_has_its_size():
    experiment = load("zamba-like")
    space, rng = experiment.space, random.Random(0)
    for _ in range(5):
        genome = draw(space, rng, experiment.context, lambda genome: True).genome
        reached = measure(space.match.quantity, genome, experiment.context)
        assert abs(reached / space.match.target - 1) <= space.match.tolerance
        assert all(measure(rule, genome, experiment.context) for rule in space.require)

"""Edits of answers stay within the space and change what they say they change."""

import random

import pytest

from archsearch.search.moves import (
    MOVES,
    complete,
    copy,
    cross,
    kind_of,
    mutate,
    neighbours,
    questions,
    subtree,
    swap,
    twins,
)
from archsearch.space_yaml import load

SPACE = load("everything").space
SEEDS = range(40)
USUAL = {name: share for name, (share, _) in MOVES.items()}


def member(seed):
    return SPACE.sample(random.Random(seed))


def require_legal(decisions):
    """Exactly the questions of the member are answered, each with a legal value."""
    asked = questions(SPACE, decisions)
    assert asked.keys() == decisions.keys()
    assert all(decisions[path] in dim for path, dim in asked.items())


@pytest.mark.parametrize("seed", SEEDS)
def test_an_edit_stays_within_the_space(seed):
    rng, parent = random.Random(seed), member(seed)
    before = dict(parent)
    for name in MOVES:
        only = {other: float(other == name) for other in MOVES}
        child, done = mutate(SPACE, parent, rng, only | {"copy": only["copy"] or 1e-12})
        require_legal(child)
        assert done in (name, "copy")
    assert parent == before


@pytest.mark.parametrize("seed", SEEDS)
def test_a_child_of_two_has_every_answer_from_one_of_them_or_from_a_new_question(seed):
    rng, one, other = random.Random(seed), member(seed), member(seed + 1)
    child = cross(SPACE, one, other, rng)
    require_legal(child)
    for path, value in child.items():
        known = [parent[path] for parent in (one, other) if path in parent]
        assert value in known or not known or value not in (one, other)
    assert cross(SPACE, one, one, rng) == one


@pytest.mark.parametrize("seed", range(10))
def test_what_is_wanted_is_kept(seed):
    decisions = member(seed)
    assert complete(SPACE, decisions, random.Random(-seed)) == decisions
    path = random.Random(seed).choice(list(decisions))
    rest = {key: value for key, value in decisions.items() if not key.startswith(path)}
    child = complete(SPACE, rest, random.Random(-seed))
    require_legal(child)
    assert {key: child[key] for key in rest if key in child}.items() <= decisions.items()


@pytest.mark.parametrize("seed", range(10))
def test_places_of_a_kind_exchange_or_repeat_what_stands_there(seed):
    decisions = member(seed)
    asked = questions(SPACE, decisions)
    for one, other in twins(asked):
        assert asked[one].options == asked[other].options
    swapped, copied = (f(decisions, asked, random.Random(seed)) for f in (swap, copy))
    assert sorted(map(str, swapped.values())) == sorted(map(str, decisions.values()))
    changed = [p for p in (swapped, copied) if p != decisions]
    for child in changed:
        require_legal(complete(SPACE, child, random.Random(seed)))
    pairs = [(a, b) for a, b in twins(asked) if subtree(copied, a) == subtree(copied, b)]
    assert pairs


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_differ_in_one_answer_by_one_step(seed):
    decisions = member(seed)
    asked = questions(SPACE, decisions)
    found = neighbours(SPACE, decisions)
    assert found
    for near in found:
        (path,) = (p for p in decisions if near[p] != decisions[p])
        values = asked[path].values
        if kind_of(path, asked[path]) == "choice" or values is None:
            continue
        assert abs(values.index(near[path]) - values.index(decisions[path])) == 1

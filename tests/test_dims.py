"""Laws of a search dimension."""

import dataclasses
import json
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.dims import Dim, choice, dims_of, pow2, real, whole, word

whole_ranges = st.builds(
    lambda low, count, step: Dim(low=low, high=low + count * step, step=step, default=low),
    st.integers(-50, 50), st.integers(0, 30), st.integers(1, 7),
)  # fmt: skip
real_ranges = st.builds(
    lambda low, span: Dim(low=low, high=low + span, default=low),
    st.floats(0.001, 10), st.floats(0, 100),
)  # fmt: skip
stepped_reals = st.builds(
    lambda low, count, step: Dim(low=low / 10, high=low / 10 + count * step, step=step),
    st.integers(0, 50), st.integers(0, 30), st.sampled_from([0.1, 0.2, 0.25, 0.7, 1 / 3]),
)  # fmt: skip
options = st.one_of(
    st.lists(st.integers(-9, 9), min_size=1, unique=True),
    st.lists(st.sampled_from(["a", "b", "none", "c"]), min_size=1, unique=True),
    st.lists(st.sampled_from([0.5, 1, 2, 0.25]), min_size=1, unique=True),
    st.just([False, True]),
    st.just([None, 1, 2]),
).map(lambda values: Dim(options=tuple(values), default=values[0]))
with_fractions = st.one_of(whole_ranges, stepped_reals).map(
    lambda dim: dataclasses.replace(dim, fractions=True)
)
fractions = st.just(Dim(low=1, high=16, step=1, fractions=True).narrow([1, 2.75, 4]))
listed = st.one_of(whole_ranges, stepped_reals, options, with_fractions, fractions)
dims = st.one_of(listed, real_ranges)


@given(listed)
def test_values_are_legal_distinct_and_counted(dim):
    assert dim.values is not None
    assert all(value in dim for value in dim.values)
    assert len(set(dim.values)) == len(dim.values) == dim.count
    assert dim.values[0] == dim.first


@given(dims, st.integers())
def test_a_sample_is_legal_and_written_as_the_dimension_writes_it(dim, seed):
    value = dim.sample(random.Random(seed))
    assert value in dim
    assert repr(dim.cast(value)) == repr(value)


@given(dims)
def test_json_round_trip(dim):
    assert Dim.from_json(json.loads(json.dumps(dim.to_json()))) == dim


@given(listed, st.data())
def test_narrowing_keeps_exactly_what_was_named_and_is_idempotent(dim, data):
    kept = data.draw(st.lists(st.sampled_from(dim.values), min_size=1, unique=True))
    narrowed = dim.narrow(kept)
    assert narrowed.values == tuple(kept)
    assert narrowed.narrow(kept) == narrowed
    assert all((value in narrowed) == (value in kept) for value in dim.values)


@given(whole_ranges, st.data())
def test_a_narrowed_range_is_a_part_of_the_whole(dim, data):
    low = data.draw(st.sampled_from(dim.values))
    high = data.draw(st.sampled_from([v for v in dim.values if v >= low]))
    step = data.draw(st.sampled_from([None, dim.step, 2 * dim.step]))
    narrowed = dim.narrow_range(low, high, step)
    assert set(narrowed.values) <= set(dim.values)
    assert narrowed.values == tuple(range(low, high + 1, step or dim.step))
    assert narrowed.high == narrowed.values[-1]
    assert narrowed.narrow_range(low, narrowed.high, narrowed.step) == narrowed


@pytest.mark.parametrize(
    ("dim", "value"),
    [
        (Dim(low=1, high=8, step=1), 9),
        (Dim(low=1, high=8, step=1), 1.5),
        (Dim(low=1, high=8, step=1), True),
        (Dim(low=1, high=8, step=1), None),
        (Dim(low=1, high=8, step=1), "1"),
        (Dim(low=8, high=64, step=8), 12),
        (Dim(low=1.0, high=8.0), math.nan),
        (Dim(options=(1, 2)), 3),
        (Dim(options=(False, True)), 0),
        (Dim(options=("a",)), None),
    ],
)
def test_what_is_not_legal_cannot_be_narrowed_to(dim, value):
    assert value not in dim
    with pytest.raises(ValueError, match="is not legal here; legal: "):
        dim.narrow([value])


@pytest.mark.parametrize(
    ("dim", "given_value", "written"),
    [
        (Dim(low=1.0, high=9.0), 2, 2.0),
        (Dim(low=0.0, high=9.0), 0.1 + 0.2, 0.3),
        (Dim(low=-1.0, high=9.0), -0.0, 0.0),
        (Dim(low=1, high=9, step=1), 4.0, 4),
        (Dim(low=1, high=9, step=1, optional=True), "none", None),
        (Dim(options=("rope", "none")), "none", "none"),
        (Dim(options=(0, 0.5)), 0, 0.0),
        (Dim(options=(False, True)), True, True),
    ],
)
def test_equal_values_are_written_alike(dim, given_value, written):
    assert repr(dim.cast(given_value)) == repr(written)
    assert written in dim


WITH_FRACTIONS = Dim(low=1, high=16, step=1, default=2, fractions=True)
STEPS_AND_FRACTIONS = Dim(low=0.125, high=4.0, step=0.125, default=1.0, fractions=True)


@pytest.mark.parametrize(
    ("dim", "values", "written"),
    [
        (WITH_FRACTIONS, (1, 2.75, 8 / 3, 4.0), "(1, 2.75, 2.66666666667, 4)"),
        (WITH_FRACTIONS, (3, 1), "(3, 1)"),
        (WITH_FRACTIONS, (2.5,), "(2.5,)"),
        (STEPS_AND_FRACTIONS, (1, 121 / 46), "(1.0, 2.63043478261)"),
    ],
)
def test_a_fraction_is_legal_where_it_is_named(dim, values, written):
    narrowed = dim.narrow(values)
    assert repr(narrowed.values) == written
    assert all(dim.cast(value) in narrowed for value in values)
    assert 1.875 in dim
    assert 1.875 not in narrowed
    assert Dim.from_json(json.loads(json.dumps(narrowed.to_json()))) == narrowed


def test_a_range_goes_through_no_fractions():
    assert repr(WITH_FRACTIONS.narrow_range(1, 4).values) == "(1, 2, 3, 4)"
    assert WITH_FRACTIONS.count == len(WITH_FRACTIONS.values) == 16
    assert STEPS_AND_FRACTIONS.narrow_range(0.5, 1).values == (0.5, 0.625, 0.75, 0.875, 1.0)
    with pytest.raises(ValueError, match=r"^2\.5 is not legal here; legal: 1 to 16$"):
        WITH_FRACTIONS.narrow_range(1, 2.5)
    assert 2.75 not in dataclasses.replace(WITH_FRACTIONS, fractions=False)
    illegal = (0, 0.5, 16.5, math.nan, math.inf, True, None, "2")
    assert not any(value in WITH_FRACTIONS for value in illegal)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 40))
def test_a_log_range_is_drawn_on_a_log_scale(low, half, rest):
    rng, high = random.Random(low), low + half + rest
    whole_range = Dim(low=low, high=high, step=1, log=True)
    real_range = Dim(low=float(low), high=float(high), log=True)
    for dim, past in ((whole_range, high + 1), (real_range, high)):
        drawn = [dim.sample(rng) for _ in range(400)]
        assert all(value in dim for value in drawn)
        below = sum(value < low + half for value in drawn) / len(drawn)
        assert abs(below - math.log((low + half) / low) / math.log(past / low)) < 0.15


def test_a_plain_range_is_drawn_uniformly():
    dim, rng = Dim(low=1, high=100, step=1), random.Random(0)
    share = sum(dim.sample(rng) <= 10 for _ in range(4000)) / 4000
    assert abs(share - 0.1) < 0.02  # on a log scale it would be a half


def test_weights_decide_how_often_an_option_is_drawn():
    dim, rng = Dim(options=("a", "b", "c")), random.Random(0)
    drawn = Counter(dim.sample(rng, (6, 3, 1)) for _ in range(5000))
    assert [round(drawn[v] / 5000, 1) for v in "abc"] == [0.6, 0.3, 0.1]


def test_a_huge_range_is_never_listed():
    dim = Dim(low=1.0, high=1e7, step=1e-6, default=1.0)
    assert dim.count == pytest.approx(1e13)
    assert dim.sample(random.Random(0)) in dim
    assert dim.narrow_range(1, 1e6, 1e-6).count == pytest.approx(1e12)


REFUSED = [
    (lambda: Dim(), "at least one option"),
    (lambda: Dim(low=3, high=2), "the range from 3 to 2 is empty"),
    (lambda: Dim(low=0.0, high=2.0, log=True), "a log range starts above 0, not at 0"),
    (lambda: choice(1, 2, default=3), "default 3 is not legal; legal: 1, 2"),
    (lambda: whole(1, 8, default=9), "default 9 is not legal; legal: 1 to 8"),
    (lambda: Dim(low=1, high=9, step=1).narrow([2, 2]), "2 stands twice in the choice"),
    (lambda: Dim(low=1, high=9, step=1).narrow([2, 2.0]), "2 stands twice in the choice"),
    (lambda: Dim(low=1, high=9, step=1).narrow([]), "at least one option"),
    (lambda: Dim(low=1, high=9, step=1).narrow_range(1, 9, 0.5), "a multiple of 1"),
    (lambda: Dim(low=8, high=64, step=8).narrow_range(8, 64, 12), "a multiple of 8"),
    (lambda: Dim(low=1, high=9, step=1).narrow_range(1, 9, 2, True), "has no step"),
    (lambda: Dim(low=1, high=9, step=1).narrow_range(0, 3), "0 is not legal here"),
    (lambda: Dim(options=("a", "b")).narrow_range(1, 2), "a range needs numbers"),
    (lambda: Dim(options=(False, True)).narrow_range(0, 1), "a range needs numbers"),
    (lambda: Dim(options=(1, 8)).narrow_range(2, 7), "nothing legal lies in the range"),
    (lambda: Dim(options=(1, 8)).narrow_range(1, 8, 2), "steps have no meaning here"),
]


@pytest.mark.parametrize(("how", "why"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_what_is_refused_and_why(how, why):
    with pytest.raises(ValueError, match=why):
        how()


def test_a_range_is_on_a_log_scale_if_the_whole_is():
    whole_range = Dim(low=1.0, high=1e4, log=True, default=1.0)
    assert whole_range.narrow_range(10, 100).log
    assert not whole_range.narrow_range(10, 100, log=False).log
    assert not whole_range.narrow_range(10, 100, step=5).log


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (True, "true"), (3, "3"), (2.5, "2.5"), (1e-9, "1e-09"), ("a", "a")],
    ids=str,
)
def test_a_word_is_how_a_space_file_spells_it(value, text):
    assert word(value) == text


def test_the_declared_fields_of_a_config_are_its_dimensions():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        size: int = pow2(2, 16, default=4)
        rate: float = real(0, 1, default=0.5)
        heads: int | None = whole(1, 8, default=None, default_from="size")

    found = dims_of(Config)
    assert list(found) == ["size", "rate", "heads"]
    assert found["size"].values == (2, 4, 8, 16)
    assert found["rate"].real
    assert None in found["heads"]
    assert all(getattr(Config(), name) in dim for name, dim in found.items())

"""How one value, several, a range and a quantity are written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.choices import Misfit, duration, quantity, read_choices
from archsearch.dims import Dim

WHOLE = Dim(low=1, high=1000, step=1, default=1)
REAL = Dim(low=0.0, high=1.0, default=0.5)
OPTIONAL = Dim(low=1, high=1000, step=1, default=None, optional=True)
WORD = Dim(options=("silu", "gelu"), default="silu")
FLAG = Dim(options=(False, True), default=False)

values = st.integers(1, 1000)


@given(values)
def test_one_value_is_a_choice_of_one(value):
    assert read_choices(value, WHOLE).values == (value,)
    assert read_choices(str(value), WHOLE).values == (value,)
    assert read_choices(float(value), WHOLE).values == (value,)


@given(st.lists(values, min_size=1, unique=True))
def test_a_list_keeps_its_order(several):
    assert read_choices(several, WHOLE).values == tuple(several)


@given(values, values, st.integers(1, 9))
def test_a_range_is_what_python_counts(low, high, step):
    low, high = min(low, high), max(low, high)
    assert read_choices({"from": low, "to": high}, WHOLE).values == tuple(range(low, high + 1))
    stepped = read_choices({"from": low, "to": high, "step": step}, WHOLE)
    assert stepped.values == tuple(range(low, high + 1, step))


@given(values, values, st.integers(2, 5))
def test_powers(low, high, base):
    low, high = min(low, high), max(low, high)
    expected = tuple(p for i in range(12) if low <= (p := base**i) <= high)
    data = {"from": low, "to": high, "powers_of": base}
    if expected:
        assert read_choices(data, WHOLE).values == expected
    else:
        with pytest.raises(Misfit, match=f"no power of {base} lies in the range"):
            read_choices(data, WHOLE)


QUANTITIES = [
    ("600K", 600_000), ("1M", 10**6), ("2.01M", 2_010_000), ("2G", 2 * 10**9), ("64KiB", 65_536),
    ("1MiB", 2**20), ("1GiB", 2**30), ("3%", 0.03), ("1/3", 1 / 3), ("4/2", 2.0), ("1e3", 1000),
    ("1e-4", 1e-4), ("-2", -2), ("1/0", "1/0"), ("600 K", "600 K"), ("12:30", "12:30"),
    ("K", "K"), ("1e9999", "1e9999"), ("", ""), (7, 7), (None, None), (True, True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), QUANTITIES, ids=map(str, range(len(QUANTITIES))))
def test_quantities(text, value):
    assert quantity(text) == value
    assert type(quantity(text)) is type(value)


@given(st.text(alphabet="0123456789.eE+-/%KMGiB ", max_size=12))
def test_any_text_is_a_number_or_stays_as_it_is(text):
    assert quantity(text) == text or isinstance(quantity(text), int | float)


DURATIONS = [
    ("90s", 90), ("30min", 1800), ("24h", 86_400), ("2d", 172_800), ("1.5h", 5400), ("90", None),
    ("1/2h", None), ("h", None), (90, None), (None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), DURATIONS, ids=map(str, range(len(DURATIONS))))
def test_durations(text, seconds):
    assert duration(text) == seconds


MISFITS = [
    (WHOLE, 0, [((), "0 is not legal here; legal: 1 to 1000")]),
    (WHOLE, "x", [((), "x is not legal here; legal: 1 to 1000")]),
    (WHOLE, None, [((), "none is not legal here; legal: 1 to 1000")]),
    (WHOLE, True, [((), "true is not legal here; legal: 1 to 1000")]),
    (WHOLE, 1.5, [((), "1.5 is not legal here; legal: 1 to 1000")]),
    (WHOLE, [], [((), "an empty choice; legal: 1 to 1000")]),
    (WHOLE, [1, [2]], [((1,), "expected a single value, not a list; legal: 1 to 1000")]),
    (WHOLE, [{}, 1], [((0,), "expected a single value, not a mapping; legal: 1 to 1000")]),
    (WHOLE, [3, 4, 3], [((2,), "3 stands twice in the choice")]),
    (WHOLE, ["1K", 2, 1000.0], [((2,), "1000 stands twice in the choice")]),
    (WHOLE, [0, 4, "y"], [
        ((0,), "0 is not legal here; legal: 1 to 1000"),
        ((2,), "y is not legal here; legal: 1 to 1000"),
    ]),
    (WORD, "relu", [((), "relu is not legal here; did you mean 'gelu'? known: gelu, silu")]),
    (WORD, {"from": 1, "to": 2}, [((), "a range needs numbers; legal: silu, gelu")]),
    (FLAG, 1, [((), "1 is not legal here; legal: false, true")]),
    (FLAG, "yes", [((), "yes is not legal here; legal: false, true")]),
    (WHOLE, {"from": 1}, [((), "a range needs 'to'")]),
    (WHOLE, {}, [((), "a range needs 'from'"), ((), "a range needs 'to'")]),
    (WHOLE, {"from": 1, "too": 2}, [
        (("too",), "unknown key 'too' in a range; did you mean 'to'? known: "
                   "from, log, powers_of, step, to"),
        ((), "a range needs 'to'"),
    ]),
    (WHOLE, {"from": 5, "to": 4}, [(("to",), "the range from 5 to 4 is empty")]),
    (WHOLE, {"from": "a", "to": [4]}, [
        (("from",), "expected a number, not a"), (("to",), "expected a number, not a list"),
    ]),
    (WHOLE, {"from": 1, "to": math.inf}, [(("to",), "expected a number, not inf")]),
    (WHOLE, {"from": 1, "to": 4, "step": 0}, [(("step",), "the step must be above 0")]),
    (WHOLE, {"from": 1, "to": 4, "step": 0.5}, [((), "the step must be a multiple of 1")]),
    (WHOLE, {"from": 1, "to": 9, "step": 2, "log": True}, [((), "a log range has no step")]),
    (WHOLE, {"from": 1, "to": 4, "log": 1}, [(("log",), "expected true or false")]),
    (WHOLE, {"from": 0, "to": 4}, [((), "0 is not legal here; legal: 1 to 1000")]),
    (WHOLE, {"from": 1, "to": 9, "powers_of": 1}, [
        (("powers_of",), "powers_of takes a whole number from 2"),
    ]),
    (WHOLE, {"from": 1, "to": 9, "powers_of": 1e300}, [
        (("powers_of",), "powers_of takes a whole number from 2"),
    ]),
    (WHOLE, {"from": 1, "to": 9, "powers_of": 2, "step": 2}, [
        (("step",), "a range has either 'powers_of' or 'step'"),
    ]),
    (REAL, {"from": 0, "to": 1, "log": True}, [((), "a log range starts above 0, not at 0")]),
]  # fmt: skip


@pytest.mark.parametrize(("legal", "data", "parts"), MISFITS, ids=map(str, range(len(MISFITS))))
def test_what_does_not_fit_is_all_named_with_its_place(legal, data, parts):
    with pytest.raises(Misfit) as caught:
        read_choices(data, legal)
    assert [(at, message) for message, at, _ in caught.value.parts] == parts


def test_none_stands_beside_a_range_where_it_is_legal():
    assert read_choices(["none", 8], OPTIONAL).values == (None, 8)
    assert read_choices(None, OPTIONAL).values == (None,)


def test_real_numbers_take_fractions_and_shares():
    assert read_choices(["1/4", "3%", 1, 0.5], REAL).values == (0.25, 0.03, 1.0, 0.5)
    tenths = read_choices({"from": 0, "to": 0.95, "step": 0.1}, REAL)
    assert tenths.values == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert tenths.high == 0.9

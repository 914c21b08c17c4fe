import re

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers

from archsearch.words import count, short, size, span


@pytest.mark.parametrize(
    ("number", "words"),
    [(7, "7"), (999, "999"), (1000, "1 k"), (12_345, "12.3 k"), (999_999, "1 M"), (2.5e9, "2.5 G")],
)
def test_count(number, words):
    assert count(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(512, "512 B"), (1023, "1023 B"), (1024, "1 KiB"), (16_384, "16 KiB"), (3 * 2**19, "1.5 MiB")],
)
def test_size(number, words):
    assert size(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.2, "4 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_span(seconds, words):
    assert span(seconds) == words


@given(integers(1, 10**12))
def test_count_is_true_to_half_a_percent(number):
    value, _, unit = count(number).partition(" ")
    assert float(value) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit] == pytest.approx(
        number, rel=5e-3
    )


@given(floats(0, 1e7), floats(0, 1e7))
def test_span_never_shrinks(a, b):
    def minutes(text):
        numbers = [int(n) for n in text.split() if n.isdigit()]
        unit = {"h": 3600, "min": 60, "s": 1}
        return sum(n * unit[u] for n, u in zip(numbers, text.split()[1::2], strict=True))

    assert minutes(span(min(a, b))) <= minutes(span(max(a, b)))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"), (999, "999"), (999.6, "1.0K"), (12_345, "12K"), (524_288, "524K"),
        (999_499, "999K"), (999_501, "1.0M"), (1_048_576, "1.0M"), (9_960_000, "10M"),
        (4.2e9, "4.2G"),
    ],
)  # fmt: skip
def test_short(number, words):
    assert short(number) == words


@given(integers(0, 10**14))
def test_short_is_true_to_five_percent_in_at_most_four_characters(number):
    assert len(short(number)) <= 4
    value, unit = re.fullmatch(r"([\d.]+)([KMGT]?)", short(number)).groups()
    scale = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert float(value) * scale == pytest.approx(number, rel=5e-2)

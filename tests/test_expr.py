"""The expression language against Python, and where its errors point."""

import math
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.expr import (
    MOST_DEPTH,
    MOST_TOKENS,
    QUANTITIES,
    SCORES,
    UNITS,
    Expr,
    ExprError,
    scaled,
)

VALUES = {
    ("params", ()): 1200.0, ("layers", ()): 7.0, ("d_model", ()): 64.0, ("flops", ()): 2.5e6,
    ("flops", (4096,)): 9e6, ("state_bytes", (128,)): 0.0, ("count", ("swiglu",)): 2.0,
    ("count", ("shared-x",)): 1.0,
}  # fmt: skip
TRUTHS = {("adjacent", ("mamba2", "attention")): True, ("adjacent", ("mamba2", "mamba2")): False}
PYTHON = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
    "/": lambda a, b: a / b if b else math.nan,
}  # fmt: skip
LITERALS = ["0", "3", "2.5", "1e3", "1e-4", "256K", "2M", "64KiB", "3%", "2.01M", "1G"]
LEVEL = {"or": 1, "and": 2, "not": 3, "*": 6, "/": 6, "+": 5, "-": 5} | dict.fromkeys(
    ("<", "<=", ">", ">=", "==", "!="), 4)  # fmt: skip


def look_up(name, args):
    return (VALUES | TRUTHS)[name, args]


@st.composite
def numbers(draw, depth=3):
    """A random tree over numbers."""
    if depth == 0 or draw(st.integers(0, 2)) == 0:
        if draw(st.booleans()):
            return ("quantity", draw(st.sampled_from(sorted(VALUES, key=str))))
        return ("number", draw(st.sampled_from(LITERALS)))
    if draw(st.integers(0, 5)) == 0:
        return ("minus", draw(numbers(depth - 1)))
    return (draw(st.sampled_from("+-*/")), draw(numbers(depth - 1)), draw(numbers(depth - 1)))


@st.composite
def truths(draw, depth=3):
    """A random tree over statements."""
    if draw(st.integers(0, 6)) == 0:
        return ("quantity", draw(st.sampled_from(sorted(TRUTHS))))
    if depth == 0 or draw(st.integers(0, 2)) == 0:
        sign = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
        return (sign, draw(numbers(2)), draw(numbers(2)))
    op = draw(st.sampled_from(["and", "or", "not"]))
    return (op, *(draw(truths(depth - 1)) for _ in range(1 if op == "not" else 2)))


def value(tree):
    """What Python says that a tree is."""
    kind, *parts = tree
    if kind == "number":
        digits = parts[0].rstrip("KMGiB%")
        return float(digits) * float(UNITS[parts[0][len(digits) :]])
    if kind == "quantity":
        return (VALUES | TRUTHS)[parts[0]]
    values = [value(part) for part in parts]
    if kind == "minus":
        return -values[0]
    if kind in ("and", "or", "not"):
        return {"and": all, "or": any, "not": lambda v: not v[0]}[kind](values)
    return PYTHON[kind](*values)


def printed(tree, spaces, level=0, right=False):
    """A tree as text, with parentheses where precedence needs them."""
    kind, *parts = tree
    if kind == "number":
        return parts[0]
    if kind == "quantity":
        name, args = parts[0]
        return f"{name}({', '.join(map(str, args))})" if args else name
    if kind == "minus":
        return "-" + printed(parts[0], spaces, 7)
    own = LEVEL[kind]
    if kind == "not":
        text = "not " + printed(parts[0], spaces, own)
    else:
        pad = " " if spaces or kind in ("and", "or") else ""
        side = 5 if own == 4 else own  # comparisons do not chain
        left, second = printed(parts[0], spaces, side), printed(parts[1], spaces, side, True)
        text = f"{left}{pad}{kind}{pad}{second}"
    return f"({text})" if own < level or (own == level and right) else text


@settings(max_examples=400, deadline=None)
@given(st.one_of(numbers(), truths()), st.booleans())
def test_the_value_is_the_one_that_python_computes(tree, spaces):
    text = printed(tree, spaces)
    expr = Expr.parse(text, QUANTITIES)
    mine, reference = expr(look_up), value(tree)
    assert expr.truth == isinstance(reference, bool)
    assert mine == pytest.approx(float(reference), rel=1e-12, nan_ok=True), text
    assert Expr.parse(text, QUANTITIES) == expr


def test_the_units():
    assert {unit: float(size) for unit, size in UNITS.items()} == {
        "": 1, "%": 0.01, "K": 1e3, "M": 1e6, "G": 1e9,
        "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
    }  # fmt: skip


def test_precedence_decides_the_value():
    assert Expr.parse("2 + 3 * 4", {})(look_up) == 14
    assert Expr.parse("2 - 3 - 4", {})(look_up) == -5
    assert Expr.parse("-2 * -3", {})(look_up) == 6
    assert Expr.parse("1 > 2 and 1 > 2 or 2 > 1", {})(look_up)
    assert not Expr.parse("1 > 2 and (1 > 2 or 2 > 1)", {})(look_up)
    assert Expr.parse("not 1 > 2 and 2 > 1", {})(look_up)


@given(st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(sorted(set(UNITS) - {"%"})))
def test_a_unit_scales_exactly(digits, places, unit):
    text = f"{digits / 10**places:.{places}f}"
    assert scaled(text, unit) == digits * UNITS[unit] / 10**places
    assert Expr.parse(text + unit, {})(look_up) == scaled(text, unit)


BROKEN = [
    ("", 0, "the expression ends too early"),
    ("layers <", 8, "the expression ends too early"),
    ("layers $ 3", 7, "unexpected character '$'"),
    ("  layer <= 3", 2, "unknown quantity 'layer'; did you mean 'layers'?"),
    ("layers <= 3 4", 12, "'4' does not continue the expression"),
    ("1 < 2 < 3", 6, "'<' does not continue the expression"),
    ("layers <= 3Kb", 11, "unknown unit 'Kb'; known: %, K, M, G, KiB, MiB, GiB"),
    ("count() > 1", 0, "'count' takes 1 argument, not 0"),
    ("count > 1", 0, "'count' takes 1 argument, not 0"),
    ("count(a, b) > 1", 0, "'count' takes 1 argument, not 2"),
    ("adjacent(a)", 0, "'adjacent' takes 2 arguments, not 1"),
    ("flops(1, 2) > 1", 0, "'flops' takes 0 or 1 arguments, not 2"),
    ("count(7) > 1", 6, "expected the name of a block, not 7"),
    ("flops(attention) > 1", 6, "expected a length in tokens, such as 4096, not attention"),
    ("flops(0) > 1", 6, "expected a length in tokens, such as 4096, not 0"),
    ("flops(0.5) > 1", 6, "expected a length in tokens, such as 4096, not 0.5"),
    ("flops(9G) > 1", 6, "expected a length in tokens, such as 4096, not 9G"),
    ("count(attention", 15, "expected ')'"),
    ("count(attention > 1", 16, "expected ')'"),
    ("adjacent(a b)", 11, "expected ','"),
    ("count(,) > 1", 6, "expected a name or a number"),
    ("(layers < 3", 11, "expected ')'"),
    ("layers and params > 1", 0, "expected a comparison here, not a number"),
    ("params > 1 and layers", 15, "expected a comparison here, not a number"),
    ("not layers", 4, "expected a comparison here, not a number"),
    ("1 + (2 < 3)", 4, "expected a number here, not a comparison"),
    ("adjacent(a, b) == 1", 0, "expected a number here, not a comparison"),
    ("-(2 < 3)", 1, "expected a number here, not a comparison"),
    ("(1 < 2) == (3 < 4)", 0, "expected a number here, not a comparison"),
    ("score > 1", 0, "unknown quantity 'score'"),
    ("<= 3", 0, "expected a number or a quantity, not '<='"),
    ("layers <= and", 10, "expected a number or a quantity, not 'and'"),
    ("((((((((((((((((((1))))))))))))))))))", MOST_DEPTH + 1, "nested too deeply; at most 16"),
    ("+".join(["1"] * 200), MOST_TOKENS, "too long; at most 256 words and signs"),
]


@pytest.mark.parametrize(("text", "at", "why"), BROKEN, ids=map(str, range(len(BROKEN))))
def test_an_error_points_at_the_first_character_that_does_not_fit(text, at, why):
    with pytest.raises(ExprError) as caught:
        Expr.parse(text, QUANTITIES)
    assert str(caught.value).startswith(why)
    assert caught.value.at == at


@given(truths(2), st.data())
def test_a_foreign_character_is_found_wherever_it_stands(tree, data):
    text = printed(tree, spaces=True)
    at = data.draw(st.sampled_from([i for i, c in enumerate(text) if c == " "] or [0]))
    with pytest.raises(ExprError) as caught:
        Expr.parse(f"{text[:at]} ; {text[at:]}", QUANTITIES)
    assert caught.value.at == at + 1


@given(st.text(alphabet="()<>=+-*/,. %KMx1e9andorlyscut", max_size=40))
def test_any_text_is_an_expression_or_a_clean_error(text):
    try:
        at, read = 0, Expr.parse(text, QUANTITIES)(lambda name, args: 1.0)
    except ExprError as error:
        at, read = error.at, None
    assert 0 <= at <= len(text)
    assert read is None or isinstance(read, bool | float | int)


def test_the_longest_expression_can_be_evaluated():
    assert Expr.parse("+".join(["1"] * 128), {})(look_up) == 128
    assert Expr.parse(" and ".join(["1<2"] * 64), {})(look_up)


def test_block_names_are_known_with_their_place():
    text = "count(swiglu) + count(shared-x) > 1 and not adjacent( a , b)"
    blocks = Expr.parse(text, QUANTITIES).blocks
    assert [name for name, _ in blocks] == ["swiglu", "shared-x", "a", "b"]
    assert all(text[at : at + len(name)] == name for name, at in blocks)


@pytest.mark.parametrize("when", ["layers > 1", "layers > 9"])
@pytest.mark.parametrize("then", ["params > 1", "params > 9999"])
def test_implication(when, then):
    first, second = Expr.parse(when, QUANTITIES), Expr.parse(then, QUANTITIES)
    whole = Expr.implies(first, second)
    assert bool(whole(look_up)) == (not first(look_up) or bool(second(look_up)))
    assert whole.text == f"when {when} then {then}"


def test_scores_are_known_in_objectives_alone():
    assert Expr.parse("score", QUANTITIES | SCORES).text == "score"
    with pytest.raises(ExprError):
        Expr.parse("score", QUANTITIES)

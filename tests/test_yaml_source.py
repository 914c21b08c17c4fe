"""YAML 1.2 scalars, places of values and keys, limits, and `--set`."""

import json
import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.errors import SpaceError
from archsearch.yaml_source import MOST_DEPTH, MOST_NODES, MOST_PROBLEMS, read

SCALARS = [
    ("1e-4", 1e-4), ("3e3", 3000.0), ("1.", 1.0), (".5", 0.5), ("-2.5E+1", -25.0), ("12", 12),
    ("012", 12), ("-7", -7), ("+7", 7), ("0x1F", 31), ("0o17", 15), ("true", True),
    ("false", False), ("null", None), ("~", None), ("", None), ("on", "on"), ("no", "no"),
    ("yes", "yes"), ("off", "off"), ("True", "True"), ("Null", "Null"), ("12:30", "12:30"),
    ("1_000", "1_000"), ("3%", "3%"), ("256K", "256K"), ("1/3", "1/3"), ("24h", "24h"),
    ("2001-01-01", "2001-01-01"), ("=", "="), ("<<", "<<"), ("0b11", "0b11"), (".inf", ".inf"),
    ("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"), ("!!int 12", 12), ("!!float 12", 12.0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=map(str, range(len(SCALARS))))
def test_scalars_are_those_of_yaml_1_2(text, value):
    document = read(f"a: {text}", "f")
    assert not document.problems
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


texts = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=8)
numbers = st.one_of(
    st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False)
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(texts, plain, min_size=1, max_size=4))
def test_plain_data_come_back(data):
    document = read(json.dumps(data, ensure_ascii=False), "f")  # JSON is YAML 1.2
    assert not document.problems
    assert document.data == data


words = st.text(string.ascii_letters, min_size=1, max_size=6)


@settings(deadline=None)
@given(st.dictionaries(words, st.lists(words, min_size=1, max_size=3), min_size=1, max_size=4),
       st.booleans())  # fmt: skip
def test_every_place_is_where_the_text_stands(data, flow):
    text = yaml.safe_dump(data, default_flow_style=flow, width=1000)
    document = read(text, "f")
    lines = text.splitlines()
    for key, items in document.data.items():
        spot = document.spot((key,), key=True)
        assert lines[spot.line][spot.column :].strip("'\"").startswith(key)
        for i, item in enumerate(items):
            spot = document.spot((key, i))
            shown = lines[spot.line][spot.column : spot.column + spot.length]
            assert shown.strip("'\"") == str(item) or item in (None, True, False)


def caught(text, overrides=()):
    with pytest.raises(SpaceError) as error:
        read(text, "f.yaml", overrides).stop_if_wrong()
    return str(error.value)


GOLDEN = {
    "a: 1\nb: 2\na: 3\n": """\
f.yaml:3:1: duplicate key 'a'
    a: 3
    ^
  first at line 1""",
    "a: {b: 1,  b: 2}\n": """\
f.yaml:1:12: duplicate key 'b'
    a: {b: 1,  b: 2}
               ^
  first at line 1""",
    "a: [1\nb: 2\n": """\
f.yaml:2:2: not YAML: while parsing a flow sequence: expected ',' or ']', but got ':'
    b: 2
     ^""",
    "a: 1\n\tb: 2\n": """\
f.yaml:2:1: not YAML: while scanning for the next token: found character '\\t' that cannot start \
any token
    b: 2
    ^
  indent with spaces""",
    "a: *x\n": """\
f.yaml:1:4: not YAML: found undefined alias 'x'
    a: *x
       ^""",
    "a: 1\n---\nb: 2\n": """\
f.yaml:2:1: not YAML: expected a single document in the stream: but found another document
    ---
    ^""",
    "a: \x07\n": """\
f.yaml:1:4: not YAML: the character '\\x07' is not allowed
    a: \x07
       ^""",
    "? [a]\n: 1\n": """\
f.yaml:1:3: a key must be a plain word
    ? [a]
      ^""",
    "a: !!int x\n": """\
f.yaml:1:10: 'x' is no int
    a: !!int x
             ^""",
    "a: !!bool yes\n": """\
f.yaml:1:11: 'yes' is no bool
    a: !!bool yes
              ^^^""",
    "a: !mine b\n": """\
f.yaml:1:10: the tag !mine is not used here
    a: !mine b
             ^""",
    "a: !!set {b}\n": """\
f.yaml:1:10: the tag tag:yaml.org,2002:set is not used here
    a: !!set {b}
             ^""",
    'a: "\\ud800"\n': """\
f.yaml:1:4: a text with characters that cannot be shown
    a: "\\ud800"
       ^^^^^^^^""",
    "": "f.yaml: the file is empty; see `archsearch spaces` for examples",
    "# nothing\n": "f.yaml: the file is empty; see `archsearch spaces` for examples",
}


@pytest.mark.parametrize("text", GOLDEN, ids=map(str, range(len(GOLDEN))))
def test_what_is_no_document_and_where(text):
    assert caught(text) == GOLDEN[text]


BOMBS = {
    "recursive list": "a: &a [*a]",
    "recursive mapping": "a: &a {b: {c: *a}}",
    "billion laughs": "a: &a [x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n"
              for i in range(9)),
    "deep": "a: " + "[" * 60 + "]" * 60,
    "large": "a: [" + "1, " * (MOST_NODES + 1) + "]",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_a_clean_error(name):
    limits = f"too deep or too large; at most {MOST_NODES} values, {MOST_DEPTH} levels"
    message = caught(BOMBS[name])
    assert limits in message
    assert message.startswith("f.yaml:")


def test_what_cannot_even_be_parsed_for_depth_is_a_clean_error():
    assert "nested too deeply" in caught("[" * 5000)


@pytest.mark.parametrize("escape", ["\\UFFFFFFFF", "\\U00110000"])
def test_a_character_that_does_not_exist_is_a_clean_error(escape):
    assert caught(f'a: "{escape}"').startswith("f.yaml:1:1: not YAML: ")


def test_aliases_stand_for_what_they_name():
    document = read("a: &x [1, {b: 2}]\nc: *x\n", "f")
    assert document.data == {"a": [1, {"b": 2}], "c": [1, {"b": 2}]}
    assert document.reused >= {("a",)}
    assert not read("a: [1]\nc: [1]\n", "f").reused


def test_a_report_holds_at_most_twenty_problems_in_order_and_counts_the_rest():
    document = read("".join(f"k{i}: {i}\n" for i in range(30)), "f")
    for i in reversed(range(30)):
        document.problem((f"k{i}",), "wrong", key=True)
    report = document.report()
    places = [line for line in report.splitlines() if line.startswith("f:")]
    assert places == [f"f:{i + 1}:1: wrong" for i in range(MOST_PROBLEMS)]
    assert report.endswith("... and 10 more")


INSIDE = [
    ("a: layers <= 3", 7, 10), ("a: 'layers <= 3'", 7, 11), ('a: "layers <= 3"', 7, 11),
    ("a: 'it''s <= 3'", 5, 10), ('a: "\\x41\\tB <= 3"', 2, 10), ("a: &anchor layers", 3, 14),
    ("a: x  # note", 1, 4), ("a: ''", 0, 4),
]  # fmt: skip


@pytest.mark.parametrize(("text", "offset", "column"), INSIDE, ids=map(str, range(len(INSIDE))))
def test_an_offset_into_a_string_is_a_column_of_the_file(text, offset, column):
    document = read(text, "f")
    document.problem(("a",), "here", at=offset)
    ((spot, _),) = document.problems
    assert (spot.line, spot.column, spot.length) == (0, column, 1)


def test_a_string_over_several_lines_is_pointed_at_as_a_whole():
    document = read("a: >\n  layers\n  <= 3\nb: one\n  two\n", "f")
    document.problem(("a",), "here", at=8)
    document.problem(("b",), "there", at=5)
    assert [(spot.line, spot.column) for spot, _ in document.problems] == [(0, 3), (3, 3)]


BASE = "model:\n  stack:\n    - stage: body\n      repeat: 1\n      pattern:\n" \
    "        - mixer: a\n        - {slot: f, one_of: b}\nsearch:\n"  # fmt: skip

SETTINGS = [
    ("model.stack.body.repeat=[2, 4]", ("model", "stack", 0, "repeat"), [2, 4]),
    ("model.stack.0.repeat=3", ("model", "stack", 0, "repeat"), 3),
    ("model.stack.body.pattern.mixer.mixer=c", ("model", "stack", 0, "pattern", 0, "mixer"), "c"),
    ("model.stack.body.pattern.f.one_of=c", ("model", "stack", 0, "pattern", 1, "one_of"), "c"),
    ("model.stack.body.pattern.1={x: y}", ("model", "stack", 0, "pattern", 1), {"x": "y"}),
    ("recipe.lr=1e-4", ("recipe", "lr"), 1e-4),
    ("name=a=b", ("name",), "a=b"),
]


@pytest.mark.parametrize(("override", "path", "value"), SETTINGS, ids=range(len(SETTINGS)))
def test_an_override_takes_the_place_of_a_value(override, path, value):
    document = read(BASE, "f", (override,))
    found = document.data
    for part in path:
        found = found[part]
    assert found == value
    untouched = read(BASE, "f").data
    assert document.data != untouched
    if path[0] != "model":
        assert document.data["model"] == untouched["model"]


def test_the_last_override_of_a_path_wins():
    assert read("a: 1", "f", ("a=2", "a=3")).data == {"a": 3}


REFUSED = [
    ("model", "--set model: expected path.to.key=value"),
    ("=1", "--set =1: expected path.to.key=value"),
    ("a=", "--set a: no value after '='"),
    ("model.stack.tail.repeat=1", "--set model.stack.tail.repeat: the list has 1 items, none is "
     "'tail'"),
    ("model.stack.7.repeat=1", "--set model.stack.7.repeat: the list has 1 items, none is '7'"),
    ("model.stack.\u00b2=1", "--set model.stack.\u00b2: the list has 1 items, none is '\u00b2'"),
    ("model.stack.body.repeat.x=1", "--set model.stack.body.repeat.x: 'model.stack.body.repeat' is "
     "a single value"),
    ("a=[1", "--set a:1:3: not YAML: while parsing a flow sequence: expected ',' or ']', but got "
     "'<stream end>'\n    [1\n      ^"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_an_override_that_does_not_fit(override, message):
    assert caught(BASE, (override,)) == message


def test_a_problem_of_an_override_is_shown_in_the_override():
    document = read("a: 1\n", "f", ("b.c=[one, two]",))
    document.problem(("b", "c", 1), "no such thing")
    assert document.report() == ("--set b.c:1:7: no such thing\n    [one, two]\n          ^^^")


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="ab:-[]{},&*!|>'\"%@`# \n\t?\\x0tue~1", max_size=30))
def test_any_text_is_a_document_or_a_clean_error(text):
    try:
        document = read(text, "f")
    except SpaceError as error:
        said = str(error)
    else:
        said = document.report() or "f"
    assert said.startswith("f")

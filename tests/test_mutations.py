"""Whatever is done to a space file, the answer is a space or a clean error."""

from __future__ import annotations

import random

import pytest

from archsearch.errors import SpaceError
from archsearch.genome import Gene, Genome
from archsearch.library import shipped
from archsearch.rules import settle
from archsearch.space_yaml import dump, parse

EACH = 125
GENOME = Genome(
    32,
    (
        Gene.of("shared_attention", "A", lora_rank=4), Gene.of("mamba2", d_state=8),
        Gene.of("swiglu", act="relu2"), Gene.of("shared_attention", "A", lora_rank=4),
        Gene.of("attention", heads=2, window=4),
    ),
    norm="layer",
)  # fmt: skip
SPACES = {name: space.read_text() for name, space in shipped().items() if "/" not in name}
TEXTS = SPACES | {"genome": dump(GENOME)}
WORDS = (
    "", "none", "[]", "{}", "[1, 2]", "-1", "0", "1e99", ".nan", "3%", "256K", "1/0", "24h", "true",
    "null", "'", '"', "&a [*a]", "*a", "!!python/object:os.system x", "{from: 4, to: 1}", "use: x",
    "{from: 1, to: 9, powers_of: 3}", "mamba3", "attention", ":", "- - -", "\t", "\x00", "\u2028",
    "count(x) <= ", "not not", "1 + ", "((((", "999999999999999999999999", "2024-01-01", "<<: 3",
)  # fmt: skip


def mutate(text, rng):
    """Change a text at one to three places: lines, tokens, characters or indentation."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.randrange(8)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(other, lines[at])
        elif kind == 2:
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3:
            lines[at] = " " * rng.randint(0, 12) + lines[at].lstrip()
        elif kind == 4:
            key, colon, _ = lines[at].partition(":")
            lines[at] = key + colon + " " + rng.choice(WORDS)
        elif kind == 5:
            lines[at] = lines[at].replace(rng.choice(lines[at].split() or [" "]), rng.choice(WORDS))
        elif kind == 6:
            place = rng.randint(0, len(lines[at]))
            lines[at] = lines[at][:place] + rng.choice("abz0:-[]{},#&*!'\" ") + lines[at][place:]
        else:
            place = rng.randint(0, max(0, len(lines[at]) - 1))
            lines[at] = lines[at][:place] + lines[at][place + 1 :]
        text = "\n".join(lines)
    return text


def outcome(text):
    """ "loads" or "refused"; anything else is raised."""
    try:
        experiment = parse(text)
    except SpaceError as error:
        assert str(error).strip()
        return "refused"
    space, rng = experiment.space, random.Random(0)
    assert space.size >= 1
    for _ in range(3):
        try:
            settle(space, space.replay(space.sample(rng)), experiment.context)
        except SpaceError as error:
            assert str(error).strip()
    return "loads"


@pytest.mark.parametrize("name", TEXTS)
def test_mutations_load_or_are_refused_with_words(name):
    rng = random.Random(name)
    outcomes = [outcome(mutate(TEXTS[name], rng)) for _ in range(EACH)]
    assert set(outcomes) == {"loads", "refused"}, "both must occur, or the mutations are too tame"


def test_there_are_500_of_them():
    assert EACH * len(TEXTS) >= 500

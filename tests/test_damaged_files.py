"""A damaged space file is read or cleanly refused, in no time."""

import random
import signal
import time
from contextlib import contextmanager, suppress

import pytest

from archsearch.errors import SpaceError
from archsearch.rules import settle
from archsearch.space_yaml import parse

from .test_space_yaml import BASES


@contextmanager
def at_most(seconds):
    """Fail if the block takes longer."""

    def late(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


TOKENS = [
    "none", "use", "swiglu", "attention", "[", "]", "{", "}", ",", ":", "-", "true", "null", "1e3",
    "-1", "0", "64", "1e400", "99999999999999999999999", "3%", "1/0", "*mixers", "&mixers", "'",
    '"', "#", "|", ">", "!!int", "from", "to", "step", "log", "powers_of", "fixed", "\t", "?", "~",
    "1K", "shared", "define", "one_of", "repeat", "\u00e9", "\x00", "<=", "and", "(", ")", "4096",
    "yes",
]  # fmt: skip


def damaged(text, rng):
    """A file after one to three random accidents."""
    for _ in range(rng.randrange(1, 4)):
        lines = text.split("\n")
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        words = yaml_words(text)
        at, token = rng.choice(words) if words else (0, "")
        other = rng.choice([rng.choice(words)[1] if words else "", rng.choice(TOKENS)])
        accident = rng.randrange(11)
        if accident == 0:
            del lines[i]
        elif accident == 1:
            lines.insert(j, lines[i])
        elif accident == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif accident == 3:
            lines[i] = " " * rng.randrange(10) + lines[i].lstrip()
        elif accident == 4:
            lines[i] = lines[i][: rng.randrange(len(lines[i]) + 1)]
        elif accident == 5:
            lines = lines[: i + 1]
        if accident < 6:
            text = "\n".join(lines)
        elif accident == 6:
            text = text[:at] + text[at + len(token) :]
        elif accident == 7:
            text = text[:at] + other + text[at + len(token) :]
        elif accident == 8:
            text = text[:at] + f"[{token}, {other}]" + text[at + len(token) :]
        elif accident == 9:
            text = text[:at] + f"{{{other}: {token}}}" + text[at + len(token) :]
        else:
            k = rng.randrange(len(text) + 1)
            text = text[:k] + rng.choice(TOKENS)[:1] + text[k + rng.randrange(2) :]
    return text


def yaml_words(text):
    """Every word of a text and where it stands."""
    words, at = [], 0
    for word in text.replace("\n", " ").split(" "):
        core = word.strip("[]{},:")
        if core:
            words.append((text.index(core, at), core))
        at += len(word) + 1
    return words


def survive(text):
    """Read a text and use the space it describes; whether it was one."""
    try:
        experiment = parse(text)
    except SpaceError:
        return False
    space, rng = experiment.space, random.Random(0)
    assert space.size > 0
    for _ in range(3):
        with suppress(SpaceError):  # a member that is nothing, or breaks a rule
            genome = space.replay(space.sample(rng))
            assert space.locate(genome) is not None
            settle(space, genome, experiment.context)
    return True


def damage_and_read(base, count, read=survive):
    """Damage a file again and again; how many of the results were still spaces.

    Raises:
        AssertionError: showing the file that ended in anything but a space or a SpaceError.
    """
    rng, well = random.Random(f"damage {base}"), 0
    for _ in range(count):
        text = damaged(BASES[base], rng)
        try:
            with at_most(5):
                well += read(text)
        except Exception as error:
            raise AssertionError(text) from error
    return well


@pytest.mark.parametrize("base", BASES)
def test_a_damaged_file_is_read_or_cleanly_refused(base):
    well = damage_and_read(base, 120)
    assert 2 < well < 118  # some accidents are harmless, most are not


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_two_thousand_damaged_files_are_read_or_cleanly_refused(base):
    assert damage_and_read(base, 2000) > 100


def test_the_damage_test_sees_a_traceback_and_a_hang():
    with pytest.raises(AssertionError, match="model:"):
        damage_and_read("genome", 20, read=lambda text: parse(text).nothing)
    with pytest.raises(TimeoutError), at_most(0.05):
        time.sleep(1)

"""Behind `archsearch generate`: text as it comes, and what is said at its end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from archsearch.errors import ModelError
from archsearch.inference.decoding import generate, sampler
from archsearch.inference.speculative import EarlyExit, Lookup, Speculation
from archsearch.inference.verified import Share, best_of
from archsearch.model import cost
from archsearch.train import generator
from archsearch.words import size

if TYPE_CHECKING:
    from rich.console import Console

    from archsearch.inference.loading import Loaded

TEMPERATURE = 1.0
"""Of the answers to a task, which have to differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """How to go on from a prompt."""

    tokens: int
    temperature: float
    top_p: float
    seed: int
    speculate: int
    """Guesses at a time; 0 for none."""
    exit_layer: int | None
    """Branches after which the model guesses; None to look guesses up in the text."""
    context: int | None


def go_on(loaded: Loaded, prompt: str, asked: Asked, console: Console, aside: Console) -> None:
    """Print what follows a prompt, piece by piece; figures go to `aside`.

    Raises:
        ModelError: if the prompt is empty, the context too short, or the model cannot do that.
    """
    ids, vocabulary = loaded.vocabulary.encode(prompt), loaded.vocabulary
    speculation = _speculation(loaded, asked)
    if speculation:
        tokens = speculation.generate(ids, asked.tokens, vocabulary.end, asked.context)
    else:
        choose = sampler(asked.temperature, asked.top_p, generator("generate", asked.seed))
        tokens = generate(loaded.model, ids, asked.tokens, choose, vocabulary.end, asked.context)
    counted = _Counted(tokens)
    for piece in vocabulary.pieces(ids, counted):
        console.file.write(_harmless(piece) if console.is_terminal else piece)
        console.file.flush()
    console.file.write("\n")
    for line in _told(loaded, len(ids), counted, speculation):
        aside.print(line, markup=False, soft_wrap=True)


class _Counted:
    """Tokens as they come, and the time that they take after the first."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens = tokens
        self.count = 0
        self.seconds = 0.0

    def __iter__(self) -> Iterator[int]:
        began = time.perf_counter()
        for token in self._tokens:
            self.count += 1
            if self.count == 1:
                began = time.perf_counter()
            self.seconds = time.perf_counter() - began
            yield token


def _speculation(loaded: Loaded, asked: Asked) -> Speculation | None:
    if asked.exit_layer is not None and not asked.speculate:
        raise ModelError("--exit-layer says who guesses; say how many tokens with --speculate")
    if not asked.speculate:
        return None
    if asked.temperature:
        raise ModelError("--speculate gives what greedy decoding gives; leave --temperature out")
    exits = asked.exit_layer
    draft = Lookup() if exits is None else EarlyExit(loaded.model, exits)
    return Speculation(loaded.model, draft, asked.speculate)


def _told(
    loaded: Loaded, prompt: int, counted: _Counted, speculation: Speculation | None
) -> Iterator[str]:
    """Speed, state, and how the guesses went."""
    read = prompt + max(0, counted.count - 1)
    rate = f"{(counted.count - 1) / counted.seconds:.3g} a second, " if counted.seconds else ""
    state = size(cost(loaded.model.genome, read).state_bytes)
    yield f"{counted.count} tokens after {prompt} of the prompt, {rate}state {state}"
    if speculation and speculation.verifications:
        each = counted.count / speculation.verifications
        right = f"{speculation.accepted} of {speculation.guessed} guesses were right"
        yield f"{speculation.verifications} verifications, {each:.2f} tokens each; {right}"
        genome, early = loaded.model.genome, isinstance(speculation.draft, EarlyExit)
        if early and not genome.exit_loss:
            yield "the model was trained without exit_loss, so an early exit says little"
    if loaded.context and read > loaded.context:
        yield f"the model was trained on {loaded.context} tokens at a time, and read {read} here"


def answer(loaded: Loaded, count: int, rows: int, asked: Asked, console: Console) -> None:
    """Print how many rows of its task a model answers, with a verifier for several answers.

    Raises:
        ModelError: if it was trained on no task that is known here.
    """
    task = task_of(loaded)
    if loaded.vocabulary.tokenizer:
        raise ModelError(
            f"--best-of asks for answers that are right or wrong; {loaded.label} has none"
        )
    found = best_of(
        loaded.model, task, count, temperature=asked.temperature or TEMPERATURE,
        top_p=asked.top_p, rows=rows, seed=asked.seed,
    )  # fmt: skip
    console.print(
        f"{loaded.label}: {found.questions} questions in {found.rows} rows of {task.length} "
        f"tokens, {found.positions:.3g} scored position{'s'[: found.positions != 1]} each\n",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("answered right")
    for name in ("share", "+/- s.e.", "guessing"):
        table.add_column(name, justify="right")
    guess = task.chance**found.positions
    table.add_row("greedy", *_cells(found.greedy), f"{guess:.3f}")
    for k, share in found.passed.items():
        name = "one answer" if k == 1 else f"best of {k}, verified"
        table.add_row(name, *_cells(share), f"{1 - (1 - guess) ** k:.3f}")
    table.add_row(f"majority of {count}", *_cells(found.majority), f"{guess:.3f}")
    console.print(table)


def task_of(loaded: Loaded) -> Any:
    """The task that a model was trained on.

    Raises:
        ModelError: if there is none, or its parameters are not known.
    """
    if not loaded.label:
        raise ModelError(f"{loaded.folder} was trained on text; this needs a model of a task")
    if loaded.task is None:
        raise ModelError(
            f"{loaded.folder} does not say with which parameters {loaded.label} was trained; it "
            "was written by an earlier version, or the package with that task is missing"
        )
    return loaded.task


def _cells(share: Share) -> tuple[str, str]:
    return f"{share.value:.3f}", f"{share.error:.3f}"


def _harmless(piece: str) -> str:
    """Without the control characters by which a text could steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in piece)

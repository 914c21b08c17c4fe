"""Whether a training run was stable, from what it logged.

The limits are those under which small models show the instabilities of large ones (Wortsman et al.
2023, arXiv 2309.14322): attention logits and output logits that grow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from archsearch.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_LOGIT = 50.0
"""Attention logit, before the softmax, above which attention is about to be one-hot."""
LOG_Z_DRIFT = 10.0
"""Nats that the log-normaliser of the output may move from where it began."""
WINDOW = 64
"""Logged losses before a step that say how much losses vary."""
LEAST_WINDOW = 16
RECENT = 8
"""Logged losses that say where the loss is: before a spike, and at the end."""
SPIKE_DEVIATIONS = 5.0
"""Standard deviations that two losses in a row must be above those; one may be a hard batch."""
LEAST_SPIKE = 0.2
"""Nats that a spike rises at least, however quiet the losses were."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """What a run logged, all series at the same steps.

    Raises:
        RunError: if nothing was logged, or a series is of another length.
    """

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    """Training loss, nats."""
    max_logit: tuple[float, ...] = ()
    """Largest attention logit of the batch; empty for a model without attention."""
    log_z: tuple[float, ...] = ()
    """Log of the output softmax's normaliser, mean over tokens."""
    rms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """RMS of what each branch adds to the stream."""
    update_ratio: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """RMS of the update over RMS of the weights, by group of parameters."""

    def __post_init__(self) -> None:
        if not self.steps:
            raise RunError("nothing was logged, so nothing can be said of stability")
        for name, series in self.series():
            if len(series) != len(self.steps):
                raise RunError(f"{name} has {len(series)} values for {len(self.steps)} steps")

    def series(self) -> Iterator[tuple[str, tuple[float, ...]]]:
        """Every series that was logged, by name."""
        yield "loss", self.loss
        for name, series in (("max attention logit", self.max_logit), ("log Z", self.log_z)):
            if series:
                yield name, series
        for kind, several in (("RMS of", self.rms), ("update/weight of", self.update_ratio)):
            yield from ((f"{kind} {name}", series) for name, series in several.items())


@dataclass(frozen=True, slots=True)
class Stability:
    """Whether a run was stable."""

    reasons: tuple[str, ...] = ()
    """What was past its limit, and where it first was; empty if nothing."""

    @property
    def stable(self) -> bool:
        """Whether nothing was past its limit."""
        return not self.reasons

    @property
    def why(self) -> str:
        """One line for the user."""
        return f"unstable: {'; '.join(self.reasons)}" if self.reasons else "stable"

    def rank(self, loss: float) -> tuple[bool, float]:
        """Sort by this, smallest first: every unstable run comes after every stable one."""
        return not self.stable, loss if math.isfinite(loss) else math.inf


def judge(log: Log, guessing: float) -> Stability:
    """Say whether a run was stable, with every reason why not.

    Args:
        log: What it logged.
        guessing: The loss of guessing, ln V, in nats.
    """
    return Stability(tuple(_reasons(log, guessing)))


def _reasons(log: Log, guessing: float) -> Iterator[str]:
    for name, series in log.series():
        bad = next((i for i, value in enumerate(series) if not math.isfinite(value)), None)
        if bad is not None:
            yield f"{name} is {series[bad]} at step {log.steps[bad]}"
    over = next((i for i, logit in enumerate(log.max_logit) if logit > MAX_LOGIT), None)
    if over is not None:
        yield (
            f"attention logits reach {log.max_logit[over]:.0f} at step {log.steps[over]} "
            f"(limit {MAX_LOGIT:g})"
        )
    moved = [abs(z - log.log_z[0]) for z in log.log_z]
    over = next((i for i, by in enumerate(moved) if by > LOG_Z_DRIFT), None)
    if over is not None:
        yield (
            f"log Z has moved by {moved[over]:.1f} at step {log.steps[over]} "
            f"(limit {LOG_Z_DRIFT:g})"
        )
    yield from _of_loss(log, guessing)


def _of_loss(log: Log, guessing: float) -> Iterator[str]:
    if not all(map(math.isfinite, log.loss)):
        return
    spike = next((i for i in range(len(log.loss)) if _spikes(log.loss, i)), None)
    if spike is not None:
        before = statistics.median(log.loss[max(0, spike - RECENT) : spike])
        yield (
            f"the loss jumps from {before:.2f} to {log.loss[spike]:.2f} at step {log.steps[spike]}"
        )
    end = statistics.fmean(log.loss[-RECENT:])
    if end > guessing:
        yield f"the loss ends at {end:.2f}, above that of guessing, {guessing:.2f}"


def _spikes(loss: Sequence[float], at: int) -> bool:
    """Whether this loss and the next are far above those before them.

    The deviation is taken from steps between neighbours, which a falling loss does not widen.
    """
    before = loss[max(0, at - WINDOW) : at]
    if len(before) < LEAST_WINDOW or at + 1 == len(loss):
        return False
    steps = [abs(later - earlier) for earlier, later in pairwise(before)]
    deviation = 1.4826 * statistics.median(steps) / math.sqrt(2)
    above = min(loss[at : at + 2]) - statistics.median(before[-RECENT:])
    return above > max(SPIKE_DEVIATIONS * deviation, LEAST_SPIKE)

"""The sections of a space file as pydantic models; `archsearch schema` is generated from them.

What stands in `define` and in a `pattern` names blocks, which come from the registry; the reader in
`space_yaml` checks it, and the schema of those places is written there.
"""

from __future__ import annotations

import re
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

from archsearch.choices import choices, given, number, seconds
from archsearch.dims import Dim, one
from archsearch.errors import nearest
from archsearch.genome import FRAME, MOST_REPEATS
from archsearch.space import SCHEMES

INF = float("inf")
NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
"""What a stage, a slot and a definition may be called."""
WIDTH = Dim(low=8, high=65_536, step=1, default=64)
REPEAT = Dim(low=0, high=MOST_REPEATS, step=1, default=1)
UNIQUE = Dim(low=1, high=MOST_REPEATS, step=1, default=1)


class Section(BaseModel):
    """Base: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True,
        validate_default=False,
    )  # fmt: skip


class StageSection(Section):
    """One stage of the stack."""

    stage: str | None = Field(default=None, json_schema_extra={"pattern": f"^{NAME}$"})
    """Name, used in reports and in `--set`."""
    repeat: Annotated[Dim, choices(REPEAT)] = one(1)
    """How often the pattern repeats."""
    choose: Literal["once", "per_repeat"] = "once"
    """once: the same choices in every repeat (a motif). per_repeat: choose anew in each."""
    unique: Annotated[Dim | None, choices(UNIQUE)] = None
    """How many of the repeats have weights of their own; the others use these again."""
    scheme: Annotated[Dim, choices(SCHEMES)] = one("sequence")
    """In which order: sequence (aabbcc), cycle (abcabc) or cycle_rev (abccba)."""
    pattern: list[Any] = Field(min_length=1)
    """The slots, in order."""


class ModelSection(Section):
    """The architecture around and inside the stack."""

    d_model: Annotated[Dim, choices(WIDTH)] = one(64)
    """Model width."""
    norm: Annotated[Dim, choices(FRAME["norm"])] = one("rms")
    """Normalisation of each branch, and before the readout."""
    norm_place: Annotated[Dim, choices(FRAME["norm_place"])] = one("pre")
    """pre: x + f(norm(x)). sandwich: x + norm(f(norm(x))). post: norm(x + f(x))."""
    tie_embeddings: Annotated[Dim, choices(FRAME["tie_embeddings"])] = one(False)
    """Whether input and output embeddings share weights (Press and Wolf 2017)."""
    embedding_rank: Annotated[Dim, choices(FRAME["embedding_rank"])] = one(None)
    """Width of factorised embeddings (ALBERT); none for embeddings of the model width."""
    soft_cap: Annotated[Dim, choices(FRAME["soft_cap"])] = one(None)
    """Logits become cap * tanh(logits / cap)."""
    pause_tokens: Annotated[Dim, choices(FRAME["pause_tokens"])] = one(0)
    """Learned tokens after each token; the answer is read at the last of them."""
    layer_dropout: Annotated[Dim, choices(FRAME["layer_dropout"])] = one(0.0)
    """Chance that training skips the last branch, less for earlier ones (LayerSkip)."""
    exit_loss: Annotated[Dim, choices(FRAME["exit_loss"])] = one(0.0)
    """Weight of the losses of early exits in training (LayerSkip)."""
    causal: bool = True
    """Whether every block must be causal. false: blocks may look ahead (encoders); such a model
    cannot decode, and solves tasks that show later tokens by looking at them."""
    stack: list[StageSection] = Field(min_length=1)
    """The stages, from input to output."""


class MatchSection(Section):
    """Solve the width so that every candidate has the same size."""

    TARGETS: ClassVar = ("params", "active_params", "flops", "state_bytes")
    """What may be matched; one of them."""

    params: Annotated[float | None, number(1, INF, whole=True)] = None
    """Parameters, embeddings left out."""
    active_params: Annotated[float | None, number(1, INF, whole=True)] = None
    """Parameters that a token meets, embeddings left out."""
    flops: Annotated[float | None, number(1, INF)] = None
    """Forward operations per token."""
    state_bytes: Annotated[float | None, number(1, INF)] = None
    """Bytes per sequence that decoding keeps."""
    tolerance: Annotated[float, number(0, 1)] = 0.03
    """Largest relative deviation."""
    solve: Literal["d_model"] = "d_model"
    """The width to solve for; the values of `model.d_model`, or any multiple of 8."""

    @property
    def targets(self) -> dict[str, float]:
        """What was given: the quantity and its value."""
        named = {name: getattr(self, name) for name in self.TARGETS}
        return {name: value for name, value in named.items() if value is not None}


class WhenThen(Section):
    """A rule that holds only under a condition."""

    when: str
    then: str


class Objective(Section):
    """One goal: a quantity to make large or small."""

    maximize: str = ""
    minimize: str = ""


class TasksSection(Section):
    """What every candidate is trained on."""

    use: list[str | dict[str, Any]] = Field(min_length=1)
    """Task names, `mad/*` for all of a family, or `name: {parameters}`."""


class Recipe(Section):
    """Everything about training that is not architecture. One recipe for all candidates."""

    steps: Annotated[int, number(1, 10**7, whole=True)] = 400
    """Optimizer steps per task."""
    batch: Annotated[int, number(1, 10**6, whole=True)] = 32
    """Sequences per step."""
    lr: Annotated[float, number(1e-8, 10.0)] = 3e-3
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, number(0.0, 10.0)] = 0.0
    """Decay of matrices; vectors and embeddings are never decayed."""
    betas: tuple[Annotated[float, number(0.0, 0.99999)], Annotated[float, number(0.0, 0.99999)]] = (
        0.9,
        0.98,
    )
    """AdamW's averages of gradient and squared gradient."""
    warmup: Annotated[float, number(0.0, 1.0)] = 0.1
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["cosine", "wsd", "multistep", "constant"] = "cosine"
    """Learning rate after warm-up; wsd falls linearly over the last fifth, multistep to 31.6 %
    after four fifths and to 10 % after nine tenths (DeepSeek LLM, arXiv 2401.02954)."""
    z_loss: Annotated[float, number(0.0, INF)] = 0.0
    """Weight of the squared log of the softmax's denominator, e.g. 1e-4 (PaLM)."""
    clip: Annotated[float, number(0.0, INF)] = 1.0
    """Largest gradient norm; 0 for no clipping."""
    seeds: Annotated[int, number(1, 100, whole=True)] = 1
    """Trainings per task, each with its own start and data."""
    evals: Annotated[int, number(1, 1000, whole=True)] = 8
    """Evaluations during a training, evenly spaced; the last one is the score."""
    eval_rows: Annotated[int, number(1, 10**6, whole=True)] = 256
    """Held-out sequences per evaluation."""
    solved: Annotated[float, number(0.0, 1.0)] = 0.999
    """Accuracy at which a task counts as solved and its training ends early."""

    @property
    def stops(self) -> list[int]:
        """The steps after which held-out rows are evaluated."""
        return sorted({round(self.steps * (i + 1) / self.evals) for i in range(self.evals)} - {0})


class SearchSection(Section):
    """How the space is searched."""

    strategy: Literal["auto", "evolution", "graphgp", "local", "random", "tpe", "nsga2"] = "auto"
    """auto: every member in random order if the budget allows, else graphgp up to 150 trials and
    evolution beyond."""
    trials: Annotated[int, number(1, 10**7, whole=True)] = 50
    """Genomes in all, finished ones included: the same command continues a run."""
    time: Annotated[float | None, seconds()] = None
    """No trial starts later than this after the command, e.g. 24h."""
    seed: Annotated[int, number(0, 2**31, whole=True)] = 0
    """Seed of proposals, starts and data."""
    rungs: list[Annotated[int, number(1, 10**7, whole=True)]] = Field(default_factory=list)
    """Steps after which a trial waits; the best go on from checkpoints (successive halving)."""
    keep: Annotated[float, number(0.01, 0.9)] = 1 / 3
    """Share of the trials at a rung that go on."""
    prune: Literal["dominated", "none"] = "dominated"
    """dominated: end a trial that most earlier ones beat at the same step and the same cost; with
    rungs, they decide alone."""
    finalists: Annotated[int, number(0, 100, whole=True)] = 5
    """Best candidates that are trained anew on fresh seeds before one is named the best."""
    final_seeds: Annotated[int, number(2, 10, whole=True)] = 3
    """Fresh seeds of each finalist."""
    start_from: list[str] = Field(default_factory=list)
    """Genomes to try first: names of shipped spaces or paths of genome files."""


class SpaceFile(Section):
    """A search space, or with single values everywhere, one architecture."""

    version: Literal[1] = 1
    """Version of the space language."""
    name: str = Field(default="space", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the space; runs are kept under it."""
    notes: str = ""
    """Free text."""
    define: dict[str, Any] = Field(default_factory=dict)
    """Named choices; with `shared: true`, one set of weights wherever they are used."""
    model: ModelSection
    match: MatchSection | None = None
    require: list[str | WhenThen] = Field(default_factory=list)
    """Rules that a candidate must meet before it is trained."""
    objectives: list[Objective] = Field(default_factory=list)
    """What is optimised; by default the score, and parameters as the cost."""
    tasks: TasksSection | None = None
    recipe: Recipe = Field(default_factory=Recipe)
    search: SearchSection = Field(default_factory=SearchSection)


_KINDS = {
    "model_type": "a mapping", "dict_type": "a mapping", "list_type": "a list",
    "tuple_type": "a list", "string_type": "a text",
}  # fmt: skip


def explain(error: Any) -> tuple[str, str, bool]:
    """One of pydantic's errors in our words: message, hint and whether a key is meant."""
    kind, loc = error["type"], error["loc"]
    if kind == "extra_forbidden":
        return f"unknown key '{loc[-1]}'", nearest(str(loc[-1]), _legal_keys(loc[:-1])), True
    if kind == "missing" and isinstance(loc[-1], int):
        return f"a value is missing here, at least {loc[-1] + 1}", "", False
    if kind == "missing":
        return f"'{loc[-1]}' is missing here", "", False
    if kind == "literal_error":
        legal = re.findall(r"[^', ]+", error["ctx"]["expected"].replace("' or '", "', '"))
        what = given(error["input"])
        return f"unknown {loc[-1]} '{what}'", nearest(what, legal), False
    if kind in _KINDS:
        single = not isinstance(error["input"], list | dict)
        hint = "quote it" if kind == "string_type" and single else ""
        return f"expected {_KINDS[kind]}, not {given(error['input'])}", hint, False
    if kind == "too_short":
        return "an empty list", "", False
    if kind == "too_long":
        return f"too many values, at most {error['ctx']['max_length']}", "", False
    if kind == "string_pattern_mismatch":
        hint = "letters, digits, '.', '_' and '-', a letter or digit first, at most 64"
        return f"'{given(error['input'])}' is no name", hint, False
    return error["msg"], "", False


def _legal_keys(loc: tuple[Any, ...]) -> list[str]:
    """The keys of the section that `loc` leads to."""
    section: type[BaseModel] = SpaceFile
    for part in loc:
        if part in section.model_fields:
            section = _section(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or a list of which it holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, Union, UnionType):
        return next(filter(None, map(_section, get_args(annotation))), None)
    return None

"""From a space file to an `Experiment`: the space and what to do with it. Imports no torch.

Every error of a file is found in one pass and reported with its line, a caret, what is legal and
the nearest name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from archsearch.catalogue import block_names, found
from archsearch.dims import Dim
from archsearch.errors import SpaceError, nearest
from archsearch.expr import QUANTITIES, SCORES, Expr, ExprError
from archsearch.genome import Genome
from archsearch.library import read_space
from archsearch.sections import WIDTH, Objective, Recipe, SearchSection, SpaceFile
from archsearch.space import Match, SearchSpace
from archsearch.stack_yaml import StackReader
from archsearch.yaml_source import Document, Path, read


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One objective."""

    expr: Expr
    maximize: bool

    @property
    def name(self) -> str:
        """As the space file writes it."""
        return self.expr.text


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Everything that a space file says."""

    space: SearchSpace
    goals: tuple[Goal, ...]
    tasks: tuple[Any, ...]
    """Task instances, see `archsearch.tasks`."""
    recipe: Recipe
    search: SearchSection
    seeds: tuple[Genome, ...]
    """The genomes of `start_from`."""
    text: str
    """The file itself."""
    overrides: tuple[str, ...]
    notes: str
    warnings: tuple[str, ...]
    identity: str
    """Canonical text of what may not change while a run goes on."""

    @property
    def context(self) -> int:
        """Context length at which costs are given unless one is named: the longest task."""
        return max((task.length for task in self.tasks), default=1024)


def load(source: str, overrides: tuple[str, ...] = ()) -> Experiment:
    """Read a space file by its path, or a shipped space by its name.

    Raises:
        SpaceError: with every problem of the file.
    """
    text, name = read_space(source)
    return parse(text, name, overrides)


def parse(text: str, name: str = "space.yaml", overrides: tuple[str, ...] = ()) -> Experiment:
    """Read the text of a space file; `name` stands in its errors.

    Raises:
        SpaceError: with every problem of the text.
    """
    document = read(text, name, overrides)
    return _Reader(document).experiment(text, overrides)


def dump(genome: Genome) -> str:
    """The genome as the text of a space file with one member."""
    return yaml.safe_dump(genome.to_space(), sort_keys=False, default_flow_style=None, width=88)


class _Reader:
    """Walks one document; notes every problem, and builds only when there is none."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.stack = StackReader(document)

    def experiment(self, text: str, overrides: tuple[str, ...]) -> Experiment:
        document, file = self.document, self._sections()
        stages = self.stack.stages()
        for name in self.stack.define:
            self.stack.definition(name)
        data = document.data if isinstance(document.data, dict) else {}
        rules = self._rules(data.get("require"))
        goals = self._goals(data.get("objectives"))
        tasks = self._tasks(data.get("tasks"))
        seeds = self._seeds(data.get("search"))
        document.stop_if_wrong()
        assert file is not None  # a document without problems is a valid file
        unused = sorted(set(self.stack.define) - self.stack.used)
        warnings = [*self.stack.warnings, *(f"definition '{u}' is never used" for u in unused)]
        match, model = file.match, file.model
        target = next(iter(match.targets.items())) if match else ("", 0.0)
        space = SearchSpace(
            name=file.name,
            d_model=self._width(file),
            stages=tuple(stages),
            norm=model.norm,
            tie_embeddings=model.tie_embeddings,
            match=match and Match(Expr.parse(target[0], QUANTITIES), target[1], match.tolerance),
            require=tuple(rules),
        )
        return Experiment(
            space=space, goals=tuple(goals), tasks=tuple(tasks), recipe=file.recipe,
            search=file.search, seeds=tuple(seeds), text=text, overrides=overrides,
            notes=file.notes, warnings=tuple(warnings), identity=identity(document.data),
        )  # fmt: skip

    def _sections(self) -> SpaceFile | None:
        document = self.document
        try:
            return SpaceFile.model_validate(document.data)
        except ValidationError as errors:
            for error in errors.errors(include_url=False):
                self._from_pydantic(error)
        return None

    def _from_pydantic(self, error: Any) -> None:
        """Say one of pydantic's errors in our words, at its place in the file."""
        document, kind = self.document, error["type"]
        path = tuple(part for part in error["loc"] if _leads(document, error["loc"], part))
        if kind == "extra_forbidden":
            name = str(error["loc"][-1])
            known = _legal_keys(error["loc"][:-1])
            document.problem(error["loc"], f"unknown key '{name}'", nearest(name, known), key=True)
        elif kind == "missing":
            document.problem(error["loc"][:-1], f"'{error['loc'][-1]}' is missing here")
        elif kind == "misfit":
            context = error["ctx"]
            document.problem((*path, *context["at"]), context["text"])
        elif kind == "literal_error":
            message = f"unknown value '{error['input']}'"
            document.problem(path, message, f"legal: {error['ctx']['expected']}")
        else:
            message = (
                error["msg"].removeprefix("Value error, ").replace("Input should", "this should")
            )
            document.problem(path, message)

    def _width(self, file: SpaceFile) -> Dim:
        """`model.d_model`; where it is solved and not given, every multiple of 8 up to 8192."""
        if file.match and "d_model" not in self.document.data["model"]:
            return WIDTH.narrow_range(8, 8192, 8, False)
        return file.model.d_model

    def _expr(self, text: Any, path: Path, known: dict[str, tuple[int, int]]) -> Expr | None:
        try:
            expr = Expr.parse(text, known)
        except ExprError as error:
            self.document.problem(path, str(error), shift=error.at)
            return None
        for name in _block_arguments(expr.root):
            if name.removeprefix("use:") not in (*block_names(), *self.stack.define):
                hint = nearest(name, block_names())
                self.document.problem(path, f"unknown block '{name}'", hint, shift=text.find(name))
        return expr

    def _rules(self, data: Any) -> list[Expr]:
        rules = []
        for i, item in enumerate(data if isinstance(data, list) else []):
            path: Path = ("require", i)
            if (
                isinstance(item, dict)
                and isinstance(item.get("when"), str)
                and isinstance(item.get("then"), str)
            ):
                when = self._expr(item["when"], (*path, "when"), QUANTITIES)
                then = self._expr(item["then"], (*path, "then"), QUANTITIES)
                if when and then:
                    text = f"not ({when.text}) or ({then.text})"
                    rule = self._expr(text, path, QUANTITIES)
                else:
                    continue
            elif isinstance(item, str):
                rule = self._expr(item, path, QUANTITIES)
            else:
                continue
            if rule and not rule.truth:
                self.document.problem(path, "a rule is a comparison", "e.g. `layers <= 24`")
            elif rule:
                rules.append(rule)
        return rules

    def _goals(self, data: Any) -> list[Goal]:
        known = QUANTITIES | SCORES
        if not isinstance(data, list) or not data:
            data = [{"maximize": "score"}, {"minimize": "params"}]
        goals = []
        for i, item in enumerate(data):
            try:
                goal = Objective.model_validate(item)
            except ValidationError:
                continue
            direction = "maximize" if goal.maximize is not None else "minimize"
            path: Path = ("objectives", i, direction)
            expr = self._expr(goal.maximize or goal.minimize or "", path, known)
            if expr and expr.truth:
                self.document.problem(path, "an objective is a number, not a comparison")
            elif expr:
                goals.append(Goal(expr=expr, maximize=goal.maximize is not None))
        return goals

    def _tasks(self, data: Any) -> list[Any]:
        known, tasks = found("tasks"), []
        use = data.get("use") if isinstance(data, dict) else None
        for i, item in enumerate(use if isinstance(use, list) else []):
            path: Path = ("tasks", "use", i)
            if isinstance(item, dict) and len(item) == 1:
                name, params = next(iter(item.items()))
            elif isinstance(item, str):
                name, params = item, {}
            else:
                self.document.problem(path, "expected a task name, or `name: {parameters}`")
                continue
            matches = sorted(fnmatch.filter(known, name))
            if not matches:
                key = isinstance(item, dict)
                spot = (*path, name) if key else path
                self.document.problem(spot, f"unknown task '{name}'", nearest(name, known), key=key)
            tasks += [
                task
                for match in matches
                if (task := self._task(match, params or {}, (*path, name)))
            ]
        return tasks

    def _task(self, name: str, params: Any, path: Path) -> Any:
        kind = found("tasks")[name].load()
        legal = list(kind.__dataclass_fields__)
        if not isinstance(params, Mapping):
            self.document.problem(path, "the parameters of a task must be a mapping")
            return None
        for key, value in params.items():
            default = getattr(kind, "__dataclass_fields__")[key].default if key in legal else None  # noqa: B009
            if key not in legal:
                message = f"task '{name}' has no parameter '{key}'"
                self.document.problem((*path, key), message, nearest(key, legal), key=True)
            elif type(value) is not type(default) and not (
                isinstance(default, float) and type(value) is int
            ):
                self.document.problem((*path, key), f"expected {_kind_word(default)}")
        if any(key not in legal for key in params):
            return None
        try:
            return kind(**params)
        except (ValueError, TypeError) as error:
            self.document.problem(path, str(error))
            return None

    def _seeds(self, data: Any) -> list[Genome]:
        sources = data.get("start_from") if isinstance(data, dict) else None
        seeds = []
        for i, source in enumerate(sources if isinstance(sources, list) else []):
            path: Path = ("search", "start_from", i)
            try:
                seeds.append(load_genome(str(source)))
            except (SpaceError, RecursionError) as error:
                self.document.problem(path, str(error).splitlines()[0])
        return seeds


def load_genome(source: str) -> Genome:
    """Read a file that describes a single architecture.

    Raises:
        SpaceError: if it is no space file or leaves a choice open.
    """
    problem = load(source)
    if problem.space.size != 1:
        raise SpaceError(f"{source} holds {problem.space.size:g} architectures, not one")
    return problem.space.replay({})


def identity(data: Any) -> str:
    """Canonical text of what defines a study: everything but budget, hints and notes."""
    free = {"notes", "name", "version"}
    kept = {key: value for key, value in data.items() if key not in free}
    search = kept.get("search") or {}
    kept["search"] = {key: value for key, value in search.items() if key == "seed"}
    return yaml.safe_dump(kept, sort_keys=True)


def _block_arguments(node: Any) -> list[str]:
    own = [a for a in node.args if isinstance(a, str)] if node.op == "quantity" else []
    return own + [name for part in node.parts for name in _block_arguments(part)]


def _leads(document: Document, loc: tuple[Any, ...], part: Any) -> bool:
    """Whether a part of pydantic's location is one of the file, not the name of a union member."""
    return isinstance(part, int) or any(part in path for path in document.values if path)


def _legal_keys(loc: tuple[Any, ...]) -> list[str]:
    """The keys of the section that `loc` leads to."""
    model: Any = SpaceFile
    for part in loc:
        if isinstance(part, int) or not hasattr(model, "model_fields"):
            continue
        field = model.model_fields.get(part)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), model)
    return list(model.model_fields)


def _kind_word(default: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(
        type(default), "a word"
    )

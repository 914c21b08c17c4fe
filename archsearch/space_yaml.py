"""From a space file to an `Experiment`: the space and what to do with it. Imports no torch.

Every error of a file is found in one pass and reported with its line, a caret, what is legal and
the nearest name.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from archsearch.catalogue import block_names, found
from archsearch.choices import given, quantity
from archsearch.dims import Dim, one
from archsearch.errors import SpaceError, nearest
from archsearch.expr import QUANTITIES, SCORES, Expr, ExprError, Takes
from archsearch.genome import FRAME, Genome
from archsearch.identity import identity
from archsearch.library import read_space
from archsearch.sections import (
    WIDTH,
    MatchSection,
    Objective,
    Recipe,
    SearchSection,
    SpaceFile,
    explain,
)
from archsearch.space import Match, Option, SearchSpace
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
    """Task instances, see `archsearch.train.Task`."""
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
    document: Document = field(repr=False, compare=False)
    """The file with the places of all that it says."""
    options: tuple[tuple[Path, Option], ...] = field(repr=False, compare=False)
    """Every block that the file names, and where."""

    @property
    def context(self) -> int:
        """Context length at which costs are given unless one is named: the longest task."""
        return max((task.length for task in self.tasks), default=1024)

    @property
    def waits(self) -> list[int]:
        """After how many evaluations a trial waits at each rung."""
        return [self.recipe.stops.index(step) + 1 for step in self.search.rungs]


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
    reader = _Reader(document)
    return reader.experiment(text, overrides, reader.seeds())


def dump(genome: Genome) -> str:
    """The genome as the text of a space file with one member."""
    return yaml.safe_dump(genome.to_space(), sort_keys=False, default_flow_style=None, width=88)


class _Reader:
    """Walks one document; notes every problem, and builds only when there is none."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.stack = StackReader(document)

    def experiment(
        self, text: str, overrides: tuple[str, ...], seeds: tuple[Genome, ...] = ()
    ) -> Experiment:
        document, file = self.document, self._sections()
        stages = self.stack.stages()
        data = document.data if isinstance(document.data, dict) else {}
        self._check_match(data.get("match"))
        if file:
            self._check_rungs(file)
        rules = self._rules(data.get("require"))
        goals = self._goals(data.get("objectives"))
        tasks = self._tasks(data.get("tasks"))
        document.stop_if_wrong()
        assert file is not None  # a document without problems is a valid file
        self.stack.warn_unused()
        leaking = [task.name for task in tasks if task.readout == "token"]
        if not file.model.causal and leaking:
            self.stack.warn(
                ("model", "causal"),
                f"a model that looks ahead may read the answers of {', '.join(leaking)}",
                key=True,
            )
        match, model = None, file.model
        if file.match:
            ((name, target),) = file.match.targets.items()
            match = Match(Expr.parse(name, QUANTITIES), target, file.match.tolerance)
        space = SearchSpace(
            name=file.name,
            d_model=self._width(file),
            stages=tuple(stages),
            frame={
                name: chosen
                for name, dim in FRAME.items()
                if (chosen := getattr(model, name)) != one(dim.default)
            },
            match=match,
            require=tuple(rules),
        )
        return Experiment(
            space=space, goals=tuple(goals), tasks=tuple(tasks), recipe=file.recipe,
            search=file.search, seeds=seeds, text=text, overrides=overrides, notes=file.notes,
            warnings=tuple(self.stack.warnings), identity=identity(document.data),
            document=document, options=tuple(self.stack.placed),
        )  # fmt: skip

    def seeds(self) -> tuple[Genome, ...]:
        """The genomes of `search.start_from`."""
        data = self.document.data
        data = data.get("search") if isinstance(data, dict) else None
        sources = data.get("start_from") if isinstance(data, dict) else None
        seeds = []
        for i, source in enumerate(sources if isinstance(sources, list) else []):
            if isinstance(source, str):
                try:
                    seeds.append(load_genome(source))
                except SpaceError as error:
                    why, _, more = str(error).partition("\n")
                    why, _, hint = why.partition("; ")
                    hint = "see `archsearch check` for that file" if more else hint
                    self.document.problem(("search", "start_from", i), why, hint)
        return tuple(seeds)

    def _sections(self) -> SpaceFile | None:
        document = self.document
        try:
            return SpaceFile.model_validate(document.data)
        except ValidationError as errors:
            for error in errors.errors(include_url=False):
                loc = error["loc"]
                if loc[:1] == ("require",) and len(loc) > 1:
                    continue  # `_rules` says it
                if loc[:2] == ("tasks", "use") and len(loc) > 2:
                    continue  # `_tasks` says it
                path = self._place(loc)
                if error["type"] == "misfit":
                    document.misfit(path, error["ctx"]["parts"])
                    continue
                message, hint, key = explain(error)
                document.problem(path, message, hint, key=key)
        return None

    def _place(self, loc: tuple[str | int, ...]) -> Path:
        """Where pydantic's location leads in the file; it also names the members of unions."""
        data, path = self.document.data, []
        for part in loc:
            inside = part in data if isinstance(data, dict) else (
                isinstance(data, list) and isinstance(part, int) and part < len(data)
            )  # fmt: skip
            if inside:
                path.append(part)
                data = data[part]
        return tuple(path)

    def _width(self, file: SpaceFile) -> Dim:
        """`model.d_model`; where it is solved and not given, every multiple of 8 up to 8192."""
        if file.match and "d_model" not in self.document.data["model"]:
            return WIDTH.narrow_range(8, 8192, 8, False)
        return file.model.d_model

    def _expr(self, text: Any, path: Path, known: dict[str, Takes], *, truth: bool) -> Expr | None:
        """An expression that is a statement, or one that is a number; None if it is neither."""
        if not isinstance(text, str):
            example = "layers <= 24" if truth else "state_bytes(4096)"
            what = "a rule" if truth else "a quantity"
            self.document.problem(path, f"expected {what}, not {given(text)}", f"e.g. `{example}`")
            return None
        try:
            expr = Expr.parse(text, known)
        except ExprError as error:
            what, _, hint = str(error).partition("; ")
            self.document.problem(path, what, hint, at=error.at)
            return None
        for name, at in expr.blocks:
            if name not in block_names():
                hint = nearest(name, block_names())
                self.document.problem(path, f"unknown block '{name}'", hint, at=at)
        if expr.truth == truth:
            return expr
        if truth:
            self.document.problem(path, "a rule is a comparison", "e.g. `layers <= 24`")
        else:
            self.document.problem(path, "an objective is a number, not a comparison")
        return None

    def _check_match(self, data: Any) -> None:
        targets = MatchSection.TARGETS
        named = [key for key in targets if key in data] if isinstance(data, dict) else []
        if isinstance(data, dict) and len(named) != 1:
            hint = f"there are {', '.join(named)}" if named else ""
            self.document.problem(("match",), f"match needs one of {', '.join(targets)}", hint)

    def _check_rungs(self, file: SpaceFile) -> None:
        stops, before = file.recipe.stops[:-1], 0
        for i, step in enumerate(file.search.rungs):
            path: Path = ("search", "rungs", i)
            if step not in stops:
                legal = ", ".join(map(str, stops)) or "none; raise recipe.evals"
                hint = f"where held-out rows are evaluated before the end: {legal}"
                self.document.problem(path, f"no trial can wait after {step} steps", hint)
            elif step <= before:
                self.document.problem(path, f"rungs rise; {step} stands after {before}")
            before = step

    def _rules(self, data: Any) -> list[Expr]:
        rules = []
        for i, item in enumerate(data if isinstance(data, list) else []):
            path: Path = ("require", i)
            if isinstance(item, dict):
                rule = self._when_then(item, path)
            else:
                rule = self._expr(item, path, QUANTITIES, truth=True)
            if rule:
                rules.append(rule)
        return rules

    def _when_then(self, item: dict[str, Any], path: Path) -> Expr | None:
        document, keys = self.document, ("when", "then")
        for key in item:
            if key not in keys:
                message = f"unknown key '{key}'"
                document.problem((*path, key), message, nearest(key, keys), key=True)
        parts = []
        for key in keys:
            if key in item:
                parts.append(self._expr(item[key], (*path, key), QUANTITIES, truth=True))
            else:
                document.problem(path, f"'{key}' is missing here")
        if len(parts) == 2 and parts[0] and parts[1]:
            return Expr.implies(parts[0], parts[1])
        return None

    def _goals(self, data: Any) -> list[Goal]:
        known = QUANTITIES | SCORES
        if not isinstance(data, list) or not data:
            data = [{"maximize": "score"}, {"minimize": "params"}]
        goals: list[Goal] = []
        for i, item in enumerate(data):
            if not isinstance(item, dict):
                continue
            directions = [key for key in Objective.model_fields if key in item]
            if len(directions) != 1:
                message = "an objective is either {maximize: ...} or {minimize: ...}"
                self.document.problem(("objectives", i), message)
                continue
            (direction,) = directions
            path: Path = ("objectives", i, direction)
            if not isinstance(item[direction], str):
                continue
            expr = self._expr(item[direction], path, known, truth=False)
            if expr and expr.root in [known_goal.expr.root for known_goal in goals]:
                self.document.problem(path, f"'{expr.text}' stands twice in the objectives")
            elif expr:
                goals.append(Goal(expr=expr, maximize=direction == "maximize"))
        return goals

    def _tasks(self, data: Any) -> list[Any]:
        known = found("tasks")
        tasks: list[Any] = []
        use = data.get("use") if isinstance(data, dict) else None
        for i, item in enumerate(use if isinstance(use, list) else []):
            path: Path = ("tasks", "use", i)
            if isinstance(item, dict) and len(item) == 1:
                name, params = next(iter(item.items()))
                path = (*path, name)
            elif isinstance(item, str):
                name, params = item, None
            else:
                hint = "a task name, or `name: {parameters}`"
                self.document.problem(path, f"expected one task, not {given(item)}", hint)
                continue
            matches = sorted(fnmatch.filter(known, name))
            if not matches:
                hint, key = nearest(name, known), isinstance(item, dict)
                self.document.problem(path, f"unknown task '{name}'", hint, key=key)
            for match in matches:
                task = self._task(match, {} if params is None else params, path)
                if task is not None and task in tasks:
                    self.document.problem(path, f"the task '{match}' stands twice")
                elif task is not None:
                    tasks.append(task)
        return tasks

    def _task(self, name: str, params: Any, path: Path) -> Any:
        document, kind = self.document, found("tasks")[name].load()
        fields = {field.name: field.default for field in dataclasses.fields(kind) if field.init}
        if not isinstance(params, dict):
            message = f"the parameters of a task are a mapping, not {given(params)}"
            example = next(iter(fields.items()), None)
            hint = f"e.g. {name}: {{{example[0]}: {example[1] or 'my/files'}}}" if example else ""
            document.problem(path, message, hint)
            return None
        values: dict[str, Any] = {}
        before = len(document.problems)
        for key, data in params.items():
            if key not in fields:
                message = f"task '{name}' has no parameter '{key}'"
                document.problem((*path, key), message, nearest(key, fields), key=True)
                continue
            expected = TASK_VALUES.get(type(fields[key]))
            values[key] = _as(type(fields[key]), data) if expected else data
            if expected and values[key] is None:
                message = f"expected {expected}, not {given(data)}"
                document.problem((*path, key), message)
        if len(document.problems) > before:
            return None
        try:
            return kind(**values)
        except (ValueError, TypeError) as error:
            document.problem(path, str(error))
            return None


TASK_VALUES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
"""What a parameter of a task takes, by the type of its default."""


def _as(kind: type, data: Any) -> Any:
    """What a space file says, as a value of this type; None if it is none."""
    value = quantity(data) if kind in (int, float) else data
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is kind else None


def load_genome(source: str) -> Genome:
    """Read a file that describes a single architecture; its own `start_from` is not followed.

    Raises:
        SpaceError: if it is no space file or leaves a choice open.
    """
    text, name = read_space(source)
    space = _Reader(read(text, name)).experiment(text, ()).space
    if space.size != 1:
        raise SpaceError(f"{source} holds {space.size:g} architectures, not one")
    return space.replay({})

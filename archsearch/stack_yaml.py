"""The `stack` and `define` of a space file: stages, slots and what may stand in them."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Literal

import yaml

from archsearch.catalogue import block_info, block_names
from archsearch.choices import Misfit, given, read_choices
from archsearch.dims import Dim
from archsearch.errors import nearest
from archsearch.genome import COMBINE, MOST_GENES
from archsearch.sections import NAME, REPEAT, UNIQUE
from archsearch.space import SCHEMES, Option, Slot, Stage

if TYPE_CHECKING:
    from archsearch.yaml_source import Document, Path

SLOT_KEYS = ("slot", "one_of", "repeat", "prior", "inputs", "combine")
RESERVED = ("repeat", "combine", "define", "unique", "scheme")
"""Names that the paths of decisions use themselves."""


class StackReader:
    """Reads the stages of one document; notes every problem and goes on.

    Attributes:
        used: The definitions that some slot uses.
        warnings: What is legal and probably not meant.
        placed: Every block that the document names, and where.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.warnings: list[str] = []
        self.placed: list[tuple[Path, Option]] = []
        self.used: set[str] = set()
        data = document.data
        define = data.get("define") if isinstance(data, dict) else None
        self.define: dict[str, Any] = define if isinstance(define, dict) else {}
        self._before: list[str] = []
        self._stages: list[str] = []
        model = data.get("model") if isinstance(data, dict) else None
        self._causal = not (isinstance(model, dict) and model.get("causal") is False)
        self._read: dict[str, list[Option]] = {}
        self._reading: list[str] = []

    def stages(self) -> list[Stage]:
        """The stages of `model.stack`, as far as they can be read; then every definition."""
        document = self.document
        try:
            stack = document.data["model"]["stack"]
        except (KeyError, TypeError):
            stack = None
        stages: list[Stage] = []
        stack = stack if isinstance(stack, list) else []
        self._stages = [f"stage:{data.get('stage')}" for data in stack if isinstance(data, dict)]
        for i, data in enumerate(stack):
            path: Path = ("model", "stack", i)
            if not isinstance(data, dict) or not isinstance(data.get("pattern"), list):
                continue
            given_name = data.get("stage")
            name = given_name if isinstance(given_name, str) else f"stage{i + 1}"
            self._name(name, (*path, "stage"))
            if name in {stage.name for stage in stages}:
                document.problem((*path, "stage"), f"two stages are called '{name}'")
            self._before = [stage.name for stage in stages]
            pattern = self._pattern(data["pattern"], (*path, "pattern"), set())
            repeat = self._choices(data.get("repeat", 1), REPEAT, (*path, "repeat"))
            anew = data.get("choose") == "per_repeat"
            unique, scheme = None, SCHEMES.narrow([SCHEMES.default])
            if "unique" in data:
                unique = self._choices(data["unique"], UNIQUE, (*path, "unique"))
                self._check_unique(unique, repeat, (*path, "unique"))
            if "scheme" in data:
                scheme = self._choices(data["scheme"], SCHEMES, (*path, "scheme"))
                if "unique" not in data:
                    message = "'scheme' has no effect without 'unique'"
                    document.problem((*path, "scheme"), message, key=True)
            choose: Literal["once", "per_repeat"] = "per_repeat" if anew else "once"
            stages.append(Stage(name, pattern, repeat, choose, unique, scheme))
        for name in self.define:
            if not re.fullmatch(NAME, name):
                message = f"'{name}' is no name: letters, digits, _ and -, a letter first"
                document.problem(("define", name), message, key=True)
            self.definition(name)
        self._check_depth(stages)
        return stages

    def warn_unused(self) -> None:
        """Warn of definitions that neither a `use` nor an alias leads to."""
        for name in self.define:
            path = ("define", name)
            reused = any(other[:2] == path for other in self.document.reused)
            if name not in self.used and not reused:
                self.warn(path, f"the definition '{name}' is never used", key=True)

    def _check_depth(self, stages: list[Stage]) -> None:
        most = sum(_most(stage.repeat) * _deepest(stage.pattern) for stage in stages)
        if most > MOST_GENES:
            message = f"the stack unrolls to as many as {most} blocks; at most {MOST_GENES}"
            self.document.problem(("model", "stack"), message, key=True)

    def _check_unique(self, unique: Dim, repeat: Dim, path: Path) -> None:
        most = _most(repeat)
        for i, value in enumerate(unique.values or ()):
            if isinstance(value, int) and value > max(1, most):
                place = (*path, i) if (*path, i) in self.document.values else path
                why = f"{value} sets of weights are more than the {most} repeats"
                self.document.problem(place, why, f"legal: 1 to {max(1, most)}")

    def _name(self, name: Any, path: Path, *, key: bool = False) -> str:
        """A name of a stage or slot, noted if it cannot be one."""
        if name in RESERVED:
            self.document.problem(path, f"'{name}' is a reserved name", key=key)
        elif not isinstance(name, str) or not re.fullmatch(NAME, name):
            what = f"'{name}'" if isinstance(name, str) else given(name)
            message = f"{what} is no name: letters, digits, _ and -, a letter first"
            self.document.problem(path, message, key=key)
        return str(name)

    def _pattern(self, data: list[Any], path: Path, taken: set[str]) -> tuple[Slot, ...]:
        """The slots of a pattern; their names differ from those `taken`."""
        slots = [self._slot(item, (*path, i), taken) for i, item in enumerate(data)]
        return tuple(slot for slot in slots if slot)

    def _slot(self, data: Any, path: Path, taken: set[str]) -> Slot | None:
        document = self.document
        if not isinstance(data, dict):
            hint = "e.g. `- mixer: [attention, mamba2]`"
            document.problem(path, f"expected a slot, not {given(data)}", hint)
            return None
        short = [key for key in data if key not in SLOT_KEYS]
        if "slot" in data or "one_of" in data:
            for key in short:
                hint = nearest(key, SLOT_KEYS)
                document.problem((*path, key), f"unknown key '{key}' in a slot", hint, key=True)
            if "one_of" not in data:
                document.problem(path, "this slot needs 'one_of'")
                return None
            key = "one_of"
            name = self._name(data.get("slot", "slot"), (*path, "slot"))
        elif len(short) != 1:
            hint = f"besides {', '.join(SLOT_KEYS[2:])} it has: {', '.join(short) or 'nothing'}"
            document.problem(path, "a slot has one name", hint)
            return None
        else:
            key = short[0]
            name = self._name(key, (*path, key), key=True)
        if self._is_block(key, data[key]):
            line = yaml.safe_dump(data[key], default_flow_style=True, width=1000).strip()
            block = f"{{{key}: {line}}}" if data[key] else key
            message = f"'{key}:' is read as the name of a slot here, not as a block"
            document.problem((*path, key), message, f"write `mixer: {block}`", key=True)
            return None
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}{count}"
        taken.add(unique)
        options = self._options(data[key], (*path, key))
        repeat = self._choices(data.get("repeat", 1), REPEAT, (*path, "repeat"))
        weights = self._prior(data.get("prior"), options, (*path, "prior"))
        inputs, combine = self._inputs(data, path)
        return Slot(unique, tuple(options), repeat, weights, inputs, combine) if options else None

    def _is_block(self, key: str, value: Any) -> bool:
        """Whether a slot is called like a block and holds its parameters, or nothing."""
        if key not in block_names() or not (value is None or isinstance(value, dict)):
            return False
        return not value or any(name in (*block_info(key).dims, "of") for name in value)

    def _inputs(self, data: dict[str, Any], path: Path) -> tuple[tuple[str | int, ...], Dim]:
        """What a slot reads, and how several inputs become one."""
        document, inputs = self.document, data.get("inputs", ["prev"])
        combine = self._choices(data.get("combine", "add"), COMBINE, (*path, "combine"))
        within = path.count("of") > 0
        legal = ["prev", "embedding", *(f"stage:{name}" for name in self._before)]
        if "inputs" in data and within:
            message = "a slot within a wrapper reads what is before it; it has no 'inputs'"
            document.problem((*path, "inputs"), message, key=True)
        elif not isinstance(inputs, list) or not inputs:
            document.problem((*path, "inputs"), f"expected a list of {', '.join(legal)}")
        else:
            for i, item in enumerate(inputs):
                number = type(item) is int and 0 <= item <= MOST_GENES
                if item in inputs[:i]:
                    document.problem((*path, "inputs", i), f"'{given(item)}' stands twice here")
                elif item in self._stages and item not in legal:
                    message = f"'{item}' is not before this slot"
                    hint = f"known: {', '.join(legal)}, or a number of blocks"
                    document.problem((*path, "inputs", i), message, hint)
                elif not number and item not in legal:
                    hint = f"{nearest(str(item), legal)}, or a number of blocks"
                    document.problem((*path, "inputs", i), f"unknown input '{given(item)}'", hint)
        if "combine" in data and (not isinstance(inputs, list) or len(inputs) < 2):
            message = "'combine' has no effect on a single input"
            document.problem((*path, "combine"), message, key=True)
        return tuple(inputs) if isinstance(inputs, list) else ("prev",), combine

    def _options(self, data: Any, path: Path) -> list[Option]:
        """The options that a value, a list or a `use` stands for."""
        if not isinstance(data, list):
            return self._option(data, path)
        if not data:
            self.document.problem(
                path, "an empty choice", f"known blocks: {', '.join(block_names())}, none"
            )
        if len(data) == 1:
            self.warn(path, "a list with one element is not searched")
        options: list[Option] = []
        for i, item in enumerate(data):
            for option in self._option(item, (*path, i)):
                if option.content in [known.content for known in options]:
                    message = f"'{option.kind}' stands twice in the choice"
                    self.document.problem((*path, i), message)
                    continue
                same = sum(known.kind == option.kind for known in options)
                label = f"{option.kind}#{same + 1}" if same else option.kind
                options.append(dataclasses.replace(option, label=label))
        return options

    def _option(self, data: Any, path: Path) -> list[Option]:
        document = self.document
        if isinstance(data, str) and data != "use":
            name, params, spot, at_key = data, None, path, False
        elif isinstance(data, dict) and len(data) == 1:
            name, params = next(iter(data.items()))
            spot, at_key = (*path, name), True
        else:
            hint = "e.g. `attention`, `mamba2: {d_state: [16, 64]}`, `use: name` or `none`"
            if isinstance(data, dict) and len(data) > 1:
                hint = "several blocks to choose from are a list: [attention, mamba2]"
            what = f"{len(data)} keys" if isinstance(data, dict) else given(data)
            document.problem(path, f"expected one block, not {what}", hint)
            return []
        if name == "use":
            return self._use(params, spot)
        if name != "none" and name not in block_names():
            hint = nearest(name, [*block_names(), "none", "use"])
            document.problem(spot, f"unknown block '{name}'", hint, key=at_key)
            return []
        params = {} if params is None else params
        if not isinstance(params, dict):
            message = f"the parameters of '{name}' are a mapping, not {given(params)}"
            document.problem(spot, message)
            return []
        info = None if name == "none" else block_info(name)
        if info and info.bidirectional and self._causal:
            hint = "`causal: false` under `model` allows it"
            document.problem(spot, f"'{name}' looks ahead: it is not causal", hint, key=at_key)
        dims = info.dims if info else {}
        inner = self._held(name, params, spot) if info and info.wraps else ()
        chosen = []
        for key, value in params.items():
            if info and info.wraps and key == "of":
                continue
            if key in dims:
                chosen.append((key, self._choices(value, dims[key], (*spot, key))))
            else:
                message = f"block '{name}' has no parameter '{key}'"
                document.problem((*spot, key), message, nearest(key, dims), key=True)
        option = Option(name, None if name == "none" else name, tuple(chosen), inner=inner)
        if info:
            self.placed.append((spot, option))
        return [option]

    def _held(self, name: str, params: dict[str, Any], path: Path) -> tuple[Slot, ...]:
        """The slots that a wrapper holds."""
        held = params.get("of")
        if isinstance(held, list) and held:
            pattern = self._pattern(held, (*path, "of"), {"of", *block_info(name).dims})
            for kind in _to_next(pattern) if block_info(name).wraps == "set" else ():
                message = (
                    f"'{name}' cannot hold '{kind}', whose output goes to the next block alone"
                )
                self.document.problem((*path, "of"), message, key=True)
            return pattern
        message = f"'{name}' needs 'of': the slots that it holds"
        hint = f"e.g. `{name}: {{of: [mixer: attention, ffn: swiglu]}}`"
        self.document.problem((*path, "of") if "of" in params else path, message, hint)
        return ()

    def _use(self, name: Any, path: Path) -> list[Option]:
        if not isinstance(name, str) or name not in self.define:
            what = f"'{name}' is not defined"
            if not isinstance(name, str):
                what = f"expected the name of a definition, not {given(name)}"
            hint = nearest(str(name), self.define) if self.define else "there is no `define`"
            self.document.problem(path, what, hint)
            return []
        if name in self._reading:
            through = [*self._reading[self._reading.index(name) + 1 :], name]
            way = "" if through == [name] else f" through {', '.join(through[:-1])}"
            self.document.problem(path, f"'{name}' contains itself{way}")
            return []
        self.used.add(name)
        return self.definition(name)

    def definition(self, name: str) -> list[Option]:
        """What a definition stands for; shared ones are a single block."""
        if name not in self._read:
            self._reading.append(name)
            self._read[name] = self._definition(name)
            self._reading.pop()
        return self._read[name]

    def _definition(self, name: str) -> list[Option]:
        document, data, path = self.document, self.define[name], ("define", name)
        shared: Any = False
        if isinstance(data, dict):
            shared = data.get("shared", False)
            if not isinstance(shared, bool):
                message = f"expected true or false, not {given(shared)}"
                document.problem((*path, "shared"), message)
            data = {key: value for key, value in data.items() if key != "shared"}
        before = len(document.problems)
        if isinstance(data, dict) and list(data) == ["one_of"]:
            options = self._options(data["one_of"], (*path, "one_of"))
        else:
            options = self._options(data, path)
        if not shared:
            return options
        if len(options) == 1 and options[0].block is not None:
            return [dataclasses.replace(options[0], label=f"use:{name}", share=name)]
        if options or len(document.problems) == before:
            words = ", ".join(option.kind for option in options)
            message = f"'{name}' is shared, so it must be one block, not: {words}"
            document.problem(path, message, key=True)
        return []

    def _choices(self, data: Any, legal: Dim, path: Path) -> Dim:
        try:
            dim = read_choices(data, legal)
        except Misfit as error:
            self.document.misfit(path, error.parts)
            return Dim(options=(legal.default,))
        if isinstance(data, list) and len(data) == 1:
            self.warn(path, "a list with one element is not searched")
        return dim

    def warn(self, path: Path, message: str, *, key: bool = False) -> None:
        """Note what is legal and probably not meant."""
        self.warnings.append(f"{self.document.place(path, key=key)}: {message}")

    def _prior(self, data: Any, options: list[Option], path: Path) -> tuple[float, ...] | None:
        if data is None:
            return None
        labels = [option.label for option in options]
        if not isinstance(data, dict):
            self.document.problem(
                path, "expected weights", "e.g. `prior: {mamba2: 3, attention: 1}`"
            )
            return None
        right = True
        for key, value in data.items():
            if key not in labels:
                message = f"'{key}' is no option of this slot"
                self.document.problem((*path, key), message, nearest(key, labels), key=True)
            elif type(value) not in (int, float) or not 0 < value < 1e9:
                right = False
                self.document.problem((*path, key), "a weight is a number above 0")
        return tuple(data.get(label, 1) for label in labels) if right else None


def _to_next(pattern: tuple[Slot, ...]) -> list[str]:
    """The blocks in a pattern whose output goes to the next block alone."""
    blocks = {option.block for slot in pattern for option in slot.options if option.block}
    return sorted(block for block in blocks if block_info(block).joins == "next")


def _deepest(pattern: tuple[Slot, ...]) -> int:
    """Most blocks that a pattern unrolls to."""
    return sum(
        _most(slot.repeat) * max(1 + _deepest(option.inner) for option in slot.options)
        for slot in pattern
    )


def _most(repeat: Dim) -> int:
    values = repeat.values or ()
    return max(value for value in values if isinstance(value, int))

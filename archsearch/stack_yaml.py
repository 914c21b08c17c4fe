"""The `stack` and `define` of a space file: stages, slots and what may stand in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archsearch.catalogue import block_info, block_names
from archsearch.choices import Misfit, read_choices
from archsearch.dims import Dim
from archsearch.errors import nearest
from archsearch.sections import REPEAT
from archsearch.space import Option, Slot, Stage

if TYPE_CHECKING:
    from archsearch.yaml_source import Document, Path

SLOT_KEYS = ("slot", "one_of", "repeat", "prior")


class StackReader:
    """Reads the stages of one document; notes every problem and goes on.

    Attributes:
        used: The definitions that some slot uses.
        warnings: What is legal and probably not meant.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.warnings: list[str] = []
        self.used: set[str] = set()
        data = document.data
        define = data.get("define") if isinstance(data, dict) else None
        self.define: dict[str, Any] = define if isinstance(define, dict) else {}

    def stages(self) -> list[Stage]:
        """The stages of `model.stack`, as far as they can be read."""
        document = self.document
        try:
            stack = document.data["model"]["stack"]
        except (KeyError, TypeError):
            return []
        stages: list[Stage] = []
        for i, data in enumerate(stack if isinstance(stack, list) else []):
            path: Path = ("model", "stack", i)
            if not isinstance(data, dict) or not isinstance(data.get("pattern"), list):
                continue
            name = str(data.get("stage") or f"stage{i + 1}")
            if name in {stage.name for stage in stages}:
                document.problem((*path, "stage"), f"two stages are called '{name}'")
            taken: set[str] = set()
            pattern = [
                slot
                for j, item in enumerate(data["pattern"])
                if (slot := self._slot(item, (*path, "pattern", j), taken))
            ]
            repeat = self._choices(data.get("repeat", 1), REPEAT, (*path, "repeat"))
            choose = "per_repeat" if data.get("choose") == "per_repeat" else "once"
            stages.append(Stage(name, tuple(pattern), repeat, choose))
        return stages

    def _slot(self, data: Any, path: Path, taken: set[str]) -> Slot | None:
        document = self.document
        if not isinstance(data, dict):
            document.problem(path, "expected a slot", "e.g. `- mixer: [attention, mamba2]`")
            return None
        short = [key for key in data if key not in SLOT_KEYS]
        if "slot" in data or "one_of" in data:
            for key in short:
                hint = nearest(key, SLOT_KEYS)
                document.problem((*path, key), f"unknown key '{key}' in a slot", hint, key=True)
            if "one_of" not in data:
                document.problem(path, "this slot needs 'one_of'")
                return None
            name, key = str(data.get("slot", "slot")), "one_of"
        elif len(short) != 1:
            hint = f"besides {', '.join(SLOT_KEYS[2:])} it has: {', '.join(short) or 'nothing'}"
            document.problem(path, "a slot has one name", hint)
            return None
        else:
            name = key = short[0]
        unique = name
        while unique in taken:
            unique = f"{name}{sum(known.startswith(name) for known in taken) + 1}"
        taken.add(unique)
        options = self._options(data[key], (*path, key), None)
        repeat = self._choices(data.get("repeat", 1), REPEAT, (*path, "repeat"))
        weights = self._prior(data.get("prior"), options, (*path, "prior"))
        return Slot(unique, tuple(options), repeat, weights) if options else None

    def _options(self, data: Any, path: Path, within: str | None) -> list[Option]:
        """The options that a value, a list or a `use` stands for."""
        if not isinstance(data, list):
            return self._option(data, path, within)
        if not data:
            self.document.problem(
                path, "an empty choice", f"known blocks: {', '.join(block_names())}, none"
            )
        if len(data) == 1 and within is None:
            self._warn(path, "a list with one element is not searched")
        options: list[Option] = []
        for i, item in enumerate(data):
            for option in self._option(item, (*path, i), within):
                if option in options:
                    self.document.problem(
                        (*path, i), f"'{option.label}' stands twice in the choice"
                    )
                    continue
                same = sum(known.label.partition("#")[0] == option.label for known in options)
                label = f"{option.label}#{same + 1}" if same else option.label
                options.append(Option(label, option.block, option.params, option.share))
        return options

    def _option(self, data: Any, path: Path, within: str | None) -> list[Option]:
        document = self.document
        if isinstance(data, str):
            data, spot = {data: {}}, path
        elif isinstance(data, dict) and len(data) == 1:
            spot = (*path, next(iter(data)))
        else:
            hint = "e.g. `attention`, `mamba2: {d_state: [16, 64]}`, `use: name` or `none`"
            document.problem(path, "expected one block", hint)
            return []
        name, params = next(iter(data.items()))
        at_key = spot != path
        if name == "use":
            return self._use(params, path, within)
        if name == "none":
            return [Option("none", None)]
        if name not in block_names():
            hint = nearest(name, [*block_names(), "none", "use"])
            document.problem(spot, f"unknown block '{name}'", hint, key=at_key)
            return []
        if params is None:
            params = {}
        if not isinstance(params, dict):
            document.problem(spot, f"the parameters of '{name}' must be a mapping")
            return []
        dims = block_info(name).dims
        chosen = []
        for key, value in params.items():
            if key not in dims:
                message = f"block '{name}' has no parameter '{key}'"
                document.problem((*spot, key), message, nearest(key, dims), key=True)
                continue
            chosen.append((key, self._choices(value, dims[key], (*spot, key))))
        return [Option(name, name, tuple(chosen))]

    def _use(self, name: Any, path: Path, within: str | None) -> list[Option]:
        if not isinstance(name, str) or name not in self.define:
            hint = (
                nearest(str(name), self.define) if self.define else "there is no `define` section"
            )
            self.document.problem((*path, "use"), f"'{name}' is not defined", hint)
            return []
        if name == within:
            self.document.problem((*path, "use"), f"'{name}' contains itself")
            return []
        self.used.add(name)
        return self.definition(name, within)

    def definition(self, name: str, within: str | None = None) -> list[Option]:
        """What a definition stands for; shared ones are a single block."""
        data, path = self.define[name], ("define", name)
        shared = False
        if isinstance(data, dict):
            shared = data.get("shared", False)
            if not isinstance(shared, bool):
                self.document.problem((*path, "shared"), "expected true or false")
            rest = {key: value for key, value in data.items() if key != "shared"}
            if "one_of" in rest and len(rest) == 1:
                data, path = rest["one_of"], (*path, "one_of")
            else:
                data = rest
        options = self._options(data, path, within or name)
        if shared and (len(options) != 1 or options[0].block is None):
            if not any(spot for spot in self.document.problems):
                self.document.problem(path, f"'{name}' is shared, so it must be one block")
            return []
        if shared is True:
            only = options[0]
            return [Option(f"use:{name}", only.block, only.params, name)]
        return options

    def _choices(self, data: Any, legal: Dim, path: Path) -> Dim:
        try:
            dim = read_choices(data, legal)
        except Misfit as error:
            self.document.problem((*path, *error.at), str(error))
            return Dim(options=(legal.default,))
        if isinstance(data, list) and len(data) == 1:
            self._warn(path, "a list with one element is not searched")
        return dim

    def _warn(self, path: Path, message: str) -> None:
        spot = self.document.values.get(path)
        place = f"{spot.source}:{spot.line + 1}:{spot.column + 1}: " if spot else ""
        self.warnings.append(place + message)

    def _prior(self, data: Any, options: list[Option], path: Path) -> tuple[float, ...] | None:
        if data is None:
            return None
        labels = [option.label for option in options]
        if not isinstance(data, dict):
            self.document.problem(
                path, "expected weights", "e.g. `prior: {mamba2: 3, attention: 1}`"
            )
            return None
        for key, value in data.items():
            if key not in labels:
                hint = nearest(key, labels)
                self.document.problem(
                    (*path, key), f"'{key}' is no option of this slot", hint, key=True
                )
            elif (
                isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9
            ):
                self.document.problem((*path, key), "a weight is a number above 0")
        weights = tuple(data.get(label, 1) for label in labels)
        return weights if all(isinstance(w, int | float) for w in weights) else None

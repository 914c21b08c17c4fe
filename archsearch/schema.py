"""The JSON Schema of space files, from the same models that read them and the block registry."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Any

from archsearch.catalogue import block_info, block_names, found
from archsearch.choices import UNIT_SCHEMA, choices_schema
from archsearch.genome import COMBINE
from archsearch.sections import NAME, REPEAT, MatchSection, SpaceFile


def json_schema() -> dict[str, Any]:
    """JSON Schema 2020-12, user blocks and tasks included."""
    schema = SpaceFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "archsearch space"
    shapes = schema["$defs"]
    shapes["block"] = _block()
    shapes["options"] = {
        "anyOf": [
            {"$ref": "#/$defs/block"},
            {
                "type": "array",
                "items": {"$ref": "#/$defs/block"},
                "minItems": 1,
                "uniqueItems": True,
            },
        ]
    }
    shapes["slot"] = _slot()
    shapes["StageSection"]["properties"]["pattern"]["items"] = {"$ref": "#/$defs/slot"}
    schema["properties"]["define"] |= {
        "additionalProperties": _definition(),
        "propertyNames": {"pattern": f"^{NAME}$"},
    }
    for name, keys in (
        ("MatchSection", MatchSection.TARGETS),
        ("Objective", ("maximize", "minimize")),
    ):
        shapes[name]["oneOf"] = [{"required": [key]} for key in keys]
    shapes["TasksSection"]["properties"]["use"]["items"] = _task()
    return schema


def _block() -> dict[str, Any]:
    forms: list[dict[str, Any]] = [
        {"enum": ["none", *(name for name in block_names() if not block_info(name).wraps)]},
        _single("use", {"type": "string", "description": "Name of a definition."}),
        _single("none", {"type": ["object", "null"], "maxProperties": 0}),
    ]
    for name in block_names():
        info = block_info(name)
        params = {
            key: {"description": info.docs.get(key, ""), "default": dim.default}
            | choices_schema(dim)
            for key, dim in info.dims.items()
        }
        body: dict[str, Any] = {
            "type": ["object", "null"],
            "description": f"{info.summary}. arXiv {info.paper}.",
            "properties": params,
            "additionalProperties": False,
        }
        if info.wraps:
            held = {"type": "array", "items": {"$ref": "#/$defs/slot"}, "minItems": 1}
            params["of"] = held | {"description": "The slots that it holds."}
            body |= {"type": "object", "required": ["of"]}
        forms.append(_single(name, body))
    return {"anyOf": forms}


def _single(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key: value},
        "required": [key],
        "additionalProperties": False,
    }


def _slot() -> dict[str, Any]:
    weight = {"type": "number", "exclusiveMinimum": 0}
    common = {
        "repeat": choices_schema(REPEAT),
        "prior": {"type": ["object", "null"], "additionalProperties": weight},
        "inputs": {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1},
        "combine": choices_schema(COMBINE),
    }
    options = {"$ref": "#/$defs/options"}
    name = {"type": "string", "pattern": f"^{NAME}$"}
    long = {
        "type": "object",
        "properties": {"slot": name, "one_of": options} | common,
        "required": ["one_of"],
        "additionalProperties": False,
    }
    short = {
        "type": "object",
        "properties": common,
        "propertyNames": name,
        "additionalProperties": options,
        "not": {"anyOf": [{"required": ["slot"]}, {"required": ["one_of"]}]},
        "oneOf": [
            _besides(list(keys), common)
            for count in range(len(common) + 1)
            for keys in combinations(common, count)
        ],
    }
    return {"anyOf": [long, short]}


def _besides(keys: list[str], among: dict[str, Any]) -> dict[str, Any]:
    """An object with these keys, none of the other `among`, and one key more."""
    others = [{"required": [key]} for key in among if key not in keys]
    size = {"required": keys, "minProperties": len(keys) + 1, "maxProperties": len(keys) + 1}
    return size | ({"not": {"anyOf": others}} if others else {})


def _definition() -> dict[str, Any]:
    shared = {"shared": {"type": "boolean", "description": "One set of weights for all uses."}}
    blocks = {
        name: block["properties"][name]
        for block in _block()["anyOf"]
        if "properties" in block
        for name in block["properties"]
    }
    own = {
        "type": "object",
        "properties": shared | {"one_of": {"$ref": "#/$defs/options"}} | blocks,
        "additionalProperties": False,
        "oneOf": [_besides([], shared), _besides(["shared"], shared)],
    }
    return {"anyOf": [{"$ref": "#/$defs/options"}, own]}


def _task() -> dict[str, Any]:
    names = sorted(found("tasks"))
    families = sorted({name.split("/")[0] + "/*" for name in names if "/" in name})
    params = {name: _task_params(found("tasks")[name].load()) for name in names}
    return {
        "anyOf": [
            {"enum": [*names, *families]},
            {"type": "string", "pattern": r"[*?\[]"},
            {
                "type": "object",
                "properties": params,
                "patternProperties": {r"[*?\[]": {"type": ["object", "null"]}},
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": False,
            },
        ]
    }


def _task_params(kind: Any) -> dict[str, Any]:
    """The fields of a task, typed by their defaults."""
    shapes: dict[type, dict[str, Any]] = {
        int: {"anyOf": [{"type": "integer"}, UNIT_SCHEMA]},
        float: {"anyOf": [{"type": "number"}, UNIT_SCHEMA]},
        bool: {"type": "boolean"},
        str: {"type": "string"},
    }
    fields = [field for field in dataclasses.fields(kind) if field.init]
    return {
        "type": ["object", "null"],
        "properties": {field.name: shapes.get(type(field.default), {}) for field in fields},
        "additionalProperties": False,
    }

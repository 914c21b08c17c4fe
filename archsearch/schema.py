"""The JSON Schema of space files, from the same models that read them and the block registry."""

from __future__ import annotations

from typing import Any

from archsearch.catalogue import block_info, block_names, found
from archsearch.choices import choices_schema
from archsearch.sections import REPEAT, SpaceFile


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
            {"type": "array", "items": {"$ref": "#/$defs/block"}, "minItems": 1},
        ]
    }
    shapes["slot"] = _slot()
    shapes["StageSection"]["properties"]["pattern"]["items"] = {"$ref": "#/$defs/slot"}
    schema["properties"]["define"]["additionalProperties"] = _definition()
    shapes["TasksSection"]["properties"]["use"]["items"] = _task()
    return schema


def _block() -> dict[str, Any]:
    forms: list[dict[str, Any]] = [
        {"enum": ["none", *block_names()]},
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
        body = {
            "type": ["object", "null"],
            "description": f"{info.summary}. arXiv {info.paper}.",
            "properties": params,
            "additionalProperties": False,
        }
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
    common = {
        "repeat": choices_schema(REPEAT),
        "prior": {"type": "object", "additionalProperties": {"type": "number"}},
    }
    options = {"$ref": "#/$defs/options"}
    long = {"slot": {"type": "string"}, "one_of": options} | common
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": long,
                "required": ["one_of"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": common,
                "additionalProperties": options,
                "minProperties": 1,
                "not": {"anyOf": [{"required": ["slot"]}, {"required": ["one_of"]}]},
            },
        ]
    }


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
    }
    return {"anyOf": [{"$ref": "#/$defs/options"}, own]}


def _task() -> dict[str, Any]:
    names = sorted(found("tasks"))
    families = sorted({name.split("/")[0] + "/*" for name in names if "/" in name})
    params = {name: {"type": ["object", "null"]} for name in names}
    return {
        "anyOf": [
            {"enum": [*names, *families]},
            {"type": "string", "pattern": r"[*?\[]"},
            {
                "type": "object",
                "properties": params,
                "minProperties": 1,
                "maxProperties": 1,
                "additionalProperties": False,
            },
        ]
    }

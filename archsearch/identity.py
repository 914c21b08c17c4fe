"""What may not change while a run goes on, as canonical text, and how two such texts differ."""

from __future__ import annotations

from typing import Any

import yaml


def identity(data: Any) -> str:
    """Canonical text of what defines a study: everything but budget, hints and notes."""
    free = {"notes", "name", "version"}
    kept = {key: value for key, value in data.items() if key not in free}
    kept = {key: _without_hints(value) for key, value in kept.items()}
    search = kept.get("search") or {}
    fixed = ("seed", "rungs", "keep")
    kept["search"] = {key: value for key, value in search.items() if key in fixed}
    return yaml.safe_dump(kept, sort_keys=True)


def _without_hints(data: Any) -> Any:
    """The same without the priors of slots."""
    if isinstance(data, dict):
        return {key: _without_hints(value) for key, value in data.items() if key != "prior"}
    return [_without_hints(item) for item in data] if isinstance(data, list) else data


def differences(before: str, now: str) -> list[str]:
    """What differs between two identities of an experiment: `path: old -> new`."""
    old, new = (_leaves(yaml.safe_load(text)) for text in (before, now))
    return [
        f"{path}: {old.get(path, '-')} -> {new.get(path, '-')}"
        for path in old | new
        if old.get(path) != new.get(path)
    ]


def _leaves(data: Any, path: str = "") -> dict[str, str]:
    """Plain data as one value for each path; a list of single values is one value."""
    if isinstance(data, dict) and data:
        parts = {f"{path}.{key}" if path else str(key): value for key, value in data.items()}
    elif isinstance(data, list) and any(isinstance(item, dict | list) for item in data):
        parts = {f"{path}[{i}]": item for i, item in enumerate(data)}
    else:
        return {path: str(data)}
    return {place: text for part in parts for place, text in _leaves(parts[part], part).items()}

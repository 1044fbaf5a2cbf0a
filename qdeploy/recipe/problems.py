"""Pydantic's findings in the words of the recipe: key, given, allowed."""

from __future__ import annotations

import re
from typing import cast

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from qdeploy.findings import allowed, did_you_mean
from qdeploy.recipe.sections import DataPhase, LayerOverride, TrainPhase


def problem(details: ErrorDetails, recipe: type[BaseModel]) -> str:
    """One of pydantic's findings in the words of the recipe: key, given, allowed."""
    path = _path(details)
    key = _dotted(path)
    if details["type"] == "extra_forbidden":
        return _unknown_key(path, recipe)
    if details["type"] == "missing":
        return f"{key} is missing; it has no default, so the recipe must give it"
    if details["type"] == "value_error":
        return f"{key}: {details['ctx']['error']}".removeprefix(": ")
    return f"{key}: given {details['input']!r}, allowed: {allowed(details)}"


def _path(details: ErrorDetails) -> list[str]:
    """The keys that lead to the finding, without the tag of the union in `layers.<glob>`."""
    path = [str(part) for part in details["loc"]]
    return path[:3] + path[4:] if path[:2] == ["quantize", "layers"] else path


def _dotted(path: list[str]) -> str:
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else f'"{part}"' for part in path)


def _unknown_key(path: list[str], recipe: type[BaseModel]) -> str:
    *table, key = path
    keys = _keys_of(table, recipe)
    place = f"in [{_dotted(table)}]" if table else "at the top"
    nearest = did_you_mean(key, keys, lambda near: _dotted([*table, near]))
    return f"unknown key {_dotted(path)}.{nearest} Allowed {place}: {', '.join(keys)}"


def _keys_of(table: list[str], recipe: type[BaseModel]) -> list[str]:
    """The keys that a table of the recipe may have; [] is the recipe itself."""
    if not table:
        return list(recipe.model_fields)
    if table[1:2] == ["regime"]:
        return list((TrainPhase if table[0] == "train" else DataPhase).model_fields)
    if len(table) > 1:
        return list(LayerOverride.__annotations__)
    section = cast(type[BaseModel], recipe.model_fields[table[0]].annotation)
    return list(section.model_fields)

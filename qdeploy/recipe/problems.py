"""What pydantic finds wrong with a recipe, put in the recipe's own terms."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from qdeploy.findings import allowed, did_you_mean
from qdeploy.recipe.sections import LayerOverride


def problem(details: ErrorDetails, recipe: type[BaseModel]) -> str:
    """One finding in a line: the key, what was given and what is allowed."""
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
    """The keys that lead to the finding, without the tag that LayerSetting adds to them."""
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
    if table[:2] == ["quantize", "layers"]:
        return list(LayerOverride.__annotations__)
    kind: Any = recipe
    for part in table:  # a section, then "regime", then the number of a phase
        kind = get_args(kind)[0] if part.isdigit() else kind.model_fields[part].annotation
    return list(kind.model_fields)

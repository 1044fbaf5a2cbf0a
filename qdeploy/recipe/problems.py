"""Validates tables and says what pydantic finds wrong in plain words: given, allowed, the nearest key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qdeploy.errors import QdeployError, did_you_mean
from qdeploy.recipe.sections import LayerOverride

Model = TypeVar("Model", bound=BaseModel)

# What is allowed when pydantic complains about a type or a bound, in the terms of TOML.
ALLOWED = {
    "model_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
    "list_type": "a list, in square brackets",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text in quotes",
    "string_too_short": "text that is not empty",
    "too_long": "{max_length} values",
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
}


def validated(
    model: type[Model], table: Mapping[str, Any], origin: str, folder: Path = Path()
) -> Model:
    """The model that `table` describes; its relative paths may start at `folder`.

    Raises QdeployError with a line for each thing that is wrong, which begins with `origin`.
    """
    try:
        return model.model_validate(table, context={"folder": folder})
    except ValidationError as error:
        problems = [f"{origin}: {_problem(details, model)}" for details in error.errors()]
        raise QdeployError("\n".join(problems)) from None


def _problem(details: ErrorDetails, model: type[BaseModel]) -> str:
    """One finding in a line: the key, what was given and what is allowed."""
    path = _path(details)
    key = _dotted(path)
    if details["type"] == "extra_forbidden":
        return _unknown_key(path, model)
    if details["type"] == "missing":
        return f"{key} is missing; it has no default, so it must be given"
    if details["type"] == "value_error":
        return f"{key}: {details['ctx']['error']}".removeprefix(": ")
    allowed = details["msg"].removeprefix("Input should be ")
    if details["type"] in ALLOWED:
        allowed = ALLOWED[details["type"]].format(**details.get("ctx", {}))
    return f"{key}: given {details['input']!r}, allowed: {allowed}"


def _path(details: ErrorDetails) -> list[str]:
    """The keys that lead to the finding, without the tag that LayerSetting adds to them."""
    path = [str(part) for part in details["loc"]]
    return path[:3] + path[4:] if path[:2] == ["quantize", "layers"] else path


def _dotted(path: list[str]) -> str:
    return ".".join(part if re.fullmatch(r"[\w-]+", part) else f'"{part}"' for part in path)


def _unknown_key(path: list[str], model: type[BaseModel]) -> str:
    *table, key = path
    keys = _keys_of(table, model)
    place = f" in [{_dotted(table)}]" if table else ""
    nearest = did_you_mean(key, keys, lambda near: _dotted([*table, near]))
    return f"unknown key {_dotted(path)}.{nearest} Allowed{place}: {', '.join(keys) or 'none'}"


def _keys_of(table: list[str], model: type[BaseModel]) -> list[str]:
    """The keys that a table may have; [] is the whole of the model."""
    if table[:2] == ["quantize", "layers"]:
        return list(LayerOverride.__annotations__)
    kind: Any = model
    for part in table:  # a section, then "regime", then the number of a phase
        kind = get_args(kind)[0] if part.isdigit() else kind.model_fields[part].annotation
    return list(kind.model_fields)

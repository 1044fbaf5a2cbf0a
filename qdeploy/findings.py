"""What pydantic finds wrong, in plain words: what was given, what is allowed, the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

# What is allowed when pydantic complains about a type or a bound, in the terms of TOML.
ALLOWED = {
    "model_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
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


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """One line for each finding; `where` says what was being read."""
    keys = list(model.model_fields)
    return "\n".join(f"{where}: {problem(details, keys)}" for details in error.errors())


def problem(details: ErrorDetails, keys: Iterable[str]) -> str:
    """One finding in a line: key, given, allowed. `keys` are those that are valid in its place."""
    key = ".".join(map(str, details["loc"]))
    if details["type"] == "extra_forbidden":
        return f"unknown key {key!r}.{did_you_mean(key, keys)} Allowed: {', '.join(keys) or 'none'}"
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    return f"{key}: given {details['input']!r}, allowed: {allowed(details)}"


def allowed(details: ErrorDetails) -> str:
    text = details["msg"].removeprefix("Input should be ")
    if details["type"] in ALLOWED:
        text = ALLOWED[details["type"]].format(**details.get("ctx", {}))
    return text


def did_you_mean(name: str, names: Iterable[str], written: Callable[[str], str] = str) -> str:
    """' Did you mean X?' for the nearest of `names`, formatted by `written`; '' if none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {written(near[0])}?" if near else ""

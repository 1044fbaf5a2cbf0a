"""Reads the table of a recipe from a file or the zoo, follows `extends` and applies overrides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli

from qdeploy.errors import QdeployError, did_you_mean

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # of Python 3.11

_ZOO = "qdeploy.models.recipes"
_METHOD = ["quantize", "method"]
_PATHS = (("model", "weights"), ("data", "root"))
# May be "file.py:name", and then begin with a path.
_CODE = (("model", "network"), ("task", "kind"), ("data", "dataset"))


def read_table(source: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe as nested dicts, not yet validated; see `Recipe.load` for the arguments."""
    file = _recipe_file(str(source))
    table = _with_base(_parse(file), [os.path.normpath(source)])
    changes = [(_key_path(text), _value(text.partition("=")[2])) for text in overrides]
    # The method goes first: setting it drops the options of the method before.
    for path, value in sorted(changes, key=lambda change: change[0] != _METHOD):
        if path == _METHOD:
            _set_method(table, value)
        _assign(table, path, value)
    table.setdefault("name", Path(file.name).stem)
    return table


def zoo_recipes() -> list[str]:
    """The names of the recipes that come with qdeploy, in alphabetical order."""
    names = (Path(file.name) for file in files(_ZOO).iterdir())
    return sorted(name.stem for name in names if name.suffix == ".toml")


def zoo_summary(name: str) -> str:
    """The first line of a zoo recipe, a comment that says what it is for."""
    return _recipe_file(name).read_text("utf-8").partition("\n")[0].removeprefix("#").strip()


def _recipe_file(source: str) -> Traversable:
    if source.endswith(".toml"):
        return Path(source)
    if source in zoo_recipes():
        return files(_ZOO) / f"{source}.toml"
    raise QdeployError(
        f"no recipe {source!r} in the zoo.{did_you_mean(source, zoo_recipes())}"
        " `qdeploy models` lists the zoo; your own recipe is given as a path that ends in .toml."
    )


def _parse(file: Traversable) -> dict[str, Any]:
    try:
        return tomli.loads(file.read_text("utf-8"))
    except OSError as error:
        raise QdeployError(f"cannot read the recipe {file}: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError, which names line and column, or not UTF-8
        raise QdeployError(f"{file} is not valid TOML: {error}") from error


def _with_base(table: dict[str, Any], chain: list[str]) -> dict[str, Any]:
    """`table`, completed by the recipe that it extends, which may extend another.

    `chain` holds the recipes that led here, the one of `table` last.
    """
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise QdeployError(
            f"{chain[-1]}: extends: given {base!r}, allowed: a recipe's name or path"
        )
    source = base
    if base.endswith(".toml"):
        source = os.path.normpath(Path(chain[-1]).parent / base)
    if source in chain:
        raise QdeployError(
            f"recipes extend each other in a circle: {' -> '.join([*chain, source])}"
        )
    inherited = _with_base(_parse(_recipe_file(source)), [*chain, source])
    inherited.pop("name", None)
    if source.endswith(".toml"):
        _anchor(inherited, Path(source).parent)
    if "method" in table.get("quantize", {}):
        _set_method(inherited, table["quantize"]["method"])
    return _merged(inherited, table)


def _anchor(table: dict[str, Any], folder: Path) -> None:
    """Makes paths that exist in `folder` absolute, so that a recipe elsewhere can take them over."""
    for section, key in (*_PATHS, *_CODE):
        given = table.get(section, {}).get(key)
        if not isinstance(given, str):
            continue
        file = given.rpartition(":")[0] if (section, key) in _CODE else given
        is_path = (section, key) in _PATHS or file.endswith(".py")
        if is_path and (folder / file).exists():
            table[section][key] = str(folder.resolve() / given)


def _set_method(table: dict[str, Any], method: object) -> None:
    """Sets the method; the options of a different one are dropped."""
    quantize = table.setdefault("quantize", {})
    if quantize.get("method") != method:
        quantize.pop("options", None)
    quantize["method"] = method


def _merged(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """`base` overlaid with `table`, and so on for the tables in both."""
    merged = dict(base)
    for key, value in table.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _assign(table: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets the key at the end of `path`; tables that lead there are made if they are missing."""
    *parents, last = path
    for parent in parents:
        if not isinstance(table.get(parent), dict):
            table[parent] = {}
        table = table[parent]
    table[last] = value


def _key_path(override: str) -> list[str]:
    """The segments of an override's dotted key; quotes and dots are as TOML reads them."""
    key, equals, _ = override.partition("=")
    try:
        table = tomli.loads(f"{key} {equals} 0")
    except tomli.TOMLDecodeError:
        raise QdeployError(
            f"override {override!r} cannot be read; allowed: section.key=value, a glob in"
            ' quotes, such as train.lr=0.01 or quantize.layers."conv*".weight_bits=2'
        ) from None
    path = []
    while isinstance(table, dict):
        [(segment, table)] = table.items()
        path.append(segment)
    return path


def _value(text: str) -> Any:
    """`text` as a TOML value, or as it stands if it is none, so that words need no quotes."""
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text.strip()

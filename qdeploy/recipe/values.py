"""The values of a recipe's keys that need a check of their own: paths, names, bits, lists of numbers."""

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
)

from qdeploy import datasets
from qdeploy.errors import did_you_mean


def _absolute(path: str, info: ValidationInfo) -> str:
    """The absolute form of a path that a recipe gives.

    A relative path starts at the recipe's folder if it exists there, else at the working
    directory: a recipe can travel with its files, and an override means what it says in the shell.
    """
    folder = (info.context or {}).get("folder", Path())
    given = Path(os.path.expanduser(path))
    beside = folder / given
    return str((beside if beside.exists() else given).resolve())


def _absolute_reference(name: str, info: ValidationInfo) -> str:
    """`file.py:function` with an absolute file; other ways to name something stay as they are."""
    file, _, function = name.rpartition(":")
    return f"{_absolute(file, info)}:{function}" if file.endswith(".py") else name


def _bits_or_float(bits: object) -> int | None:
    """Bits of activations; the word "float" becomes None."""
    if bits is None or bits == "float":
        return None
    if type(bits) is int and 1 <= bits <= 16:
        return bits
    raise ValueError(f'given {bits!r}, allowed: 1 to 16, or "float"')


def _dataset(name: str, info: ValidationInfo) -> str:
    """A name, or a function in a file or a module."""
    return _absolute_reference(name, info) if ":" in name else _one_of(datasets.available(), name)


def _short_side(given: object) -> int | Literal["whole"] | None:
    """Pixels, or the word "whole"."""
    if given is None or given == "whole" or (type(given) is int and given >= 1):
        return given
    raise ValueError(f'given {given!r}, allowed: 1 or more pixels, or "whole"')


def _ascending(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"given {list(scale)}, allowed: the least and the largest share, above 0 and up to 1"
        )
    return scale


def _target(name: str) -> str:
    # Targets stand above the recipe, which asks their package for its names when it is validated.
    return _one_of(import_module("qdeploy.deploy.targets").available(), name)


def _task(kind: str, info: ValidationInfo) -> str:
    """A name, or a class in a file or a module. Tasks stand above the recipe, as targets do."""
    if ":" in kind:
        return _absolute_reference(kind, info)
    return _one_of(import_module("qdeploy.tasks.registry").available(), kind)


def _one_of(names: list[str], name: str) -> str:
    """`name`, if it is one of those that there are; the module behind it is not imported yet."""
    if name not in names:
        nearest = did_you_mean(name, names)
        raise ValueError(f"given {name!r}, allowed: {', '.join(map(repr, names))}.{nearest}")
    return name


FilePath = Annotated[str, AfterValidator(_absolute)]
Network = Annotated[str, AfterValidator(_absolute_reference)]
DatasetName = Annotated[str, AfterValidator(_dataset)]
TaskKind = Annotated[str, AfterValidator(_task)]
TargetName = Annotated[str, AfterValidator(_target)]
WeightBits = Annotated[int, Field(ge=1, le=16)]
ActBits = Annotated[
    int | None,
    PlainValidator(_bits_or_float),
    PlainSerializer(lambda bits: "float" if bits is None else bits),
]
# A TOML array is a list to Python; `strict` would insist on a tuple.
Means = Annotated[tuple[float, ...], Field(strict=False)]
Deviations = Annotated[tuple[PositiveFloat, ...], Field(strict=False)]
Milestones = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=2)]  # BatchNorm cannot train on a single image
Resize = Annotated[int | Literal["whole"] | None, PlainValidator(_short_side)]
Scale = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_ascending)]
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]

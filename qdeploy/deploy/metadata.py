"""What travels in a file for those who run it: class names, the input's normalisation, what made it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import TypeAlias

from qdeploy.errors import QdeployError

Normalisation: TypeAlias = tuple[Sequence[float], Sequence[float]]


def file_metadata(
    classes: Sequence[str] | None, normalisation: Normalisation | None, origin: dict[str, str]
) -> dict[str, str]:
    """The entries of the file, as JSON; what is None is left out.

    origin    what made the file: names and versions
    """
    found: dict[str, object] = {}
    if classes is not None:
        found["classes"] = checked_classes(classes)
    if normalisation is not None:
        mean, std = normalisation
        found["normalisation"] = {"mean": list(mean), "std": list(std)}
    entries = {f"qdeploy.{key}": json.dumps(value) for key, value in found.items()}
    return {**entries, "qdeploy.origin": json.dumps(origin, separators=(",", ":"))}


def versions() -> dict[str, str]:
    """Of what every file is made by."""
    return {part: version(part) for part in ("qdeploy", "torch", "onnx")}


def checked_classes(given: object) -> list[str]:
    """The names of the classes, in the order of the outputs. Errors: QdeployError for anything else."""
    names = list(given) if isinstance(given, (list, tuple)) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise QdeployError(
            f"classes is {given!r}; allowed: the name of each class, in the order of the outputs, such as "
            '["cat", "dog"]'
        )
    return names

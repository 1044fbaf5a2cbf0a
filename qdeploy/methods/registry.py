"""Finds methods: the modules of this package and the entry points of others."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points

import qdeploy.methods
from qdeploy.errors import QdeployError
from qdeploy.findings import did_you_mean
from qdeploy.methods.method import Method

ENTRY_POINT_GROUP = "qdeploy.methods"
NOT_METHODS = {"method", "registry"}


def _own() -> list[str]:
    modules = pkgutil.iter_modules(qdeploy.methods.__path__)
    return [module.name for module in modules if module.name not in NOT_METHODS]


def _foreign() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _load(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:  # whatever a package of somebody else's raises
        package = f" of {entry.dist.name}" if entry.dist else ""
        raise QdeployError(
            f"method {entry.name!r}{package} cannot be loaded from {entry.value}: "
            f"{type(error).__name__}: {error}; mend or uninstall the package"
        ) from error


def available() -> list[str]:
    """Names of all methods, sorted."""
    return sorted({*_own(), *_foreign()})


def find(name: str) -> Method:
    """The method called `name`, one of our own before one of others.

    Errors: QdeployError with the nearest names if there is none, or if it cannot be loaded.
    """
    if name in _own():
        method: Method = importlib.import_module(f"qdeploy.methods.{name}").METHOD
        return method
    foreign = _foreign()
    if name not in foreign:
        raise QdeployError(
            f"unknown method {name!r}; there are {', '.join(available())}.{did_you_mean(name, available())} "
            f"Another package adds one through the entry-point group {ENTRY_POINT_GROUP!r}."
        )
    loaded = _load(foreign[name])
    if not isinstance(loaded, Method):
        raise QdeployError(
            f"entry point {name!r} of group {ENTRY_POINT_GROUP!r} gives {type(loaded).__name__}, "
            "not a qdeploy.methods.Method"
        )
    return loaded

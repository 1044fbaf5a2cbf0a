"""Finds what a single file adds: a module in one of our packages, or what another package registers."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from qdeploy.errors import QdeployError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Extensions(Generic[T]):
    """Everything of one kind, by name. Listing the names imports none of them.

    noun         what it is called in error messages, such as "method"
    kind         the class that each must be an instance of
    package      the package that holds our own, one a module; it is the entry-point group, too
    declaration  the name that each of these modules gives it
    helpers      modules of the package that hold none
    joint        what joins the words of a name where the file's name has an underscore
    """

    noun: str
    kind: type[T]
    package: str
    declaration: str
    helpers: frozenset[str]
    joint: str = "_"

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._own(), *self._foreign()})

    def find(self, name: str) -> T:
        """The one called `name`; our own come before those of other packages.

        Errors: QdeployError with the nearest names if there is none, or if it cannot be loaded.
        """
        own = self._own()
        if name in own:
            module = importlib.import_module(f"{self.package}.{own[name]}")
            declared: T = getattr(module, self.declaration)
            return declared
        foreign = self._foreign()
        if name not in foreign:
            raise QdeployError(
                f"unknown {self.noun} {name!r}; there are {', '.join(self.names())}."
                f"{did_you_mean(name, self.names())} "
                f"Another package adds one through the entry-point group {self.package!r}."
            )
        loaded = self._load(foreign[name])
        if not isinstance(loaded, self.kind):
            raise QdeployError(
                f"entry point {name!r} of group {self.package!r} gives {type(loaded).__name__}, "
                f"not a {self.package}.{self.kind.__name__}"
            )
        return loaded

    def _own(self) -> dict[str, str]:
        """The modules of our package, by the names of what they declare."""
        files = pkgutil.iter_modules(importlib.import_module(self.package).__path__)
        modules = {file.name for file in files} - self.helpers
        return {module.replace("_", self.joint): module for module in modules}

    def _foreign(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self.package)}

    def _load(self, entry: EntryPoint) -> object:
        try:
            return entry.load()
        except Exception as error:  # whatever a package of somebody else's raises
            package = f" of {entry.dist.name}" if entry.dist else ""
            raise QdeployError(
                f"{self.noun} {entry.name!r}{package} cannot be loaded from {entry.value}: "
                f"{type(error).__name__}: {error}; mend or uninstall the package"
            ) from error

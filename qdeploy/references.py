"""Code that a recipe names, as file.py:name or package.module:name: loaded, and called with options."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from qdeploy.errors import QdeployError, did_you_mean


@dataclass(frozen=True)
class Reference:
    """Something in a file or a module.

    noun   what it is in messages, such as "network"
    given  as the recipe names it, and forms: what else it could be
    place  the file or module, and name: what stands there
    copy   an earlier copy of the file, loaded instead if that file has changed or is gone; either
           way, modules beside the file can be imported
    """

    noun: str
    given: str
    place: str
    name: str
    forms: str
    copy: Path | None = None

    def called(self, options: Mapping[str, Any], **offered: Any) -> Any:
        """What it returns.

        offered   arguments that it gets if it takes them by name, unless an option gives them

        Errors: QdeployError if it is not there, cannot be loaded, or the call fails.
        """
        what = f"{self.noun} {self.given!r}"
        with self._imports_beside():
            function = self.loaded()
            signature = self._signature(function)
            taken = {key: x for key, x in offered.items() if key in signature.parameters}
            given = {**taken, **options}
            try:
                signature.bind(**given)
            except TypeError as error:
                raise QdeployError(
                    f"{what} does not take options {given}: {error}; its signature is {signature}"
                ) from error
            try:
                return function(**given)
            except QdeployError:
                raise
            except Exception as error:
                raise QdeployError(
                    f"{what} with options {dict(options)} raised {told(error)}; its signature is {signature}"
                ) from error

    def _signature(self, function: Callable[..., Any]) -> inspect.Signature:
        try:
            return inspect.signature(function)
        except ValueError:
            raise QdeployError(
                f"{self.noun} {self.given!r} does not say what it takes; name a function or class of Python"
            ) from None

    def loaded(self) -> Callable[..., Any]:
        """The function or class. Errors: QdeployError as `called` has them."""
        module = self._file() if self.place.endswith(".py") else self._module()
        found = getattr(module, self.name, None)
        if callable(found):
            return found
        there = _defined_in(module)
        raise QdeployError(
            f"{self.place} has no function {self.name!r}.{did_you_mean(self.name, there)} "
            f"It has {', '.join(there) or 'none'}"
        )

    def source(self) -> bytes:
        """The content of the file that defines it."""
        if self.place.endswith(".py"):
            return Path(self.place).read_bytes()
        module = self._module()
        try:
            file = inspect.getsourcefile(getattr(module, self.name))
        except TypeError:  # a partial or another callable object
            file = module.__file__
        return Path(file).read_bytes() if file else b""

    @contextmanager
    def _imports_beside(self) -> Iterator[None]:
        """Lets a file import its neighbours; a module is where Python finds it."""
        if not self.place.endswith(".py"):
            yield
            return
        folder = str(Path(self.place).resolve().parent)
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            if folder in sys.path:
                sys.path.remove(folder)

    def _file(self) -> ModuleType:
        path = Path(self.place)
        file = self.copy if self.copy is not None and _differs(self.copy, path) else path
        if not file.is_file():
            raise QdeployError(f"there is no {self.noun} file {file}; give {self.forms}")
        # Under a name of its own, so that the modules of two files do not replace each other.
        name = f"qdeploy_{self.noun.replace(' ', '_')}_{abs(hash(file.resolve()))}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise QdeployError(
                f"{self.noun} file {file} cannot be loaded: {told(error)}"
            ) from error
        return module

    def _module(self) -> ModuleType:
        try:
            return importlib.import_module(self.place)
        except Exception as error:
            raise QdeployError(
                f"{self.noun} module {self.place!r} cannot be imported: {told(error)}; give {self.forms}, "
                "the package installed or its folder on PYTHONPATH"
            ) from error


def told(error: Exception) -> str:
    """An error in the user's own code: its type, its message and, unless that names it, its place."""
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError | ImportError):
        return message
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{message} ({frame.filename}, line {frame.lineno})"


def _defined_in(module: ModuleType) -> list[str]:
    """The functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


def _differs(copy: Path, path: Path) -> bool:
    """Whether there is a copy, and the file itself is gone or differs."""
    return copy.is_file() and not (path.is_file() and path.read_bytes() == copy.read_bytes())

"""Loads a network: a zoo name, file.py:function, or package.module:function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qdeploy.errors import QdeployError, did_you_mean
from qdeploy.models import NETWORKS

if TYPE_CHECKING:
    from torch import nn

FORMS = "a zoo name (see `qdeploy models`), file.py:function or package.module:function"


def load_network(
    reference: str, options: Mapping[str, Any] | None = None, copy: Path | None = None
) -> nn.Module:
    """Calls the function that `reference` names with `options`; it must return an nn.Module.

    copy    an earlier copy of the file in a file.py:function, loaded instead if that file has
            changed or is gone. Either way, modules beside the file can be imported.

    Errors: QdeployError if there is no such file, module or function, if it cannot be loaded, if
    the call fails, or if it returns something else.
    """
    from torch import nn

    given = dict(options or {})
    place, name = _parts(reference)
    with _imports_beside(place):
        function = _function(place, name, copy)
        signature = inspect.signature(function)
        try:
            signature.bind(**given)
        except TypeError as error:
            raise QdeployError(
                f"network {reference!r} does not take options {given}: {error}; its signature is "
                f"{signature}"
            ) from error
        try:
            network = function(**given)
        except Exception as error:
            raise QdeployError(
                f"network {reference!r} with options {given} raised {_told(error)}; its signature "
                f"is {signature}"
            ) from error
    if not isinstance(network, nn.Module):
        raise QdeployError(
            f"network {reference!r} returned {type(network).__name__}; it must return a torch.nn.Module"
        )
    return network


def network_source(reference: str) -> bytes:
    """The content of the file that defines the network."""
    place, name = _parts(reference)
    if place.endswith(".py"):
        return Path(place).read_bytes()
    module = _from_package(place)
    try:
        file = inspect.getsourcefile(getattr(module, name))
    except TypeError:  # a partial or another callable object
        file = module.__file__
    return Path(file).read_bytes() if file else b""


def _parts(reference: str) -> tuple[str, str]:
    """The file or module of a reference, and its function."""
    place, _, name = NETWORKS.get(reference, reference).rpartition(":")
    if not place or not name:
        raise QdeployError(
            f"unknown network {reference!r}.{did_you_mean(reference, NETWORKS)} Give {FORMS}"
        )
    return place, name


def _function(place: str, name: str, copy: Path | None) -> Callable[..., Any]:
    module = _from_file(Path(place), copy) if place.endswith(".py") else _from_package(place)
    function = getattr(module, name, None)
    if not callable(function):
        there = _defined_in(module)
        raise QdeployError(
            f"{place} has no function {name!r}.{did_you_mean(name, there)} "
            f"It has {', '.join(there) or 'none'}"
        )
    return function


def _defined_in(module: ModuleType) -> list[str]:
    """The functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


@contextmanager
def _imports_beside(place: str) -> Iterator[None]:
    """Lets a network's file import its neighbours; a module is where Python finds it."""
    if not place.endswith(".py"):
        yield
        return
    folder = str(Path(place).resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _from_file(path: Path, copy: Path | None) -> ModuleType:
    file = copy if copy is not None and _differs(copy, path) else path
    if not file.is_file():
        raise QdeployError(f"there is no network file {file}; give {FORMS}")
    # Under a name of its own, so that the modules of two files do not replace each other.
    name = f"qdeploy_network_{abs(hash(file.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise QdeployError(f"network file {file} cannot be loaded: {_told(error)}") from error
    return module


def _differs(copy: Path, path: Path) -> bool:
    """Whether there is a copy, and the file itself is gone or differs."""
    return copy.is_file() and not (path.is_file() and path.read_bytes() == copy.read_bytes())


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise QdeployError(
            f"network module {name!r} cannot be imported: {_told(error)}; give {FORMS}, the "
            "package installed or its folder on PYTHONPATH"
        ) from error


def _told(error: Exception) -> str:
    """An error in the user's own code: its type, its message and, unless that names it, its place."""
    told = f"{type(error).__name__}: {error}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, SyntaxError | ImportError):
        return told
    return f"{told} ({frame.filename}, line {frame.lineno})"

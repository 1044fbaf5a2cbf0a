"""Loads a network: a zoo name, file.py:function, or package.module:function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qdeploy.errors import QdeployError
from qdeploy.models import NETWORKS
from qdeploy.validation import did_you_mean

if TYPE_CHECKING:
    from torch import nn

FORMS = "a zoo name (see `qdeploy models`), file.py:function or package.module:function"


def load_network(reference: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Calls the function that `reference` names with `options`; it must return an nn.Module.

    Errors: QdeployError if there is no such file, module or function, if the call fails, or if
    it returns something else.
    """
    from torch import nn

    function = network_function(reference)
    try:
        network = function(**(options or {}))
    except (TypeError, ValueError) as error:
        raise QdeployError(
            f"network {reference!r} does not take options {dict(options or {})}: {error}; "
            f"its signature is {function.__name__}{inspect.signature(function)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise QdeployError(
            f"network {reference!r} returned {type(network).__name__}; it must return a torch.nn.Module"
        )
    return network


def network_function(reference: str) -> Callable[..., Any]:
    """The function behind a reference."""
    module_name, _, name = NETWORKS.get(reference, reference).rpartition(":")
    if not module_name:
        hint = did_you_mean(reference, NETWORKS)
        raise QdeployError(f"unknown network {reference!r};{hint} give {FORMS}")
    module = (
        _from_file(Path(module_name)) if module_name.endswith(".py") else _from_package(module_name)
    )
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise QdeployError(
            f"{module_name} has no function {name!r};{did_you_mean(name, there)} it has {', '.join(there)}"
        )
    return function


def network_source(reference: str) -> str:
    """The source text of the file that defines the network."""
    return Path(inspect.getsourcefile(network_function(reference)) or "").read_text()


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise QdeployError(f"there is no network file {path}; give {FORMS}")
    # Under its own name, so that networks of two files do not meet.
    name = f"qdeploy_network_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))  # the file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise QdeployError(
            f"network file {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.pop(0)
    return module


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise QdeployError(
            f"network module {name!r} cannot be imported: {error}; give {FORMS}"
        ) from error

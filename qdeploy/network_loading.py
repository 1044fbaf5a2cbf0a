"""Loads a network: a zoo name, file.py:function, or package.module:function."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdeploy.errors import QdeployError, did_you_mean
from qdeploy.models import NETWORKS
from qdeploy.references import Reference

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

    network = network_reference(reference, copy).called(options or {})
    if not isinstance(network, nn.Module):
        raise QdeployError(
            f"network {reference!r} returned {type(network).__name__}; it must return a torch.nn.Module"
        )
    return network


def network_source(reference: str) -> bytes:
    """The content of the file that defines the network."""
    return network_reference(reference).source()


def network_reference(reference: str, copy: Path | None = None) -> Reference:
    """Errors: QdeployError for what is neither a zoo name nor names a place and a function."""
    place, _, name = NETWORKS.get(reference, reference).rpartition(":")
    if not place or not name:
        raise QdeployError(
            f"unknown network {reference!r}.{did_you_mean(reference, NETWORKS)} Give {FORMS}"
        )
    return Reference("network", reference, place, name, FORMS, copy)

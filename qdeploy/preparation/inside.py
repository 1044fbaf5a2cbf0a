"""A prepared network inside another module: a Sequential with a softmax, a LightningModule, an average.

What only runs a network elsewhere or averages it is taken off: the network in it is meant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from qdeploy.errors import QdeployError
from qdeploy.preparation.features import Features
from qdeploy.preparation.prepared import PreparedNetwork, wrapped_by


def unwrapped(module: nn.Module) -> nn.Module:
    """What a wrapper runs, one of torch's or what qdeploy.features gives."""
    while inner := module.prepared if isinstance(module, Features) else wrapped_by(module):
        module = inner
    return module


def holds_prepared(module: nn.Module) -> bool:
    """Whether it is a prepared network or has one inside."""
    return any(isinstance(part, PreparedNetwork) for part in module.modules())


def with_prepared_replaced(
    module: nn.Module, replace: Callable[[PreparedNetwork], nn.Module]
) -> nn.Module:
    """A copy with another module in the place of each prepared network.

    Errors: QdeployError where there is none.
    """
    inner = {id(part): unwrapped(part) for part in module.modules()}
    prepared = {id(part): part for part in inner.values() if isinstance(part, PreparedNetwork)}
    if not prepared:
        raise QdeployError(
            f"convert takes what qdeploy.prepare returned, not {type(module).__name__}, which holds "
            "no prepared network either"
        )
    replaced = {key: replace(part) for key, part in prepared.items()}
    # deepcopy finds copied already what stands for another module.
    return copy.deepcopy(
        module, {key: replaced[id(part)] for key, part in inner.items() if id(part) in replaced}
    )

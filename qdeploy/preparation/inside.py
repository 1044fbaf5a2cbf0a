"""A prepared network inside another module: a Sequential with a softmax, a LightningModule, an average.

What only runs a network elsewhere or averages it is taken off: the network in it is meant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from qdeploy.errors import QdeployError
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.preparation.features import Features
from qdeploy.preparation.prepared import PreparedNetwork

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel, OptimizedModule, Features)


def unwrapped(module: nn.Module) -> nn.Module:
    """What a wrapper runs: data parallelism, an average, what torch.compile and qdeploy.features give."""
    while isinstance(module, WRAPPERS):
        if isinstance(module, Features):
            module = module.prepared
        else:
            module = module._orig_mod if isinstance(module, OptimizedModule) else module.module
    return module


def is_flattened(network: nn.Module) -> bool:
    """Whether FSDP 1 keeps the weights of layers in one long parameter, of which they are views at most."""
    layers = [layer for layer in layers_of(network) if not is_computed(layer)]
    weights = [layer._parameters.get("weight") for layer in layers]
    return any(weight is None or weight.ndim < 2 for weight in weights)


def is_computed(layer: nn.Module) -> bool:
    """Whether torch computes its weight anew from others: a parametrization, torch.nn.utils.prune."""
    return hasattr(layer, "parametrizations") or is_hooked(layer)


def is_hooked(layer: nn.Module) -> bool:
    """Whether a hook does so, which leaves in its place a tensor that cannot be copied."""
    return any(name.startswith("weight_") for name, _ in layer.named_parameters(recurse=False))


def is_spread(network: nn.Module) -> bool:
    """Whether each process has a part of the weights alone, by either FSDP."""
    sharded = any(hasattr(layer.weight, "full_tensor") for layer in layers_of(network))
    return sharded or is_flattened(network)


def layers_of(network: nn.Module) -> list[QuantizedLayer]:
    return [module for module in network.modules() if isinstance(module, QuantizedLayer)]


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

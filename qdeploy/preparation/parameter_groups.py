"""Which parameters decay: groups for any optimizer of torch."""

from __future__ import annotations

from typing import Any

from torch import nn

from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.weight import WeightQuantizer

NORMS = (
    nn.modules.batchnorm._NormBase,  # of BatchNorm and InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
QUANTIZERS = (ActivationQuantizer, WeightQuantizer)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of the parameters of a prepared network, or of a module with some inside, for an optimizer.

        torch.optim.SGD(qdeploy.parameter_groups(prepared, weight_decay=1e-4), lr=0.1)

    The weights decay by `weight_decay`, and what a method gives a decay of its own (PACT's alpha) by
    that. The rest does not: a bias, a step or anything in a normalisation layer has its size for a
    reason. A weight is a tensor of two or more dimensions outside of those layers, so a float
    network has its groups too.

    Frozen parameters are there as well, and an optimizer passes them by. So a saved state of the
    optimizer fits whatever is frozen.
    """
    own = own_decays(network)
    weights: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter, module in owners(network).items():
        if parameter not in own:
            is_weight = parameter.ndim > 1 and not isinstance(module, NORMS)
            (weights if is_weight else rest).append(parameter)
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
        *(
            {"params": [p for p in own if own[p] == decay], "weight_decay": decay}
            for decay in dict.fromkeys(own.values())
        ),
    ]


def own_decays(network: nn.Module) -> dict[nn.Parameter, float]:
    """The parameters of quantizers that have a weight decay of their own."""
    quantizers = (m for m in network.modules() if isinstance(m, QUANTIZERS))
    return {getattr(q, name): decay for q in quantizers for name, decay in q.decays.items()}


def owners(network: nn.Module) -> dict[nn.Parameter, nn.Module]:
    """Each parameter, with the last module that has it."""
    return {p: module for module in network.modules() for p in module.parameters(recurse=False)}

"""The optimizer of a recipe: what decays, and what leaves when it is frozen."""

from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from qdeploy.recipe import TrainSection

NORMS = (
    nn.modules.batchnorm._NormBase,  # of BatchNorm and InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def make_optimizer(network: nn.Module, settings: TrainSection) -> Optimizer:
    """SGD, Adam or AdamW over the parameters of `network` that require a gradient.

    On a GPU fused: one pass over parameter, gradient and state, and no copy of any of them. Not
    under fp16, where a fused optimizer scales the gradients back itself, too late to clip them; nor
    on a CPU, where a resumed run would end in other last bits.
    """
    groups = parameter_groups(network, settings.weight_decay)
    on_gpu = any(p.is_cuda for p in network.parameters())
    fused = {"fused": True} if on_gpu and settings.precision != "fp16" else {}
    return OPTIMIZERS[settings.optimizer](groups, **hyperparameters(settings) | fused)


def adjust_optimizer(optimizer: Optimizer, settings: TrainSection) -> None:
    """Give an optimizer of make_optimizer other settings of its kind; its momentum stays."""
    for group in optimizer.param_groups:
        group.update(hyperparameters(settings))
    weights, _ = optimizer.param_groups
    weights["weight_decay"] = settings.weight_decay


def hyperparameters(settings: TrainSection) -> dict[str, Any]:
    """What both groups of parameters have alike."""
    if settings.optimizer == "sgd":
        return {"lr": settings.lr, "momentum": settings.momentum, "nesterov": settings.nesterov}
    return {"lr": settings.lr, "betas": settings.betas}


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: the weights, which decay, and the rest, which does not.

    A bias, a scale or anything in a normalisation layer has its size for a reason of its own;
    only tensors of two or more dimensions outside those layers decay. Both groups are always
    there, so that a checkpoint's optimizer state fits however many parameters are frozen.
    """
    decays: dict[nn.Parameter, bool] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                decays[parameter] = parameter.ndim > 1 and not isinstance(module, NORMS)
    return [
        {"params": [p for p, decay in decays.items() if decay], "weight_decay": weight_decay},
        {"params": [p for p, decay in decays.items() if not decay], "weight_decay": 0.0},
    ]


def drop_frozen(optimizer: Optimizer) -> None:
    """Take out the parameters that no longer require a gradient, with their state and gradient.

    Otherwise momentum and weight decay would go on moving a weight that is already committed.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad:
                parameter.grad = None
                optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if p.requires_grad]

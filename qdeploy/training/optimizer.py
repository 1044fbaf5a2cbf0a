"""The optimizer of a recipe."""

from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from qdeploy.preparation.parameter_groups import parameter_groups
from qdeploy.recipe import TrainSection

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def make_optimizer(network: nn.Module, settings: TrainSection) -> Optimizer:
    """SGD, Adam or AdamW over the parameters of `network`.

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
    weights, *_ = optimizer.param_groups
    weights["weight_decay"] = settings.weight_decay


def hyperparameters(settings: TrainSection) -> dict[str, Any]:
    """What all groups of parameters have alike."""
    if settings.optimizer == "sgd":
        return {"lr": settings.lr, "momentum": settings.momentum, "nesterov": settings.nesterov}
    return {"lr": settings.lr, "betas": settings.betas}

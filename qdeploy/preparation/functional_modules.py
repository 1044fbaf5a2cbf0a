"""Functions that do other things in training become the modules they stand for.

Tracing runs forward in one mode, so that the `training` argument of F.dropout and F.batch_norm is a
constant of the graph. A module follows the mode, and a BatchNorm that is a module folds.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qdeploy.errors import QdeployError
from qdeploy.layers.norm import BATCH_NORMS
from qdeploy.preparation.graph import free_name, replace, scope_of
from qdeploy.preparation.vocabulary import Argument, argument, operator_of

NORM_ARGUMENTS = {
    "input": None, "running_mean": None, "running_var": None, "weight": None, "bias": None,
    "training": False, "momentum": 0.1, "eps": 1e-5,
}  # fmt: skip


def dropouts_as_modules(network: fx.GraphModule) -> None:
    """Each functional dropout."""
    for node in list(network.graph.nodes):
        row = operator_of(node, network)
        if row.module and row.silent and node.op == "call_function":
            name = free_name(f"{scope_of(node)}.{node.name}".lstrip("."), network)
            network.add_submodule(name, row.module(argument(node, network, Argument("p", 1, 0.5))))
            call_instead(node, name)


def norms_as_modules(
    network: fx.GraphModule, model: nn.Module, training: fx.GraphModule | None
) -> None:
    """Each F.batch_norm that normalises by its batch in training, by running statistics otherwise.

    network    of evaluation, its nodes with their shapes
    model      that was traced
    training   the model traced in training; None where that could not be done

    Errors: QdeployError where it cannot be known what training does.
    """
    in_training = {} if training is None else {_key(g): g for _, g in norm_calls(training)}
    made: dict[str, str] = {}
    for node, given in list(norm_calls(network)):
        owner_name, _, _ = (mean := _key(given)).rpartition(".")
        owner = model.get_submodule(owner_name)
        trained = in_training.get(mean, {"training": True} if is_norm(owner) else None)
        if trained is None:
            raise QdeployError(
                f"{node.name} (F.batch_norm) normalises by statistics that forward does not give it in "
                "training, so that it is not known what it does there; use nn.BatchNorm1d, 2d or 3d"
            )
        if given["training"] or not trained["training"]:
            continue  # it does the same in both modes
        if mean not in made:
            made[mean] = free_name(f"{owner_name}.batch_norm".lstrip("."), network)
            norm = norm_of(node, given | {"momentum": trained.get("momentum")}, owner, network)
            network.add_submodule(made[mean], norm)
        call_instead(node, made[mean])


def norm_calls(network: fx.GraphModule) -> Iterator[tuple[fx.Node, dict[str, Any]]]:
    """Each call of F.batch_norm and its arguments by name."""
    for node in network.graph.nodes:
        if node.target is F.batch_norm:
            given = dict(zip(NORM_ARGUMENTS, node.args, strict=False))
            yield node, NORM_ARGUMENTS | given | node.kwargs


def _key(given: dict[str, Any]) -> str:
    """What tells a norm from others: where its running mean stands; nothing without one."""
    mean = given["running_mean"]
    return str(mean.target) if isinstance(mean, fx.Node) else ""


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm)


def norm_of(
    node: fx.Node, given: dict[str, Any], owner: nn.Module, network: fx.GraphModule
) -> _BatchNorm:
    """The BatchNorm that a call of F.batch_norm is, with the very parameters that it is given."""
    tensors = {name: given[name] for name in ("running_mean", "running_var", "weight", "bias")}
    if any(isinstance(x, fx.Node) and x.op != "get_attr" for x in tensors.values()):
        raise QdeployError(
            f"{node.name} (F.batch_norm) computes its weight or its statistics in forward, so that "
            "they cannot fold into a layer; multiply by the weight behind an nn.BatchNorm without one"
        )
    values = {n: x and attrgetter(str(x.target))(network) for n, x in tensors.items()}
    dimensions = len(node.meta["tensor_meta"].shape) - 2
    kind = BATCH_NORMS[max(dimensions, 1) - 1]
    norm = kind(len(values["running_mean"]), given["eps"], given["momentum"])
    for name, value in values.items():
        setattr(norm, name, value)
    if isinstance(owner, _BatchNorm):
        norm.momentum, norm.num_batches_tracked = owner.momentum, owner.num_batches_tracked
    return norm


def call_instead(node: fx.Node, name: str) -> None:
    """Calls a module on the first thing that the node reads, in place of the node."""
    with node.graph.inserting_after(node):
        call = node.graph.call_module(name, (node.all_input_nodes[0],))
    call.meta = dict(node.meta)
    replace(node, call)

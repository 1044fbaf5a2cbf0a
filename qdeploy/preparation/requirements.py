"""What a network must be so that it can be traced: errors that name what is in the way."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qdeploy.errors import QdeployError
from qdeploy.preparation.graph import Interpreter

FX_NAMES = ("graph", "meta", "self")


def check_leaves(model: nn.Module, leaves: Iterable[str]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    for glob in leaves:
        if not fnmatch.filter(names, glob):
            raise QdeployError(
                f"leaves: {glob!r} matches no module; the network's modules are {', '.join(names)}"
            )


def check_modules(model: nn.Module) -> None:
    """Errors: QdeployError for weights that are not float32, hooks, which a graph has not, and fx's names."""
    taken = [name for name, _ in model.named_children() if name in FX_NAMES]
    if taken:
        raise QdeployError(
            f"{type(model).__name__} has a module named {taken[0]}, a name that torch.fx has for something "
            "of its own; rename it"
        )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise QdeployError(
                f"{name} is {parameter.dtype}; prepare takes float32 networks: call network.float()"
            )
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise QdeployError(
                f"{name or type(model).__name__} has forward hooks, which the traced network would "
                "lose. Remove them: weight_norm, spectral_norm and pruning by remove_weight_norm, "
                "remove_spectral_norm and prune.remove, others by their handle"
            )


def check_input(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Runs the model once in evaluation mode. Errors: QdeployError naming the layer that fails."""
    running: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        module.register_forward_hook(lambda *_: running.pop() and None)
    try:
        with torch.no_grad():
            model.eval()(*map(torch.clone, inputs))
    except Exception as error:
        shapes = " and ".join(str(list(x.shape)) for x in inputs)
        where = f" in {running[-1]}" if running and running[-1] else ""
        raise QdeployError(
            f"{type(model).__name__} cannot take an input of shape {shapes}{where}: {error}"
        ) from error


def check_repeatable(network: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Leaves the network in evaluation mode.

    Errors: QdeployError naming the first value that two runs disagree on.
    """
    with torch.no_grad():
        if _equal(network.eval()(*inputs), network(*inputs)):
            return
    first, second = Values(network), Values(network)
    first.run(*inputs)
    second.run(*inputs)
    for node, value in first.values.items():
        if not _equal(value, second.values[node]):
            label = node.target if node.op == "call_module" else node.name
            raise QdeployError(
                f"{label} gives another value at every call, also in evaluation: a network "
                "that draws random numbers there cannot be exported; make it depend on self.training"
            )


class Values(Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = pytree.tree_map_only(Tensor, torch.clone, value)
        return value


def _equal(first: Any, second: Any) -> bool:
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor)]
    return all(torch.allclose(a, b, rtol=1e-4, equal_nan=True) for a, b in tensors)

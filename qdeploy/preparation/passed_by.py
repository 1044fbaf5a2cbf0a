"""Modules that the graph of a prepared network passes by: they refuse what would be silently without effect.

A container's forward is written out, a ReLU may stand elsewhere, and a layer runs the BatchNorm that it
joined. A hook there would never fire, and a call would compute something else than in float.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from qdeploy.errors import QdeployError
from qdeploy.preparation.prepared import PreparedNetwork

HOOKS = (
    "register_forward_pre_hook", "register_forward_hook", "register_full_backward_pre_hook",
    "register_full_backward_hook", "register_backward_hook",
)  # fmt: skip
CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # what is added to them, forward would run


class Refusal:
    """Stands in the place of a method and raises when it is called."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise QdeployError(self.text)


def refuse_what_is_passed_by(prepared: PreparedNetwork, called_in_float: Iterable[str]) -> None:
    """Lets the modules that only the float network calls refuse calls and hooks; given are their names."""
    graphs = prepared.plan.evaluation.graph, prepared.plan.training.graph
    calls = {str(node.target) for graph in graphs for node in graph.find_nodes(op="call_module")}
    running = {module for name in calls for module in prepared.get_submodule(name).modules()}
    for _, layer in prepared.quantized_layers():  # which runs its norm, and what that holds
        running.update([] if layer.norm is None else [*layer.norm.modules()][1:])
    for name in called_in_float:
        module = prepared.get_submodule(name)
        if name and module not in running:
            refuse(module, name)
    prepared.plan.chains = {
        name: [child for child, _ in module.named_children()]
        for name, module in prepared.named_modules()
        if isinstance(module, CHAINS) and module not in running
    }


def is_passed_by(module: nn.Module) -> bool:
    return isinstance(vars(module).get(HOOKS[0]), Refusal)


def refuse(module: nn.Module, name: str) -> None:
    refusal = Refusal(
        f"{name} is not called by the prepared network, which runs as one graph: what it computes is done "
        f'by the layers. qdeploy.features(prepared, ["{name}"]) gives its output as the file has it; '
        "hooks fire on the layers and on the whole network, and only the whole network can be called"
    )
    module.register_forward_pre_hook(refusal)
    for hook in HOOKS:
        module.__dict__[hook] = refusal

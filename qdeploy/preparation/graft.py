"""A graph that was made of a float network goes back into it, part by part: a prepared network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from qdeploy.errors import QdeployError
from qdeploy.preparation.modes import forwards
from qdeploy.preparation.prepared import Plan, PreparedNetwork, without_init
from qdeploy.preparation.settings import LayerSettings


def prepared_network(
    model: nn.Module, network: fx.GraphModule, settings: Mapping[str, LayerSettings | None]
) -> PreparedNetwork:
    """The model, in place, with the modules and parameters of a graph that was made of it.

    Errors: QdeployError for a name that a prepared network has for something of its own.
    """
    check_names(model)
    graft(network, model)
    if isinstance(model, fx.GraphModule):  # its class is its forward, and no base of another
        model = plain(model)
    prepared = without_init(type(model))
    prepared.__dict__.update(vars(model))
    graphs = forwards(network)
    plan = Plan(*graphs, settings=dict(settings), norms=joined_norms(prepared))
    calls = [str(n.target) for f in graphs for n in f.graph.find_nodes(op="call_module")]
    plan.parts = {name: prepared.get_submodule(name) for name in (*calls, *plan.norms.values())}
    prepared.__dict__["plan"] = plan  # the user's class may have a __setattr__ of its own
    return prepared


def plain(model: nn.Module) -> nn.Module:
    """A module of no class of its own that holds what the model holds."""
    made = nn.Module().train(model.training)
    for ours, theirs in zip(members(made), members(model), strict=True):
        ours.update(theirs)
    return made


def check_names(model: nn.Module) -> None:
    own = vars(PreparedNetwork).keys() | PreparedNetwork.__annotations__.keys()
    inherited = vars(nn.Module).keys()
    clashes = [
        name for name in own - inherited if not name.startswith("__") and hasattr(model, name)
    ]
    if clashes:
        raise QdeployError(
            f"{type(model).__name__} has {', '.join(sorted(clashes))}, which a prepared network has for "
            "something of its own; rename it, or prepare the part of the network without it"
        )


def joined_norms(prepared: PreparedNetwork) -> dict[str, str]:
    """The name of the norm that each layer runs, by the layer's."""
    names = {module: name for name, module in prepared.named_modules()}
    layers = prepared.quantized_layers()
    return {name: names[layer.norm] for name, layer in layers if layer.norm is not None}


def graft(network: nn.Module, model: nn.Module) -> None:
    """Puts the modules, parameters and buffers of a graph into a model, by their names, in place.

    What the model holds under several names is replaced under all of them.
    """
    replaced: dict[int, tuple[Any, Any]] = {}  # with the old ones, so that no id stands for two
    replace_by_name(network, model, replaced)
    for module in list(model.modules()):
        for parts in members(module):
            for name, old in parts.items():
                parts[name] = replaced.get(id(old), (old, old))[1]


def replace_by_name(
    network: nn.Module, model: nn.Module, replaced: dict[int, tuple[Any, Any]]
) -> None:
    for name, part in network._modules.items():
        old = model._modules.get(name)
        if type(part) is nn.Module and old is not None:  # torch.fx's own, which only holds others
            replace_by_name(part, old, replaced)
        elif old is not part:
            model._modules[name], replaced[id(old)] = part, (old, part)
    for new, own in list(zip(members(network), members(model), strict=True))[1:]:
        for name, tensor in new.items():
            old, own[name] = own.get(name), tensor
            replaced[id(old)] = old, tensor
    replaced.pop(id(None), None)


def members(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Its modules, parameters and buffers by name."""
    return module._modules, module._parameters, module._buffers

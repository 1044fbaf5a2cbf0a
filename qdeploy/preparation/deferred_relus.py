"""Where a ReLU stands: right behind its layer, and in training inside of the quantizer behind it."""

from __future__ import annotations

import copy

from torch import fx

from qdeploy.layers.activation import ActivationQuantizer, DeferredReLU
from qdeploy.preparation.graph import (
    called_module,
    float_inputs,
    free_name,
    is_tuple,
    module_calls,
    scope_of,
)
from qdeploy.preparation.quantizer_placement import is_mover
from qdeploy.preparation.tracer import TrainingOnly
from qdeploy.preparation.vocabulary import GETITEM, bounds_of, is_relu, operator_of


def clips_first(network: fx.GraphModule) -> None:
    """Rewrites relu(move(x)) as move(relu(x)), the same values, so that a ReLU joins its Conv."""
    for node in list(network.graph.nodes):
        if bounds_of(node, network) is None:  # a bound that is a tensor may be of fewer channels
            continue
        passed = False
        while _can_pass(node, mover := node.all_input_nodes[0], network):
            source = mover.all_input_nodes[0]
            node.replace_all_uses_with(mover)
            mover.replace_input_with(source, node)
            node.replace_input_with(mover, source)
            mover.prepend(node)
            node.meta["tensor_meta"] = source.meta["tensor_meta"]
            passed = True
        if passed:
            leave_own_name(node, network)


def leave_own_name(node: fx.Node, network: fx.GraphModule) -> None:
    """Calls the clip by another name: it no longer gives what the user's module of that name gives."""
    module = called_module(node, network)
    if module is not None:
        node.target = free_name(f"{node.target}_before", network)
        network.add_submodule(node.target, copy.deepcopy(module))


def _can_pass(clip: fx.Node, mover: fx.Node, network: fx.GraphModule) -> bool:
    """True for an operator that moves one tensor, which nothing but the clip reads."""
    if len(mover.users) != 1 or not is_mover(mover, network):
        return False
    if isinstance(called_module(mover, network), TrainingOnly):
        return False  # it may do anything there
    row = operator_of(mover, network)
    # Other bounds may not leave zeros as they are, and are not those of scaled values.
    if row is GETITEM or (row.inserts_zeros and not is_relu(clip, network)):
        return False
    sources = float_inputs(mover)
    if sources != mover.all_input_nodes[:1] or is_tuple(sources[0]):
        return False
    return len(sources[0].users) == 1


def defer_relus(network: fx.GraphModule) -> None:
    """Leaves each ReLU that only quantizers with a range from 0 read to them, in training.

    A module keeps its name where it is left to them wherever it is called, so that hooks on it fire.
    """
    calls = module_calls(network)
    deferred = [relu for places in calls.values() for relu in taken_over(places, network)]
    for relu in deferred:
        own = relu.op == "call_module" and set(calls[str(relu.target)]) <= set(deferred)
        place = f"{scope_of(relu)}.{relu.name}".lstrip(".")
        name = str(relu.target) if own else free_name(place, network)
        replaced = network.get_submodule(name) if own else None
        if not isinstance(replaced, DeferredReLU):
            network.set_submodule(name, DeferredReLU(replaced))
        relu.op, relu.target = "call_module", name
        relu.args, relu.kwargs = tuple(relu.all_input_nodes), {}


def taken_over(places: list[fx.Node], network: fx.GraphModule) -> list[fx.Node]:
    """The ReLUs that a module takes over if it is a quantizer that can; `places` are where it is called."""
    quantizer = network.get_submodule(str(places[0].target))
    relus = [place.all_input_nodes[0] for place in places if place.all_input_nodes]
    if not (isinstance(quantizer, ActivationQuantizer) and quantizer.can_take_over_relu):
        return []
    if not all(is_relu(relu, network) and len(relu.users) == 1 for relu in relus):
        return []
    quantizer.take_over_relu()
    return relus

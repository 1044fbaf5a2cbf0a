"""The activation quantizers of a prepared network."""

from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.preparation.graph import called_module
from qdeploy.preparation.prepared import graph_module


def calls(prepared):
    """The nodes that call them, the first call of each, by the name of the node that they read."""
    network = graph_module(prepared)
    found = {}
    for node in network.graph.nodes:
        known = {other.target for other in found.values()}
        if (
            isinstance(called_module(node, network), ActivationQuantizer)
            and node.target not in known
        ):
            found[node.all_input_nodes[0].name] = node
    return found


def activations(prepared):
    """They, by the name of the node that they read."""
    return {name: prepared.get_submodule(node.target) for name, node in calls(prepared).items()}

"""Parameters of quantized layers that something else reads: the weight is what the layer multiplies by."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, fx

from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.preparation.graph import called_module, replace


def read_from_quantizers(network: fx.GraphModule) -> None:
    """While a layer trains, its quantizer gives the weight."""
    for node in list(network.graph.nodes):
        if belongs_to_layer(node, network) and str(node.target).endswith(".weight"):
            with network.graph.inserting_before(node):
                owner = str(node.target).removesuffix(".weight")
                given = network.graph.call_module(f"{owner}.quantizer")
            given.meta = dict(node.meta)
            replace(node, given)


@torch.no_grad()
def as_constants(network: fx.GraphModule) -> None:
    """Where training has ended, weight and bias are constants beside the layer."""
    for node in list(network.graph.nodes):
        quantizer = called_module(node, network)
        if isinstance(quantizer, WeightQuantizer):
            value: Tensor = quantizer()
        elif belongs_to_layer(node, network):
            value = attrgetter(str(node.target))(network)
        else:
            continue
        network.register_buffer(f"{node.name}_read", value.detach())
        with network.graph.inserting_before(node):
            replace(node, network.graph.get_attr(f"{node.name}_read"))


def belongs_to_layer(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it reads a parameter of a quantized layer."""
    owner, _, _ = str(node.target).rpartition(".")
    return node.op == "get_attr" and isinstance(network.get_submodule(owner), QuantizedLayer)

"""What an integer network consists of, layer by layer: bits, codes, bytes."""

from __future__ import annotations

import math

import numpy as np
from torch import fx, nn

from qdeploy.deploy import packing
from qdeploy.layers.integer import IntegerActivation, IntegerLayer, IntegerNorm
from qdeploy.preparation.convert import source_activation
from qdeploy.preparation.trace import called_module
from qdeploy.record import Layer

BYTES_PER_CHANNEL = 8  # float32 scale, int32 bias


def describe(network: fx.GraphModule) -> tuple[Layer, ...]:
    """The layers that hold parameters, in the order the network runs them."""
    nodes = _nodes_with_parameters(network)
    modules = [network.get_submodule(str(node.target)) for node in nodes]
    integer = [module for module in modules if isinstance(module, IntegerLayer)]
    plans = packing.plan([layer.codes.numpy() for layer in integer])
    packings = dict(zip(integer, plans, strict=True))
    return tuple(
        _integer_layer(node, module, packings[module], network)
        if module in packings and not isinstance(module, IntegerNorm)
        else _float_layer(node, module)
        for node, module in zip(nodes, modules, strict=True)
    )


def information_bound(network: nn.Module, layers: tuple[Layer, ...]) -> int:
    """Bytes that any file of this network needs.

    log2(levels) x weights / 8 + 4 for each scale and bias of the quantized layers + 4 for each
    float parameter and BatchNorm statistic elsewhere.
    """
    quantized = sum(layer.bound_bytes for layer in layers if layer.weight_bits is not None)
    return quantized + 4 * sum(_float_values(module) for module in network.modules())


def _nodes_with_parameters(network: fx.GraphModule) -> list[fx.Node]:
    """The first call of each module that holds parameters."""
    first: dict[nn.Module, fx.Node] = {}
    for node in network.graph.nodes:
        module = called_module(node, network)
        if isinstance(module, IntegerLayer) or (
            module and any(map(_float_values, module.modules()))
        ):
            first.setdefault(module, node)
    return list(first.values())


def _integer_layer(
    node: fx.Node, layer: IntegerLayer, packed: packing.Packing | None, network: fx.GraphModule
) -> Layer:
    codes = layer.codes.numpy()
    information = codes.size * math.log2(len(layer.grid.codes)) / 8
    values, counts = np.unique(codes // layer.spread, return_counts=True)
    activation = source_activation(node.all_input_nodes[0], network)
    return Layer(
        name=str(node.target),
        kind=layer.kind,
        weight_bits=layer.grid.bits,
        act_bits=None if activation is None else activation.grid.bits,
        weights=codes.size,
        levels={int(value): int(count) for value, count in zip(values, counts, strict=True)},
        weight_bytes=codes.nbytes if packed is None else packed.file_size(codes.size),
        bound_bytes=math.ceil(information) + BYTES_PER_CHANNEL * len(codes),
    )


def _float_layer(node: fx.Node, module: nn.Module) -> Layer:
    values = sum(map(_float_values, module.modules()))
    size = 4 * values
    kind = module.kind if isinstance(module, IntegerNorm) else type(module).__name__
    return Layer(str(node.target), kind, None, None, values, {}, size, size)


def _float_values(module: nn.Module) -> int:
    """Parameters and floating statistics that a module itself holds, quantized ones left out."""
    if isinstance(module, IntegerNorm):
        return module.scale.numel() + module.bias.numel()
    if isinstance(module, IntegerLayer | IntegerActivation):
        return 0
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())

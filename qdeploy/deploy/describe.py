"""What an integer network consists of, layer by layer: bits, codes, bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import fx, nn

from qdeploy.deploy import packing
from qdeploy.deploy.convert import IntegerActivation, IntegerLayer
from qdeploy.preparation.trace import called_module
from qdeploy.report.record import Layer

BYTES_PER_CHANNEL = 8  # float32 scale, int32 bias


def describe(network: fx.GraphModule) -> tuple[Layer, ...]:
    """The layers that hold parameters, in the order the network runs them."""
    return tuple(_layers(network))


def information_bound(network: nn.Module, layers: tuple[Layer, ...]) -> int:
    """Bytes that any file of this network needs.

    bits x weights / 8 + 4 for each scale and bias of the quantized layers + 4 for each float
    parameter and BatchNorm statistic elsewhere.
    """
    quantized = sum(layer.bound_bytes for layer in layers if layer.weight_bits is not None)
    return quantized + 4 * sum(_float_values(module) for module in network.modules())


def _layers(network: fx.GraphModule) -> Iterator[Layer]:
    seen: set[nn.Module] = set()
    for node in network.graph.nodes:
        module = called_module(node, network)
        if module is None or module in seen:
            continue
        seen.add(module)
        if isinstance(module, IntegerLayer):
            yield _integer(str(node.target), module, _act_bits(node.all_input_nodes[0], network))
        elif values := sum(_float_values(part) for part in module.modules()):
            kind = type(module).__name__
            yield Layer(str(node.target), kind, None, None, values, {}, 4 * values, 4 * values)


def _integer(name: str, layer: IntegerLayer, act_bits: int | None) -> Layer:
    codes = layer.codes.numpy()
    values, counts = np.unique(codes // layer.spread, return_counts=True)
    chosen = packing.choose(codes)
    return Layer(
        name=name,
        kind=layer.kind,
        weight_bits=layer.grid.bits,
        act_bits=act_bits,
        weights=codes.size,
        levels={int(value): int(count) for value, count in zip(values, counts, strict=True)},
        weight_bytes=codes.size if chosen is None else chosen.file_size(codes.size),
        bound_bytes=-(-codes.size * layer.grid.bits // 8) + BYTES_PER_CHANNEL * len(codes),
    )


def _act_bits(source: fx.Node, network: fx.GraphModule) -> int | None:
    """Bits of the tensor a layer reads; a moved tensor has those of where it was made."""
    while str(source.target).startswith("moved."):
        source = source.all_input_nodes[0].all_input_nodes[0]
    quantizer = called_module(source, network)
    return quantizer.grid.bits if isinstance(quantizer, IntegerActivation) else None


def _float_values(module: nn.Module) -> int:
    """Parameters and floating statistics that a module itself holds, quantized ones left out."""
    if isinstance(module, IntegerLayer | IntegerActivation):
        return 0
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())

"""What an exported network consists of, layer by layer: bits, codes, and its bytes in the file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from qdeploy.deploy.contents import FileLayer
from qdeploy.layers.exact_product import ExactProduct
from qdeploy.layers.integer import IntegerActivation, IntegerLayer, IntegerNorm
from qdeploy.layers.recurrent import Recurrent
from qdeploy.preparation.graph import called_module
from qdeploy.preparation.integer_kernels import source_activation
from qdeploy.record import ShippedLayer

BYTES_PER_CHANNEL = 8  # float32 scale, int32 bias


def describe(network: fx.GraphModule, file: Sequence[FileLayer]) -> tuple[ShippedLayer, ...]:
    """The layers that hold parameters, in the order the network runs them.

    network   integers, or a traced float network
    file      the layers of what it was exported to, as `inspect` reads them

    A float layer that is no product there, such as a LayerNorm, has 4 bytes a value, and a BatchNorm
    behind a layer those of the bias that it leaves there.
    """
    stored = {layer.name: layer.all_bytes for layer in file}
    folded = _folded_values(network)
    layers = []
    for name, module, node in _with_parameters(network):
        if isinstance(module, IntegerLayer) and not isinstance(module, IntegerNorm):
            held = stored[name] if name in stored else _of_twin(module, network, stored)
            reads = source_activation(node.all_input_nodes[0], network)
            layers.append(_integer_layer(name, module, held, reads))
        else:
            layers.append(_float_layer(name, module, stored.get(name), folded.get(module)))
    return tuple(layers)


def _of_twin(layer: IntegerLayer, network: nn.Module, stored: dict[str, int]) -> int:
    """What the file holds for a layer that is called again; 0 if it has no use for it."""
    for name, module in network.named_modules():
        same = isinstance(module, IntegerLayer) and torch.equal(module.codes, layer.codes)
        if same and name in stored:
            return stored[name]
    return 0


def information_bound(network: fx.GraphModule, layers: tuple[ShippedLayer, ...]) -> int:
    """Bytes that any file of this network needs.

    log2(levels in use) x weights / 8 + 4 for each scale and bias of the quantized layers + 4 for each
    float parameter elsewhere; for a BatchNorm behind a layer, for the bias that it leaves there.
    """
    quantized = sum(layer.bound_bytes for layer in layers if layer.weight_bits is not None)
    folded = _folded_values(network)
    return quantized + 4 * sum(folded.get(m, _float_values(m)) for m in network.modules())


def _with_parameters(network: fx.GraphModule) -> list[tuple[str, nn.Module, fx.Node]]:
    """Name and first call of each module that holds parameters; the matrices of a recurrent one apart."""
    first: dict[nn.Module, tuple[str, nn.Module, fx.Node]] = {}
    for node in network.graph.nodes:
        module, name = called_module(node, network), str(node.target)
        parts = [(name, module)]
        if isinstance(module, Recurrent):
            parts = [(f"{name}.{own}", part) for own, part in module.parts()]
        for own, part in parts:
            if isinstance(part, IntegerLayer) or (part and any(map(_float_values, part.modules()))):
                first.setdefault(part, (own, part, node))
    return list(first.values())


def _integer_layer(
    name: str, layer: IntegerLayer, held: int, reads: IntegerActivation | None
) -> ShippedLayer:
    codes = layer.codes.numpy()
    values, counts = np.unique(codes // layer.spread, return_counts=True)
    information = codes.size * math.log2(len(values)) / 8
    activation = reads if layer.product.reads_values else None
    return ShippedLayer(
        name=name,
        kind=layer.kind,
        weight_bits=layer.grid.bits,
        act_bits=None if activation is None else activation.grid.bits,
        weights=codes.size,
        levels={int(value): int(count) for value, count in zip(values, counts, strict=True)},
        weight_bytes=held,
        bound_bytes=math.ceil(information) + BYTES_PER_CHANNEL * len(codes),
    )


def _float_layer(
    name: str, module: nn.Module, held: int | None, folded: int | None
) -> ShippedLayer:
    values = sum(map(_float_values, module.modules()))
    bound = 4 * (values if folded is None else folded)
    kind = module.kind if isinstance(module, IntegerNorm) else type(module).__name__
    return ShippedLayer(name, kind, None, None, values, {}, held or bound, bound)


def _folded_values(network: fx.GraphModule) -> dict[nn.Module, int]:
    """What each BatchNorm behind a float layer leaves in the file: a bias, if the layer has none."""
    found: dict[nn.Module, int] = {}
    for node in network.graph.nodes:
        norm = called_module(node, network)
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        layer = called_module(source, network)
        if not isinstance(norm, _BatchNorm) or len(source.users) > 1:
            continue
        if isinstance(layer, _ConvNd | nn.Linear):
            found[norm] = norm.num_features if layer.bias is None else 0
    return found


def _float_values(module: nn.Module) -> int:
    """Parameters and floating statistics that a module itself holds, quantized ones left out."""
    if isinstance(module, IntegerNorm):
        return module.scale.numel() + module.bias.numel()
    if isinstance(module, IntegerLayer | IntegerActivation | ExactProduct):
        return 0
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())

"""Smaller weights where x86 without VNNI could not add up 8-bit ones (ONNX Runtime's reduce_range).

Two products of uint8 codes with weights of 8 bits may pass int16, see deploy/saturation.py; with codes
of -64..64 no two can. A layer whose codes cannot get there keeps its bits, and a depthwise one keeps
them on a symmetric grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.bias import PAIR_LIMIT
from qdeploy.layers.product import Convolution
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.methods import WeightSite
from qdeploy.preparation.graph import called_module, float_inputs, module_calls
from qdeploy.preparation.quantized_weights import quantizer_of
from qdeploy.preparation.quantizer_placement import is_mover
from qdeploy.preparation.settings import LayerSettings

REDUCED_BITS = 7


def reduce_range(
    network: fx.GraphModule,
    settings: Mapping[str, LayerSettings | None],
    sites: Mapping[str, WeightSite],
) -> dict[str, LayerSettings | None]:
    """Gives the layers that could saturate smaller weights, in place; the settings as they are then.

    sites   of the quantized layers, by name

    Precondition: activation quantizers are in place. Errors: QdeployError for a method whose codes
    do not get smaller with fewer bits.
    """
    calls = module_calls(network)
    modules = {name: network.get_submodule(name) for name in calls}
    layers = {name: m for name, m in modules.items() if isinstance(m, QuantizedLayer)}
    highest = {name: max(highest_code_read(x, network) for x in calls[name]) for name in layers}
    reduced = dict(settings)
    for names in names_by_quantizer(layers):
        chosen = settings[names[0]]
        assert chosen is not None
        tried = range(chosen.weight_bits, min(chosen.weight_bits, REDUCED_BITS) - 1, -1)
        for bits in tried:
            if not any(could_saturate(layers[name], highest[name]) for name in names):
                break
            chosen = replace(chosen, weight_bits=bits)
            smaller = quantizer_of(replace(sites[names[0]], reduce_range=True), chosen)
            for name in names:
                layers[name].quantizer = smaller
                smaller.belong_to(layers[name])
                own = settings[name]
                assert own is not None
                reduced[name] = replace(own, weight_bits=bits)
        if stuck := [name for name in names if could_saturate(layers[name], highest[name])]:
            raise QdeployError(
                f"{stuck[0]}: method {chosen.method_name!r} has codes beyond -64..64 at "
                f"{bits} bits too; set reduce_range = false, or give the layer fewer bits"
            )
    return reduced


def names_by_quantizer(layers: Mapping[str, QuantizedLayer]) -> list[list[str]]:
    """The names of the layers that share a weight, together."""
    found: dict[WeightQuantizer, list[str]] = {}
    for name, layer in layers.items():
        found.setdefault(layer.quantizer, []).append(name)
    return list(found.values())


def could_saturate(layer: QuantizedLayer, highest: int) -> bool:
    """Whether two codes of its grid times `highest`, the input's highest code, pass int16.

    Depthwise kernels add in int32, as long as all channels have one zero point. On a grid that is
    not symmetric a channel of negative gain gets another one.
    """
    product, weight, _ = layer.product.shipped.for_integer_kernel(*layer.integers())
    if not product.has_integer_kernel or weight.codes.dtype != torch.int8:
        return False
    outputs, inputs = weight.codes.shape[:2]
    depthwise = inputs == 1 and isinstance(product, Convolution) and product.groups == outputs
    if depthwise and weight.grid.symmetric and not weight.zero.any():
        return False
    return 2 * max(-weight.grid.lowest, weight.grid.highest) * highest > PAIR_LIMIT


def highest_code_read(layer: fx.Node, network: fx.GraphModule) -> int:
    """The highest code of what a layer reads; 0 where no integer kernel reads it."""
    source = layer.all_input_nodes[0]
    while is_mover(source, network):
        source = float_inputs(source)[0]
    quantizer = called_module(source, network)
    if not isinstance(quantizer, ActivationQuantizer):
        return 0
    highest = quantizer.grid.highest
    return highest if highest <= 255 else 0

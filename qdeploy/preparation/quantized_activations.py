"""The activation quantizers of a network: one for each tensor that quantizer_placement.py names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import (
    ActivationQuantizer,
    GateRange,
    parameters_beside_quantizers,
)
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.methods import ActivationSite
from qdeploy.preparation import quantizer_placement as placement
from qdeploy.preparation.graph import called_module, free_name, insert_after, scope_of
from qdeploy.preparation.regions import float_nodes
from qdeploy.preparation.settings import LayerSettings


def quantize_activations(
    network: fx.GraphModule, settings: Mapping[str, LayerSettings | None], default: LayerSettings
) -> None:
    """Inserts the activation quantizers: one for each tensor that quantizer_placement.py names.

    Each is a child of the module that makes the tensor.

    What low-bit layers and other operators both read is quantized at 8 bits for all readers, and
    requantized in front of the low-bit layers. The network's input is not: an image has 8 bits.
    """

    def is_float_layer(node: fx.Node) -> bool:
        return node.op == "call_module" and settings.get(str(node.target), default) is None

    tensors = placement.shared_tensors(network, is_float_layer, float_nodes(network))
    sites = [ActivationSite(placement.is_nonnegative(tensor, network)) for tensor in tensors]
    for tensor, site in zip(tensors, sites, strict=True):
        layers = {node: s for node in tensor.readers if (s := settings.get(str(node.target)))}
        chosen = max(layers.values(), key=lambda layer: layer.act_bits or 32, default=default)
        if chosen.act_bits is not None:
            quantize_tensor(tensor, site, list(layers), chosen, network)


def quantize_tensor(
    tensor: placement.SharedTensor,
    site: ActivationSite,
    layers: list[fx.Node],
    chosen: LayerSettings,
    network: fx.GraphModule,
) -> None:
    """layers: those of its readers that are quantized; chosen: the settings that they go by."""
    assert chosen.act_bits is not None
    method, bits = chosen.method, max(8, chosen.act_bits)
    # Other operators may read what the layers read, at no fewer than 8 bits.
    serves_all = method.carrier is None and chosen.act_bits >= 8
    quantizer: ActivationQuantizer
    if any(placement.is_hard_gate(reader, network) for reader in tensor.readers):
        quantizer = GateRange(bits)
    elif layers and not tensor.is_input and (serves_all or len(layers) == len(tensor.readers)):
        quantizer = layer_activation(layers, site, chosen)
    else:
        if layers and not tensor.is_input:
            sources = placement.places_before(layers, tensor.members)
            narrow = layer_activation(layers, site, chosen)
            narrow.places = len(sources)
            name = add_beside(tensor, narrow, network, "_narrow")
            for source in sources:
                insert_after(source, name, network, layers)
        quantizer = (
            method.carrier(bits, chosen.options)
            if method.carrier is not None
            else method.activation(site, bits, chosen.options)
        )
    places = tensor.places
    quantizer.places = len(places)
    name = add_beside(tensor, quantizer, network)
    for place, readers in places:
        insert_after(place, name, network, readers)


def add_beside(
    tensor: placement.SharedTensor,
    quantizer: ActivationQuantizer,
    network: fx.GraphModule,
    suffix: str = "",
) -> str:
    """Makes a quantizer a child of the module that makes the tensor; its name.

    So what is done to a part of the network (frozen, in evaluation, with a learning rate of its own) is
    done to the quantizers of what it computes. An input belongs to the layer that reads it.
    """
    node = tensor.producers[0]
    if tensor.is_input:
        node = next((reader for reader in tensor.readers if is_layer(reader, network)), node)
    if is_layer(node, network):
        place = f"{node.target}.{'input' if tensor.is_input else 'activation'}"
    else:
        place = f"{scope_of(node)}.{node.name}_activation".lstrip(".")
    name = free_name(place + suffix, network)
    network.add_submodule(name, quantizer)
    quantizer.requires_grad_(not is_frozen(name, network))
    return name


def is_frozen(name: str, network: fx.GraphModule) -> bool:
    """Whether the user froze the part that a quantizer belongs to: the first around it with parameters."""
    while name:
        name, _, _ = name.rpartition(".")
        if own := parameters_beside_quantizers(network.get_submodule(name)):
            return not any(parameter.requires_grad for parameter in own)
    return False


def is_layer(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it calls a module that may have a quantizer for a child: no container of the user's."""
    module = called_module(node, network)
    return module is not None and (
        isinstance(module, QuantizedLayer)
        or all(isinstance(child, ActivationQuantizer) for child in module.children())
    )


def layer_activation(
    layers: Iterable[fx.Node], site: ActivationSite, chosen: LayerSettings
) -> ActivationQuantizer:
    """The quantizer of what these layers read; an error of the method names them."""
    assert chosen.act_bits is not None
    try:
        return chosen.method.activation(site, chosen.act_bits, chosen.options)
    except QdeployError as error:
        names = ", ".join(str(layer.target) for layer in layers)
        raise QdeployError(f"{names}: {error}") from None

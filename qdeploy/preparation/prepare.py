"""prepare: a float network becomes one that trains for integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qdeploy.errors import QdeployError
from qdeploy.layers.folding import BatchNorm
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.methods import WeightSite
from qdeploy.preparation import placement
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.settings import (
    FLOAT,
    LayerSettings,
    Override,
    layer_settings,
    settings_by_layer,
)
from qdeploy.preparation.trace import called_module, shape_of, trace


def prepare(
    model: nn.Module,
    example_input: Tensor,
    method: str,
    weight_bits: int = 8,
    act_bits: int | str | None = 8,
    layers: Mapping[str, Override] | None = None,
    *,
    first_last_float: bool = False,
    **options: Any,
) -> PreparedNetwork:
    """A copy of `model` in which Conv and Linear layers train quantized.

    Keeps trained weights and BatchNorm statistics. Joins each Conv or Linear with the BatchNorm
    behind it, and quantizes activations where integer kernels need it (see placement.py).

    example_input     one batch, [N, C, H, W] as a rule
    method            see `qdeploy methods`
    act_bits          "float" or None: activations stay float. The image is always read at 8 bits.
    layers            {glob of layer names: "float" or {method, weight_bits, act_bits, options}}
    first_last_float  leaves the first and the last Conv or Linear in float
    options           the method's own

    Errors: QdeployError for unknown methods, bits, options and globs, for networks that torch.fx
    cannot trace or that do not take the example input, and for networks without such layers.
    """
    if isinstance(model, PreparedNetwork):
        raise QdeployError("this network is prepared already; give prepare the float network")
    bits = None if act_bits == FLOAT else act_bits
    default = layer_settings(method, weight_bits, bits, options)  # type: ignore[arg-type]
    network = trace(model, example_input)
    names = weight_layers(network)
    if not names:
        raise QdeployError(f"{type(model).__name__} has no Conv or Linear layer to quantize")
    settings = settings_by_layer(names, default, layers or {}, first_last_float)
    placement.rectifiers_first(network)
    quantize_weights(network, settings)
    quantize_activations(network, settings, default)
    network.graph.lint()
    network.recompile()
    everything = settings | dict.fromkeys(other_products(network))
    return PreparedNetwork(network, everything).train(model.training)


WEIGHT_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
FUNCTIONAL_PRODUCTS = {F.conv1d, F.conv2d, F.conv3d, F.linear, torch.matmul}


def weight_layers(network: fx.GraphModule) -> dict[str, nn.Module]:
    """The Conv and Linear layers by name, in the order the network runs them."""
    calls = ((str(node.target), called_module(node, network)) for node in network.graph.nodes)
    return {name: layer for name, layer in calls if type(layer) in WEIGHT_LAYERS}  # type: ignore[misc]


def other_products(network: fx.GraphModule) -> list[str]:
    """Products that stay float because their weight is not a layer's of WEIGHT_LAYERS."""
    found = []
    for node in network.graph.nodes:
        module = called_module(node, network)
        if isinstance(module, placement.FLOAT_LAYERS) and type(module) not in WEIGHT_LAYERS:
            found.append(str(node.target))
        elif node.target in FUNCTIONAL_PRODUCTS:
            found.append(f"{node.name} (functional)")
    return found


def quantize_weights(network: fx.GraphModule, settings: Mapping[str, LayerSettings | None]) -> None:
    """Replaces each layer that has settings, together with the BatchNorm behind it."""
    calls: dict[str, list[fx.Node]] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    for name, chosen in settings.items():
        if chosen is None:
            continue
        norm_node = following_norm(calls[name], calls, network)
        norm = None if norm_node is None else called_module(norm_node, network)
        network.set_submodule(name, quantized_layer(network.get_submodule(name), norm, chosen))
        if norm_node is not None:
            norm_node.replace_all_uses_with(calls[name][0])
            network.graph.erase_node(norm_node)
            network.delete_submodule(str(norm_node.target))


def following_norm(
    layer_calls: list[fx.Node], calls: Mapping[str, list[fx.Node]], network: fx.GraphModule
) -> fx.Node | None:
    """The BatchNorm that alone reads the layer; none if either is called twice.

    Nor where the norm runs over another axis than the layer's output: Linear on [N, L, in].
    """
    if len(layer_calls) != 1 or len(layer_calls[0].users) != 1:
        return None
    (reader,) = layer_calls[0].users
    norm, layer = called_module(reader, network), called_module(layer_calls[0], network)
    if not isinstance(norm, NORMS) or len(calls[str(reader.target)]) != 1:
        return None
    over_outputs = not isinstance(layer, nn.Linear) or len(shape_of(layer_calls[0])) == 2
    return reader if norm.track_running_stats and over_outputs else None


def quantized_layer(layer: Any, norm: Any, chosen: LayerSettings) -> QuantizedLayer:
    site = WeightSite(layer.weight, normalized=norm is not None)
    quantizer = chosen.method.weight(site, chosen.weight_bits, chosen.options)
    options = chosen.options
    fold, freeze = options.fold_mode, options.freeze_bn_steps
    kept_norm: BatchNorm | None = norm
    return QuantizedLayer(layer, kept_norm, quantizer, fold, freeze)


def quantize_activations(
    network: fx.GraphModule, settings: Mapping[str, LayerSettings | None], default: LayerSettings
) -> None:
    """Inserts one activation quantizer for each tensor that placement.py names."""

    def is_float_layer(node: fx.Node) -> bool:
        return node.op == "call_module" and settings.get(str(node.target), default) is None

    for tensor in placement.shared_tensors(network, is_float_layer):
        readers = [settings.get(str(node.target)) for node in tensor.readers]
        quantizer = activation_quantizer([r for r in readers if r], default, tensor)
        if quantizer is None:
            continue
        name = f"activations.{tensor.producers[0].name}"
        network.add_submodule(name, quantizer)
        for producer in tensor.producers:
            insert_after(producer, name, network.graph)


def activation_quantizer(
    readers: list[LayerSettings], default: LayerSettings, tensor: placement.SharedTensor
) -> nn.Module | None:
    """The quantizer of a tensor: of the layer that reads it with the most bits.

    8 bits for a tensor that no quantized layer reads (the branches of an Add), and for the
    network's input: an image has 8 bits and keeps them.
    """
    chosen = max(readers or [default], key=lambda reader: reader.act_bits or 32)
    if chosen.act_bits is None:
        return None
    is_input = any(node.op == "placeholder" for node in tensor.producers)
    bits = 8 if is_input or not readers else chosen.act_bits
    return chosen.method.activation(bits, chosen.options)


def insert_after(producer: fx.Node, module: str, graph: fx.Graph) -> None:
    """Makes every reader of `producer` read module(producer) instead."""
    with graph.inserting_after(producer):
        quantized = graph.call_module(module, (producer,))
    quantized.meta = dict(producer.meta)
    producer.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)

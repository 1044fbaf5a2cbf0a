"""prepare: a float network becomes one that trains for integers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer, GateRange
from qdeploy.layers.norm import BATCH_NORMS, ChannelAffine
from qdeploy.layers.product import WEIGHT_LAYERS, product_of, weight_of
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.methods import ActivationSite, WeightSite
from qdeploy.preparation import deferred_relus, rewrites
from qdeploy.preparation import quantizer_placement as placement
from qdeploy.preparation.attention import open_fused_attention, with_open_attention
from qdeploy.preparation.equalize import equalize as equalize_channels
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.reduce_range import reduce_range as reduced
from qdeploy.preparation.settings import (
    FLOAT,
    LayerSettings,
    Override,
    check_names,
    layer_settings,
    settings_by_layer,
)
from qdeploy.preparation.trace import (
    Inputs,
    annotate_shapes,
    as_inputs,
    called_module,
    insert_after,
    module_calls,
    only_reader,
    replace,
    shape_of,
    trace,
)
from qdeploy.preparation.vocabulary import operator_of


def prepare(
    model: nn.Module,
    example_input: Inputs,
    method: str,
    weight_bits: int = 8,
    act_bits: int | str | None = 8,
    layers: Mapping[str, Override] | None = None,
    *,
    first_last_float: bool = False,
    equalize: bool = False,
    reduce_range: bool = True,
    leaves: Sequence[str] = (),
    **options: Any,
) -> PreparedNetwork:
    """A copy of `model` in which Conv and Linear layers train quantized.

    Keeps trained weights and BatchNorm statistics. Joins each Conv or Linear with the BatchNorm
    behind it, and quantizes activations where integer kernels need it (see quantizer_placement.py).

    example_input     one batch, [N, C, H, W] as a rule; a tuple if forward takes several tensors
    method            see `qdeploy methods`
    act_bits          "float" or None: activations stay float. The image is always read at 8 bits.
    layers            {glob of layer names: "float" or {method, weight_bits, act_bits, options}}
    first_last_float  leaves the first and the last Conv or Linear in float
    equalize          first gives the channels of a tensor one size (see equalize.py)
    reduce_range      7-bit weights where x86 without VNNI could not add up 8-bit ones (reduce_range.py)
    leaves            globs of modules to keep whole and in float, such as those that torch.fx
                      cannot trace
    options           the method's own

    Errors: QdeployError for unknown methods, bits, options and globs, for networks that torch.fx
    cannot trace or that do not take the example input, and for networks without such layers.
    """
    if not isinstance(model, nn.Module):
        given = getattr(model, "__name__", type(model).__name__)
        raise QdeployError(
            f"prepare takes a network, not {given}; a function or class that makes one is called first: "
            f"prepare({given}(), ...)"
        )
    if isinstance(model, PreparedNetwork):
        raise QdeployError("this network is prepared already; give prepare the float network")
    check_names(method, options, inspect.signature(prepare).parameters)
    bits = None if act_bits == FLOAT else act_bits
    default = layer_settings(method, weight_bits, bits, options)  # type: ignore[arg-type]
    network = rewritten(trace(with_open_attention(model), example_input, leaves), example_input)
    names = weight_layers(network)
    if not names:
        raise QdeployError(f"{type(model).__name__} has no Conv or Linear layer to quantize")
    settings = settings_by_layer(names, default, layers or {}, first_last_float)
    if equalize:
        equalize_channels(network)
    sites = quantize_weights(network, settings)
    replace_norms(network, default)
    everything = settings | dict.fromkeys(other_products(network))
    quantize_activations(network, everything, default)
    if reduce_range:
        everything = reduced(network, everything, sites)
    deferred_relus.defer_relus(network)
    network.graph.lint()
    network.recompile()
    return PreparedNetwork(network, everything).train(model.training)


def rewritten(network: fx.GraphModule, example_input: Inputs) -> fx.GraphModule:
    """The traced network with the same values, written so that more of it can be quantized."""
    rewrites.functional_layers(network)
    open_fused_attention(network)
    rewrites.open_gates(network)
    rewrites.explicit_padding(network)
    rewrites.scalars_last(network)
    annotate_shapes(network, as_inputs(example_input))
    rewrites.channel_affines(network)
    deferred_relus.clips_first(network)
    network.recompile()
    return network


def weight_layers(network: fx.GraphModule) -> dict[str, nn.Module]:
    """The Conv and Linear layers by name, in the order the network runs them."""
    calls = ((str(node.target), called_module(node, network)) for node in network.graph.nodes)
    return {name: layer for name, layer in calls if type(layer) in WEIGHT_LAYERS}  # type: ignore[misc]


def other_products(network: fx.GraphModule) -> list[str]:
    """Products that stay float: layers outside WEIGHT_LAYERS, modules kept whole, functions."""
    found = []
    for node in network.graph.nodes:
        module = called_module(node, network)
        inner = () if module is None or isinstance(module, QuantizedLayer) else module.modules()
        products = [part for part in inner if isinstance(part, (_ConvNd, nn.Linear))]
        if products and type(module) not in WEIGHT_LAYERS:
            found.append(str(node.target))
        elif operator_of(node, network).module in WEIGHT_LAYERS:
            found.append(f"{node.name} (functional)")
    return found


def quantize_weights(
    network: fx.GraphModule, settings: Mapping[str, LayerSettings | None]
) -> dict[str, WeightSite]:
    """Replaces each layer that has settings, together with the BatchNorm behind it; where weights stood."""
    calls = module_calls(network)
    sites = {}
    for name, chosen in settings.items():
        if chosen is None:
            continue
        norm_node = following_norm(calls[name], calls, network)
        norm = None if norm_node is None else called_module(norm_node, network)
        layer = network.get_submodule(name)
        sites[name] = WeightSite(weight_of(layer), normalized=norm is not None)
        network.set_submodule(name, quantized_layer(layer, norm, chosen))
        if norm_node is not None:
            replace(norm_node, calls[name][0])
            network.delete_submodule(str(norm_node.target))
    return sites


def following_norm(
    layer_calls: list[fx.Node], calls: Mapping[str, list[fx.Node]], network: fx.GraphModule
) -> fx.Node | None:
    """The BatchNorm that alone reads the layer; none if either is called twice.

    Nor where the norm runs over another axis than the layer's output: Linear on [N, L, in].
    """
    reader = only_reader(layer_calls[0])
    if len(layer_calls) != 1 or reader is None:
        return None
    norm, layer = called_module(reader, network), called_module(layer_calls[0], network)
    if not isinstance(norm, (*BATCH_NORMS, ChannelAffine)) or len(calls[str(reader.target)]) != 1:
        return None
    flat = not isinstance(layer, nn.Linear) or len(shape_of(layer_calls[0])) == 2
    over_outputs = flat or isinstance(norm, ChannelAffine)
    return reader if norm.track_running_stats and over_outputs else None


def quantized_layer(layer: Any, norm: Any, chosen: LayerSettings) -> QuantizedLayer:
    """A Conv or Linear, and the BatchNorm behind it or None, as the method trains them."""
    method, options = chosen.method, chosen.options
    site = WeightSite(weight_of(layer), normalized=norm is not None)
    return QuantizedLayer(
        layer,
        norm if norm is None or isinstance(norm, ChannelAffine) else method.norm(norm, options),
        method.weight(site, chosen.weight_bits, options),
        options.fold_mode,
        options.freeze_bn_steps,
        method.product(product_of(layer), options),
    )


def replace_norms(network: fx.GraphModule, default: LayerSettings) -> None:
    """Gives the method's norm to each BatchNorm that no quantized layer has taken in."""
    for name in module_calls(network):
        norm = network.get_submodule(name)
        if isinstance(norm, BATCH_NORMS) and norm.track_running_stats:
            network.set_submodule(name, default.method.norm(norm, default.options))


def quantize_activations(
    network: fx.GraphModule, settings: Mapping[str, LayerSettings | None], default: LayerSettings
) -> None:
    """Inserts the activation quantizers: one for each tensor that quantizer_placement.py names.

    What low-bit layers and other operators both read is quantized at 8 bits for all readers, and
    requantized in front of the low-bit layers. The network's input is not: an image has 8 bits.
    """

    def is_float_layer(node: fx.Node) -> bool:
        return node.op == "call_module" and settings.get(str(node.target), default) is None

    tensors = placement.shared_tensors(network, is_float_layer)
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
    name = f"activations.{tensor.producers[0].name}"
    # Other operators may read what the layers read, at no fewer than 8 bits.
    serves_all = method.carrier is None and chosen.act_bits >= 8
    quantizer: ActivationQuantizer
    if any(placement.is_hard_gate(reader, network) for reader in tensor.readers):
        quantizer = GateRange(bits)
    elif layers and not tensor.is_input and (serves_all or len(layers) == len(tensor.readers)):
        quantizer = layer_activation(layers, site, chosen)
    else:
        if layers and not tensor.is_input:
            sources = dict.fromkeys(layer.all_input_nodes[0] for layer in layers)
            narrow = layer_activation(layers, site, chosen)
            narrow.places = len(sources)
            network.add_submodule(f"{name}_narrow", narrow)
            for source in sources:
                insert_after(source, f"{name}_narrow", network, layers)
        quantizer = (
            method.carrier(bits, chosen.options)
            if method.carrier is not None
            else method.activation(site, bits, chosen.options)
        )
    quantizer.places = len(tensor.producers)
    network.add_submodule(name, quantizer)
    for producer in tensor.producers:
        insert_after(producer, name, network)


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

"""Which layers become quantized ones, which BatchNorm joins them, and which of them share a weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeploy.errors import QdeployError
from qdeploy.layers.norm import BATCH_NORMS, BatchNorm, ChannelAffine
from qdeploy.layers.product import Product, TransposedConvolution, product_of, weight_of
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.methods import WeightSite
from qdeploy.preparation.graph import called_module, module_calls, only_reader, replace, shape_of
from qdeploy.preparation.settings import LayerSettings


def quantize_weights(
    network: fx.GraphModule,
    settings: Mapping[str, LayerSettings | None],
    default: LayerSettings,
) -> dict[str, WeightSite]:
    """Replaces each layer that has settings, together with the BatchNorm behind it.

    Layers of one weight share its quantizer: one latent parameter, one scale. The norms that stay in
    the graph become those of the default settings' method. Gives where each weight stood.

    Errors: QdeployError for a weight that cannot be shared any more.
    """
    quantized = {name: chosen for name, chosen in settings.items() if chosen}
    calls = module_calls(network)
    norms = {name: following_norm(calls.get(name, []), network) for name in quantized}
    choose_norms(network, {norms[name]: chosen for name, chosen in quantized.items()}, default)
    sites: dict[str, WeightSite] = {}
    for names in layers_of_one_weight(network, quantized):
        weight = weight_of(network.get_submodule(names[0]))
        site = WeightSite(weight, normalized=all(norms[name] for name in names))
        quantizer = quantizer_of(site, quantized[names[0]])
        check_shared(network, names, quantized, quantizer)
        for name in names:
            sites[name] = site
            layer, norm = network.get_submodule(name), norms[name]
            joined: Any = None if norm is None else network.get_submodule(norm)
            made = quantized_layer(layer, joined, quantized[name], quantizer)
            network.set_submodule(name, made)
    remove_joined(network, [call for name in norms if norms[name] for call in calls[name]])
    return sites


def following_norm(layer_calls: list[fx.Node], network: fx.GraphModule) -> str | None:
    """The name of the BatchNorm that alone reads the layer, wherever the layer is called.

    None where the norm runs over another axis than the layer's output: Linear on [N, L, in]. The matrices
    of a recurrent layer are not called, but read by it.
    """
    readers = [only_reader(call) for call in layer_calls]
    if None in readers or len({reader.target for reader in readers if reader}) != 1:
        return None
    assert readers[0] is not None
    norm, layer = called_module(readers[0], network), called_module(layer_calls[0], network)
    if isinstance(norm, ChannelAffine):
        return str(readers[0].target)
    flat = not isinstance(layer, nn.Linear) or len(shape_of(layer_calls[0])) == 2
    joins = isinstance(norm, BATCH_NORMS) and norm.track_running_stats and flat
    return str(readers[0].target) if joins else None


def choose_norms(
    network: fx.GraphModule, chosen: Mapping[str | None, LayerSettings], default: LayerSettings
) -> None:
    """Puts the norm of a method in the place of each BatchNorm: of that of the layer which it joins."""
    for name in module_calls(network):
        norm = network.get_submodule(name)
        if isinstance(norm, BATCH_NORMS) and norm.track_running_stats:
            settings = chosen.get(name, default)
            network.set_submodule(name, settings.method.norm(norm, settings.options))


def remove_joined(network: fx.GraphModule, layer_calls: Iterable[fx.Node]) -> None:
    """Takes the norm behind each of these calls out of the graph: the layer runs it."""
    for call in layer_calls:
        reader = only_reader(call)
        assert reader is not None
        replace(reader, call)


def quantizer_of(site: WeightSite, chosen: LayerSettings) -> WeightQuantizer:
    """The method's quantizer of a weight: frozen if the weight was, and training the very parameter.

    So what the parameter was tied to stays tied to it. A method that trains something other than the
    weight keeps that for when the quantizer is transparent.
    """
    quantizer = new_quantizer(chosen, site.normalized, site.reduce_range, site.weight)
    quantizer.remake = partial(new_quantizer, chosen, site.normalized, site.reduce_range)
    weight, latent = site.weight, quantizer.latent
    quantizer.requires_grad_(weight.requires_grad)  # a step that trains would move a frozen weight
    if latent.shape != weight.shape or not torch.equal(latent, weight):
        quantizer.origin = weight.detach()
    elif isinstance(weight, nn.Parameter):
        quantizer.latent = weight
    return quantizer


def new_quantizer(
    chosen: LayerSettings, normalized: bool, reduce_range: bool, weight: Tensor
) -> WeightQuantizer:
    site = WeightSite(weight, normalized, reduce_range)
    return chosen.method.weight(site, chosen.weight_bits, chosen.options)


def quantized_layer(
    layer: Any, norm: BatchNorm | None, chosen: LayerSettings, quantizer: WeightQuantizer
) -> QuantizedLayer:
    """A Conv or Linear, and the BatchNorm behind it or None, as the method trains them."""
    options = chosen.options
    product: Product = product_of(layer)
    if product.reads_values:  # else a gradient of its own has nothing to go to
        product = chosen.method.product(product_of(layer), options)
    fold, freeze_bn = options.fold_mode, options.freeze_bn_steps
    return QuantizedLayer(layer, norm, quantizer, fold, freeze_bn, product)


def layers_of_one_weight(network: fx.GraphModule, names: Iterable[str]) -> Iterator[list[str]]:
    """The names in groups, one a weight."""
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(id(network.get_submodule(name).weight), []).append(name)
    yield from groups.values()


def check_shared(
    network: fx.GraphModule,
    names: list[str],
    settings: Mapping[str, LayerSettings],
    quantizer: WeightQuantizer,
) -> None:
    """Errors: QdeployError for a weight that several would train in different ways."""
    weight = network.get_submodule(names[0]).weight
    owned = {name for name, p in network.named_parameters(remove_duplicate=False) if p is weight}
    others = sorted(owned - {f"{name}.weight" for name in names})
    transposed = {
        isinstance(product_of(network.get_submodule(name)), TransposedConvolution) for name in names
    }
    first = settings[names[0]].of_weight
    alike = len(transposed) == 1 and all(settings[name].of_weight == first for name in names)
    if alike and (quantizer.latent is weight or not others):
        return
    ways = " and ".join(dict.fromkeys(f"{settings[name]}" for name in names))
    raise QdeployError(
        f"{', '.join([*names, *others])} share one weight, which {ways} cannot train for all of them. "
        'Set all to the same in `layers`, or to "float": a transposed layer cannot share with another '
        "kind, nor slb with what stays in float"
    )

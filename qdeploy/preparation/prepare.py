"""prepare: a float network becomes one that trains for integers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from qdeploy.errors import QdeployError
from qdeploy.layers.activation import one_notice
from qdeploy.layers.product import PRODUCTS, WEIGHT_LAYERS
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.recurrent import Recurrent
from qdeploy.preparation import deferred_relus, rewrites
from qdeploy.preparation.attention import open_fused_attention
from qdeploy.preparation.channel_affines import channel_affines
from qdeploy.preparation.check import check_prepared
from qdeploy.preparation.equalize import equalize as equalize_channels
from qdeploy.preparation.features import places_of, what_modules_give
from qdeploy.preparation.float_state import take_state_by_part
from qdeploy.preparation.graft import prepared_network
from qdeploy.preparation.graph import called_module
from qdeploy.preparation.opening import with_open_modules
from qdeploy.preparation.parametrizations import folded_copy
from qdeploy.preparation.passed_by import refuse_what_is_passed_by
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.quantized_activations import quantize_activations
from qdeploy.preparation.quantized_weights import quantize_weights
from qdeploy.preparation.read_weights import read_from_quantizers
from qdeploy.preparation.reduce_range import reduce_range as reduced
from qdeploy.preparation.regions import float_nodes, is_region, mark_regions
from qdeploy.preparation.same_numbers import random_states_kept
from qdeploy.preparation.settings import (
    FLOAT,
    LayerSettings,
    Override,
    check_names,
    layer_settings,
    settings_by_layer,
)
from qdeploy.preparation.trace import Inputs, annotate_shapes, as_inputs, trace_both_modes
from qdeploy.preparation.vocabulary import operator_of

PRODUCTS_OF_TORCH = (_ConvNd, nn.Linear, nn.Embedding, nn.RNNBase)
Settings = dict[str, LayerSettings | None]  # by the name of a product; None stays float


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
    check: bool = True,
    **options: Any,
) -> PreparedNetwork:
    """A copy of `model` in which Conv, Linear, recurrent layers and Embeddings train quantized.

    It is of a subclass of the model's class, and its parameters have the names that they had, but for
    attention and recurrent layers, whose weights become layers of their own. Keeps trained weights and
    BatchNorm statistics. Joins each Conv or Linear with the BatchNorm
    behind it, and quantizes activations where integer kernels need it (see quantizer_placement.py).

    example_input     one batch, [N, C, H, W] as a rule; a tuple if forward takes several tensors
    method            see `qdeploy methods`
    act_bits          "float" or None: activations stay float. The image is always read at 8 bits.
    layers            {glob of layer names: "float" or {method, weight_bits, act_bits, options}}
    first_last_float  leaves the first and the last Conv or Linear in float
    equalize          first gives the channels of a tensor one size (see equalize.py)
    reduce_range      smaller weights where x86 without VNNI could not add up 8-bit ones (reduce_range.py)
    leaves            globs of modules to keep whole and in float, such as those that torch.fx
                      cannot trace; "first -> last" for all between two modules or nodes, which is
                      traced and stays float
    check             proves that rewriting and tracing changed nothing: see check.py
    options           the method's own

    Errors: QdeployError for unknown methods, bits, options and globs, for networks that torch.fx
    cannot trace or that do not take the example input, for networks without such layers, and where
    the check finds that the prepared network computes something else.
    """
    check_network(model)
    check_names(method, options, inspect.signature(prepare).parameters)
    model = folded_copy(model)
    bits = None if act_bits == FLOAT else act_bits
    default = layer_settings(method, weight_bits, bits, options)  # type: ignore[arg-type]
    inputs = as_inputs(example_input)
    with random_states_kept(x.device for x in inputs):  # of forward, which this runs
        opened = with_open_modules(model)
        given = what_modules_give(opened, inputs)
        network = trace_both_modes(opened, inputs, [one for one in leaves if not is_region(one)])
        mark_regions(network, filter(is_region, leaves))
        network = rewritten(network, inputs)
    names = weight_layers(network)
    if not names:
        raise QdeployError(
            f"{type(model).__name__} has no layer to quantize: no Conv, Linear, LSTM, GRU, RNN or Embedding "
            "inside of it"
        )
    settings = settings_by_layer(names, default, layers or {}, first_last_float)
    settings |= dict.fromkeys(weight_layers(network, float_nodes(network)))
    if equalize:
        equalize_channels(network)
    settings = quantized(network, settings, default, reduce_range)
    prepared = prepared_network(copy.deepcopy(opened), network, settings).train(model.training)
    one_notice(prepared)
    prepared.plan.places = places_of(given, prepared, inputs)
    refuse_what_is_passed_by(prepared, given)
    take_state_by_part(prepared)
    if check:
        check_prepared(model, prepared, inputs)
    prepared.plan.checked = check
    return prepared


def check_network(model: object) -> None:
    if not isinstance(model, nn.Module):
        given = getattr(model, "__name__", type(model).__name__)
        raise QdeployError(
            f"prepare takes a network, not {given}; a function or class that makes one is called first: "
            f"prepare({given}(), ...)"
        )
    if isinstance(model, PreparedNetwork):
        raise QdeployError("this network is prepared already; give prepare the float network")


def rewritten(network: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The traced network with the same values, written so that more of it can be quantized."""
    rewrites.functional_layers(network)
    open_fused_attention(network)
    rewrites.open_gates(network)
    rewrites.explicit_padding(network)
    rewrites.scalars_last(network)
    annotate_shapes(network, inputs)
    rewrites.float_bounds(network)
    channel_affines(network)
    deferred_relus.clips_first(network)
    network.recompile()
    return network


def quantized(
    network: fx.GraphModule, settings: Settings, default: LayerSettings, reduce_range: bool
) -> Settings:
    """Quantizes weights and activations, in place; the settings as they are then, of all products."""
    sites = quantize_weights(network, settings, default)
    read_from_quantizers(network)
    settings = settings | dict.fromkeys(other_products(network))
    quantize_activations(network, settings, default)
    if reduce_range:
        settings = reduced(network, settings, sites)
    deferred_relus.defer_relus(network)
    network.graph.lint()
    network.recompile()
    return settings


def weight_layers(
    network: fx.GraphModule, nodes: Collection[fx.Node] | None = None
) -> dict[str, nn.Module]:
    """The layers that may be quantized by name, in the order the network runs them; of some nodes, or all."""
    called = [n for n in network.graph.nodes if nodes is None or n in nodes]
    calls = ((str(node.target), called_module(node, network)) for node in called)
    parts = ((f"{name}{own}", part) for name, layer in calls for own, part in parts_of(layer))
    return {name: layer for name, layer in parts if is_weight_layer(layer)}


def parts_of(layer: nn.Module | None) -> Iterator[tuple[str, Any]]:
    """The layer itself, or each matrix of a recurrent one, with what its name has behind the layer's."""
    if isinstance(layer, Recurrent):
        yield from ((f".{name}", part) for name, part in layer.parts())
    else:
        yield "", layer


def is_weight_layer(layer: nn.Module | None) -> bool:
    """Whether it can be quantized: no Embedding that writes to its table, or has a sparse gradient for it."""
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
        return False
    return type(layer) in PRODUCTS


def other_products(network: fx.GraphModule) -> list[str]:
    """Products that stay float and are no layers of `weight_layers`: modules kept whole, functions."""
    found = []
    for node in network.graph.nodes:
        module = called_module(node, network)
        known = isinstance(module, QuantizedLayer | Recurrent) or is_weight_layer(module)
        inner = () if module is None or known else module.modules()
        if any(isinstance(part, PRODUCTS_OF_TORCH) for part in inner):
            found.append(str(node.target))
        elif operator_of(node, network).module in WEIGHT_LAYERS:
            found.append(f"{node.name} (functional)")
    return found

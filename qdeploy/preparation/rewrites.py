"""Rewrites of the traced float network that keep its values and show what can be quantized.

functional_layers    F.conv2d(x, self.weight) becomes the layer it is
open_gates           x * sigmoid(x), x * hardsigmoid(x) for SiLU and hardswish: integer products
explicit_padding     reflected and circular borders of a convolution become an operator before it
scalars_last         (a * number) @ b becomes (a @ b) * number
float_bounds         clamp(x, -0.5, 1) becomes clamp(x, -0.5, 1.0), which torch.onnx can take
channel_affines.py has one more.
"""

from __future__ import annotations

import operator
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from qdeploy.layers.product import WEIGHT_LAYERS
from qdeploy.preparation.graph import called_module, is_float_tensor, module_calls, replace
from qdeploy.preparation.vocabulary import (
    DIVIDE,
    HARDSIGMOID,
    MATRIX_PRODUCT,
    MULTIPLY,
    is_clip,
    operator_of,
)


def functional_layers(network: fx.GraphModule) -> None:
    """Gives a module to each functional product of parameters, in the place of their owner."""
    layers: dict[tuple[Any, ...], str] = {}
    for node in list(network.graph.nodes):
        row = operator_of(node, network)
        if node.op != "call_function" or row.module not in WEIGHT_LAYERS:
            continue
        x, layer, key = functional_layer(node, row.module, network)
        if layer is None:
            continue
        if key not in layers:
            layers[key] = place_of(key[0], network)
            network.set_submodule(layers[key], layer)
        with network.graph.inserting_before(node):
            replace(node, network.graph.call_module(layers[key], (x,)))
    network.graph.eliminate_dead_code()


def functional_layer(
    node: fx.Node, kind: Any, network: fx.GraphModule
) -> tuple[Any, nn.Module | None, tuple[Any, ...]]:
    """What the node reads, the layer that it amounts to, and what tells this layer from others."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    x, weight, bias = (given.pop(name, None) for name in names[:3])
    constants = [part for part in (weight, bias) if isinstance(part, fx.Node)]
    if weight is None or any(part.op != "get_attr" for part in constants):
        return x, None, ()
    values = [attrgetter(str(part.target))(network) for part in constants]
    out, fan_in = values[0].shape[:2]
    if kind is not nn.Linear:
        given["kernel_size"] = tuple(values[0].shape[2:])
        fan_in *= given.get("groups", 1)
    layer = kind(fan_in, out, bias=bias is not None, **given)
    for name, value in zip(("weight", "bias"), values, strict=False):
        trained = isinstance(value, nn.Parameter)
        setattr(layer, name, value if trained else nn.Parameter(value, requires_grad=False))
    return x, layer.train(network.training), (*(str(part.target) for part in constants), str(given))


def place_of(parameter: str, network: fx.GraphModule) -> str:
    """The owner's name if nothing else needs the owner; else a name made of both."""
    owner, _, name = parameter.rpartition(".")
    needed = owner in module_calls(network) or [*network.get_submodule(owner).children()]
    alone = owner and name == "weight" and not needed
    return owner if alone else parameter.replace(".", "_") + "_layer"


def open_gates(network: fx.GraphModule) -> None:
    """Writes SiLU and hardswish as products, and a hardsigmoid behind a layer as a clamp.

    x / 6 + 1/2 folds into that layer, so that its kernel's saturation does the rest.
    """
    for node in list(network.graph.nodes):
        row = operator_of(node, network)
        if not row.gate and row is not HARDSIGMOID:
            continue
        x = node.all_input_nodes[0]
        with network.graph.inserting_before(node):
            if row.gate:
                gate = network.graph.call_function(row.gate, (x,))
                result = network.graph.call_function(operator.mul, (x, gate))
            elif type(called_module(x, network)) in WEIGHT_LAYERS and len(x.users) == 1:
                sixth = network.graph.call_function(operator.mul, (x, 1 / 6))
                raised = network.graph.call_function(operator.add, (sixth, 0.5))
                result = network.graph.call_function(torch.clamp, (raised, 0, 1))
            else:
                result = network.graph.call_function(F.hardsigmoid, (x,))
        replace(node, result)


def explicit_padding(network: fx.GraphModule) -> None:
    """Pads before a convolution by what is not 0, so that the padded values are codes as well."""
    calls = [(node, called_module(node, network)) for node in network.graph.nodes]
    padded = [(n, m) for n, m in calls if isinstance(m, _ConvNd) and m.padding_mode != "zeros"]
    for node, layer in padded:
        border = list(layer._reversed_padding_repeated_twice)
        mode = layer.padding_mode
        with network.graph.inserting_before(node):
            pad = network.graph.call_function(F.pad, (node.args[0], border, mode))
        node.args = (pad,)
    for _, layer in padded:
        layer.padding_mode, layer.padding = "zeros", (0,) * (layer.weight.ndim - 2)


def float_bounds(network: fx.GraphModule) -> None:
    """Makes the bounds of clips floats, as the values are: torch.onnx takes no mixture of numbers."""
    for node in network.graph.nodes:
        if is_clip(node, network) and is_float_tensor(node):
            source, *bounds = node.args
            node.args = (source, *map(as_float, bounds))
            node.kwargs = {name: as_float(value) for name, value in node.kwargs.items()}


def as_float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def scalars_last(network: fx.GraphModule) -> None:
    """Multiplies what a matrix product gives, not an operand of it: no rounding in between."""
    for node in list(network.graph.nodes):
        if operator_of(node, network) is not MATRIX_PRODUCT:
            continue
        for operand in list(node.all_input_nodes):
            if (number := factor(operand, network)) is None or len(operand.users) != 1:
                continue
            node.replace_input_with(operand, operand.all_input_nodes[0])
            with network.graph.inserting_after(node):
                scaled = network.graph.call_function(operator.mul, (node, number))
            node.replace_all_uses_with(
                scaled, delete_user_cb=lambda user, own=scaled: user is not own
            )
            network.graph.erase_node(operand)


def factor(node: fx.Node, network: fx.GraphModule) -> float | None:
    """The positive number that the node multiplies its only input by; None for other nodes."""
    if len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    row = operator_of(node, network)
    if row is MULTIPLY:
        numbers = [part for part in (first, second) if isinstance(part, int | float)]
        return float(numbers[0]) if numbers and numbers[0] > 0 else None
    if row is DIVIDE and isinstance(second, int | float) and second > 0:
        return 1 / second
    return None

"""Rewrites of the traced float network that keep its values and show what can be quantized.

functional_layers    F.conv2d(x, self.weight) becomes the layer it is
open_gates           x * sigmoid(x), x * hardsigmoid(x) for SiLU and hardswish: integer products
explicit_padding     reflected and circular borders of a convolution become an operator before it
scalars_last         (a * number) @ b becomes (a @ b) * number
channel_affines      constants that multiply and shift a layer's channels become a norm behind it
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from qdeploy.layers.norm import ChannelAffine
from qdeploy.layers.product import WEIGHT_LAYERS
from qdeploy.preparation.trace import (
    called_module,
    insert_after,
    module_calls,
    only_reader,
    replace,
    shape_of,
)
from qdeploy.preparation.vocabulary import (
    ADD,
    DIVIDE,
    HARDSIGMOID,
    MATRIX_PRODUCT,
    MULTIPLY,
    PERMUTE,
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
        setattr(layer, name, value if isinstance(value, nn.Parameter) else nn.Parameter(value))
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


def channel_affines(network: fx.GraphModule) -> None:
    """A norm behind each layer whose output is multiplied and shifted by constants per channel.

    A frozen BatchNorm and a layer scale are written so. Norms fold into the layer.
    """
    constants, calls = constant_values(network), module_calls(network)
    for node in list(network.graph.nodes):
        layer = called_module(node, network)
        if type(layer) not in WEIGHT_LAYERS or len(calls[str(node.target)]) > 1:
            continue
        axis = len(shape_of(node)) - 1 if isinstance(layer, nn.Linear) else 1
        affine = affine_of(node, axis, constants, network)
        if affine.steps:
            insert_affine(node, affine, axis, network)
    network.graph.eliminate_dead_code()


@torch.no_grad()
def constant_values(network: fx.GraphModule) -> Mapping[fx.Node, Any]:
    """Parameters and buffers, and what is computed of them alone, each with its value."""
    interpreter = fx.Interpreter(network, garbage_collect_values=False)
    found = interpreter.env
    for node in network.graph.nodes:
        sources = node.all_input_nodes
        functional = node.op in ("call_function", "call_method") and sources
        if node.op == "get_attr" or (functional and all(source in found for source in sources)):
            found[node] = interpreter.run_node(node)
    return found


@dataclass
class Affine:
    """y * weight + bias for each channel, and the nodes that compute it, each with what it reads."""

    weight: Any = 1.0
    bias: Any = 0.0
    steps: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)

    def then(self, node: fx.Node, source: fx.Node, adds: bool, constant: Any) -> bool:
        """Takes in one more sum or product; False where a parameter would stop training."""
        untouched = not differs(self.bias, 0.0) and (adds or not differs(self.weight, 1.0))
        involved = (self.bias, constant) if adds else (self.weight, self.bias, constant)
        if not untouched and any(map(is_trained, involved)):
            return False
        if adds:
            self.bias = constant if untouched else self.bias + constant
        elif untouched:
            self.weight = constant
        else:
            self.weight, self.bias = self.weight * constant, self.bias * constant
        self.steps.append((node, source))
        return True


def is_trained(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and value.requires_grad


def differs(value: Any, number: float) -> bool:
    """True for a tensor, and for any other number than this one."""
    return isinstance(value, Tensor) or value != number


def affine_of(
    layer: fx.Node, axis: int, constants: Mapping[fx.Node, Any], network: fx.GraphModule
) -> Affine:
    """What constants make of the layer's output, whose channels stand on `axis`."""
    found, node = Affine(), layer
    while user := only_reader(node):
        row = operator_of(user, network)
        if row is PERMUTE:
            axis = permutation(user).index(axis)
        elif not row.silent:
            constant = operand_of(user, node, constants, network)
            values = None if constant is None else by_channel(constant, node, axis)
            if values is None or not found.then(user, node, row is ADD, values):
                break
        node = user
    return found


def permutation(node: fx.Node) -> list[int]:
    given = node.args[1:] or tuple(node.kwargs.values())
    axes: Any = given[0] if isinstance(given[0], tuple | list) else given
    return [axis % len(axes) for axis in axes]


def operand_of(
    node: fx.Node, source: fx.Node, constants: Mapping[fx.Node, Any], network: fx.GraphModule
) -> Any:
    """The constant that the node adds to `source` or multiplies it by; None for other nodes."""
    if operator_of(node, network) not in (MULTIPLY, ADD) or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    other: Any = second if first is source else first
    return other if isinstance(other, int | float) else constants.get(other)


def by_channel(constant: Any, node: fx.Node, axis: int) -> Any:
    """The constant as a number or as [C]; None if it differs along another axis, or is a mask of -inf."""
    if isinstance(constant, Tensor) and not constant.isfinite().all():
        return None
    if not isinstance(constant, Tensor) or constant.numel() == 1:
        return float(constant)
    shape = [1] * len(shape_of(node))
    shape[axis] = shape_of(node)[axis]
    if (
        constant.ndim > len(shape)
        or [1] * (len(shape) - constant.ndim) + [*constant.shape] != shape
    ):
        return None
    flat = constant.detach().reshape(-1)
    return nn.Parameter(flat.clone()) if is_trained(constant) else flat


def insert_affine(layer: fx.Node, affine: Affine, axis: int, network: fx.GraphModule) -> None:
    """A module behind the layer in place of the operators."""
    channels = shape_of(layer)[axis]
    weight, bias = (
        value if isinstance(value, Tensor) else torch.full((channels,), float(value))
        for value in (affine.weight, affine.bias)
    )
    name = f"affines.{layer.name}"
    network.add_submodule(name, ChannelAffine(weight, bias, axis))
    for node, source in reversed(affine.steps):
        replace(node, source)
    insert_after(layer, name, network)

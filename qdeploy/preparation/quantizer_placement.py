"""Which tensors of a traced network are quantized, and which of them share one quantizer.

One rule: every float tensor is quantized once, where it is made, except

- a tensor whose only reader is a ReLU, a softmax, the BatchNorm of a layer left in float, or a positive
  number that multiplies it: what that gives is quantized instead;
- outputs of operators that only move values (pooling by maximum, flatten, reshape, concat ...):
  they share the quantizer of what they read, and so does everything a concat joins;
- what only adds constants to the network's input or multiplies it by them, up to the last of them;
- the gate of a hardswish, which stands on the grid of what it reads;
- the network's output, unless a convolution makes it, which has no integer kernel with a float
  result; and tensors that only float layers read.

It gives ONNX Runtime what its integer kernels need: quantization after Conv [+ BatchNorm]
[+ ReLU], on both inputs of an Add and after it, and a shared scale through pooling and concat.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from qdeploy.layers.activation import Rectifier
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.preparation.rewrites import (
    ADDITIONS,
    DIVISIONS,
    MULTIPLICATIONS,
    constant_nodes,
    factor,
    kind,
)
from qdeploy.preparation.trace import called_module, is_float_tensor, is_tuple
from qdeploy.preparation.tracer import TrainingOnly

FLOAT_LAYERS = (_ConvNd, nn.Linear)  # not yet replaced by a quantized layer
RECTIFIERS: set[Any] = {
    nn.ReLU, nn.ReLU6, nn.Hardtanh, Rectifier, F.relu, F.relu_, F.relu6, F.hardtanh, torch.relu,
    torch.relu_, "relu", "relu_", torch.clamp, "clamp", "clamp_",
}  # fmt: skip
MOVERS: set[Any] = {
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, F.max_pool3d, F.adaptive_max_pool3d, nn.Flatten, nn.Unflatten,
    TrainingOnly, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ChannelShuffle, nn.UpsamplingNearest2d, nn.ZeroPad2d, nn.Upsample, F.interpolate, F.pad,
    F.max_pool1d, F.max_pool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.pixel_shuffle,
    F.pixel_unshuffle, F.channel_shuffle, torch.swapaxes, torch.roll, torch.flip, torch.narrow,
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
    torch.chunk, torch.split, torch.unbind, torch.cat, torch.concat, torch.stack, torch.clone,
    operator.getitem,
    "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous",
    "chunk", "split", "unbind", "expand", "clone", "detach", "unflatten", "expand_as", "repeat",
    "swapaxes", "roll", "flip", "narrow", "tile", "movedim", "reshape_as", "view_as",
}  # fmt: skip

SOFTMAXES: set[Any] = {nn.Softmax, torch.softmax, F.softmax, "softmax"}
RELUS: set[Any] = {
    nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, F.relu, F.relu_, F.relu6, torch.relu, torch.relu_,
    torch.sigmoid, F.sigmoid, F.hardsigmoid, "relu", "relu_", "sigmoid", *SOFTMAXES,
}  # fmt: skip
PLAIN_RELUS: set[Any] = {nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
# Movers that put zeros between the values; dropout scales those that stay.
ZEROING: set[Any] = {nn.ZeroPad2d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, F.pad}
# Of values none of which is negative, these make none.
AVERAGES: set[Any] = {
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.mean, "mean",
}  # fmt: skip
SUMS: set[Any] = {
    operator.add,
    operator.iadd,
    operator.mul,
    torch.add,
    torch.mul,
    "add",
    "add_",
    "mul",
}


AFFINE = MULTIPLICATIONS | DIVISIONS | ADDITIONS | {operator.sub, torch.sub, "sub", "sub_"}


def kind_of(node: fx.Node, network: fx.GraphModule) -> Any:
    """What a node calls: a module's type, a function, or a method's name."""
    module = called_module(node, network)
    return type(module) if module is not None else node.target


def is_mover(node: fx.Node, network: fx.GraphModule) -> bool:
    sources = [source for source in node.all_input_nodes if is_float_tensor(source)]
    if kind_of(node, network) not in MOVERS or not sources:
        return False
    if kind_of(node, network) is operator.getitem and is_tuple(sources[0]):
        return is_mover(sources[0], network)  # not a part of what a whole module gives
    return makes_no_values(node, network)


def makes_no_values(node: fx.Node, network: fx.GraphModule) -> bool:
    """False for interpolation between values, and for padding with anything but 0."""
    module = called_module(node, network)
    if isinstance(module, nn.Upsample):
        return module.mode.startswith("nearest")
    if node.target is F.interpolate:
        return str(argument(node, 3, "mode", "nearest")).startswith("nearest")
    if node.target is F.pad:
        mode = argument(node, 2, "mode", "constant")
        return mode != "constant" or not argument(node, 3, "value", None)
    return True


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """What the function is given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def is_rectifier(node: fx.Node, network: fx.GraphModule) -> bool:
    return kind_of(node, network) in RECTIFIERS


@dataclass
class SharedTensor:
    """Nodes whose values stand on one grid."""

    producers: list[fx.Node]  # where values are made: a quantizer goes after each
    readers: list[fx.Node]  # operators that compute with a value

    @property
    def is_input(self) -> bool:
        """Whether the network's input is part of it."""
        return any(node.op == "placeholder" for node in self.producers)


def shared_tensors(
    network: fx.GraphModule, is_float_layer: Callable[[fx.Node], bool]
) -> list[SharedTensor]:
    """The groups of tensors to quantize, in the order of the graph."""
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in _values(network):
        merged = [node]
        if is_mover(node, network):
            for source in filter(is_float_tensor, node.all_input_nodes):
                merged = groups.get(source, []) + [
                    m for m in merged if m not in groups.get(source, [])
                ]
        for member in merged:
            groups[member] = merged
    unique = {id(group): group for group in groups.values()}.values()
    raw = raw_inputs(network)
    shared = [_shared_tensor(group, network) for group in unique]
    shared = [tensor for tensor in shared if tensor.producers]  # not a parameter, moved
    shared = [
        tensor for tensor in shared if not tensor.readers or not raw.issuperset(tensor.readers)
    ]
    return [
        tensor
        for tensor in shared
        if not all(map(is_float_layer, tensor.readers)) or is_convolved_output(tensor, network)
    ]


def raw_inputs(network: fx.GraphModule) -> set[fx.Node]:
    """The network's inputs, moved, and shifted and multiplied by constants: a normalisation."""
    found: set[fx.Node] = set()
    constants = constant_nodes(network)
    for node in network.graph.nodes:
        sources = [source for source in node.all_input_nodes if is_float_tensor(source)]
        values = [source for source in sources if source not in constants]
        affine = len(values) == 1 and (
            kind(node) in AFFINE or isinstance(called_module(node, network), _BatchNorm)
        )
        from_input = bool(values) and found.issuperset(values)
        if node.op == "placeholder" or (from_input and (affine or is_mover(node, network))):
            found.add(node)
    return found


def is_gated(tensor: SharedTensor) -> bool:
    """Whether a hardswish reads it."""
    return any(reader.target is F.hardsigmoid for reader in tensor.readers)


def is_convolved_output(tensor: SharedTensor, network: fx.GraphModule) -> bool:
    """Whether a quantized convolution makes it and nothing reads it but the output."""
    return not tensor.readers and all(is_convolution(node, network) for node in tensor.producers)


def is_convolution(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether the node calls a quantized convolution, or the ReLU behind one."""
    module = called_module(node, network)
    if is_rectifier(node, network):
        module = called_module(node.all_input_nodes[0], network)
    return isinstance(module, QuantizedLayer) and module.kind.startswith("Conv")


def is_nonnegative(tensor: SharedTensor, network: fx.GraphModule) -> bool:
    """Whether the values come from ReLUs, perhaps through pooling or sums of them."""

    def nonnegative(node: fx.Node) -> bool:
        kind = kind_of(node, network)
        if kind in RELUS:
            return True
        if kind in SUMS and "alpha" in node.kwargs:
            return False  # the factor of torch.add may be negative
        if kind in SUMS:
            terms = [*node.args, *node.kwargs.values()]
            return all(isinstance(term, fx.Node) and nonnegative(term) for term in terms)
        sources = [source for source in node.all_input_nodes if is_float_tensor(source)]
        return kind in AVERAGES | MOVERS and bool(sources) and all(map(nonnegative, sources))

    return all(map(nonnegative, tensor.producers))


def _values(network: fx.GraphModule) -> Iterator[fx.Node]:
    """Float tensors that are computed; not parameters, and not those on the way to a ReLU or a softmax."""
    for node in network.graph.nodes:
        if node.op in ("get_attr", "output") or not is_float_tensor(node):
            continue
        if is_tuple(node) and not is_mover(node, network):
            continue  # its parts are quantized where they are taken out
        if node.target is F.hardsigmoid:
            continue
        if not (_is_passed_on(node, network) or _is_normalized(node, network)):
            yield node


def _is_passed_on(node: fx.Node, network: fx.GraphModule) -> bool:
    """True for what an operator computes only for a ReLU, a factor or a softmax to read."""
    if node.op == "placeholder" or is_mover(node, network) or len(node.users) != 1:
        return False
    (reader,) = node.users
    if kind_of(reader, network) in SOFTMAXES:
        return True
    return is_rectifier(reader, network) or factor(reader) is not None


def _is_normalized(node: fx.Node, network: fx.GraphModule) -> bool:
    """True for what a float layer computes only for its BatchNorm to read; those fold at export."""
    if not isinstance(called_module(node, network), FLOAT_LAYERS) or len(node.users) != 1:
        return False
    return isinstance(called_module(next(iter(node.users)), network), _BatchNorm)


def _shared_tensor(group: list[fx.Node], network: fx.GraphModule) -> SharedTensor:
    producers = [node for node in group if not is_mover(node, network)]
    readers = [
        user
        for node in group
        for user in node.users
        if computes(user) and not is_mover(user, network)
    ]
    return SharedTensor(producers, readers)


def computes(node: fx.Node) -> bool:
    """Whether values come of it: not of the output, nor of what asks for a shape."""
    return node.op != "output" and (is_float_tensor(node) or is_tuple(node))

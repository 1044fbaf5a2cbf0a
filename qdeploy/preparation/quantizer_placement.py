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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from qdeploy.layers.norm import BATCH_NORMS, BatchNorm
from qdeploy.layers.product import WEIGHT_LAYERS
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.preparation.rewrites import constant_nodes, factor
from qdeploy.preparation.trace import called_module, is_float_tensor, is_tuple
from qdeploy.preparation.vocabulary import (
    ADD,
    DIVIDE,
    GETITEM,
    HARDSIGMOID,
    MULTIPLY,
    SOFTMAX,
    SUBTRACT,
    gives_non_negative,
    is_clip,
    keeps_non_negative,
    moves,
    operator_of,
    writes_in_place,
)

ARITHMETIC = (ADD, SUBTRACT, MULTIPLY, DIVIDE)


def is_mover(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it gives values that it read, and computes none."""
    sources = [source for source in node.all_input_nodes if is_float_tensor(source)]
    if not sources or not moves(node, network):
        return False
    if operator_of(node, network) is GETITEM and is_tuple(sources[0]):
        return is_mover(sources[0], network)  # not a part of what a whole module gives
    return True


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
    for node in quantizable_tensors(network):
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
            operator_of(node, network) in ARITHMETIC
            or isinstance(called_module(node, network), BATCH_NORMS)
        )
        from_input = bool(values) and found.issuperset(values)
        if node.op == "placeholder" or (from_input and (affine or is_mover(node, network))):
            found.add(node)
    return found


def is_gated(tensor: SharedTensor, network: fx.GraphModule) -> bool:
    """Whether a hardswish reads it."""
    return any(is_hard_gate(reader, network) for reader in tensor.readers)


def is_hard_gate(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it is the gate of a hardswish, as rewrites.py writes it."""
    return operator_of(node, network) is HARDSIGMOID and not writes_in_place(node, network)


def is_convolved_output(tensor: SharedTensor, network: fx.GraphModule) -> bool:
    """Whether a quantized convolution makes it and nothing reads it but the output."""
    return not tensor.readers and all(is_convolution(node, network) for node in tensor.producers)


def is_convolution(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether the node calls a quantized convolution, or the ReLU behind one."""
    module = called_module(node.all_input_nodes[0] if is_clip(node, network) else node, network)
    return isinstance(module, QuantizedLayer) and module.product.shipped.channel_axis == 1


def is_nonnegative(tensor: SharedTensor, network: fx.GraphModule) -> bool:
    """Whether no value of it is negative: of ReLUs, say, pooled or added up."""

    def nonnegative(node: fx.Node) -> bool:
        if gives_non_negative(node, network):
            return True
        if not keeps_non_negative(node, network):
            return False
        read: list[Any] = list(filter(is_float_tensor, node.all_input_nodes))
        if operator_of(node, network) in ARITHMETIC:  # numbers among them may be negative
            read = [*node.args, *(v for name, v in node.kwargs.items() if name != "alpha")]
        return bool(read) and all(isinstance(x, fx.Node) and nonnegative(x) for x in read)

    return all(map(nonnegative, tensor.producers))


def quantizable_tensors(network: fx.GraphModule) -> Iterator[fx.Node]:
    """Float tensors that are computed; not parameters, and not those on the way to a ReLU or a softmax."""
    for node in network.graph.nodes:
        if node.op in ("get_attr", "output") or not is_float_tensor(node):
            continue
        if is_tuple(node) and not is_mover(node, network):
            continue  # its parts are quantized where they are taken out
        if is_hard_gate(node, network):
            continue
        if not (_is_passed_on(node, network) or _is_normalized(node, network)):
            yield node


def _is_passed_on(node: fx.Node, network: fx.GraphModule) -> bool:
    """True for what an operator computes only for a ReLU, a factor or a softmax to read."""
    if node.op == "placeholder" or is_mover(node, network) or len(node.users) != 1:
        return False
    (reader,) = node.users
    softmax = operator_of(reader, network) is SOFTMAX
    return softmax or is_clip(reader, network) or factor(reader, network) is not None


def _is_normalized(node: fx.Node, network: fx.GraphModule) -> bool:
    """True for what a float layer computes only for its BatchNorm to read; those fold at export."""
    if not isinstance(called_module(node, network), WEIGHT_LAYERS) or len(node.users) != 1:
        return False
    return isinstance(called_module(next(iter(node.users)), network), BatchNorm)


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

"""Which tensors of a traced network are quantized, and which of them share one quantizer.

One rule: every float tensor is quantized once, where it is made, except

- a tensor whose only reader is a ReLU, a softmax, the BatchNorm of a layer left in float, or a positive
  number that multiplies it: what that gives is quantized instead;
- outputs of operators that only move values (pooling by maximum, flatten, reshape, concat ...):
  they share the quantizer of what they read, and so does everything a concat joins;
- what only adds constants to the network's input or multiplies it by them, up to the last of them;
- the gate of a hardswish, which stands on the grid of what it reads;
- the network's output and what recurrent layers read, unless a convolution makes it, which has no integer
  kernel with a float result; and tensors that only float layers read;
- what is made and read in a region that stays float (regions.py), but for a convolution in front of it;
- what is made of parameters alone;
- values that must not be rounded to 0 (small_values.py), but in front of layers.

It gives ONNX Runtime what its integer kernels need: quantization after Conv [+ BatchNorm]
[+ ReLU], on both inputs of an Add and after it, and a shared scale through pooling and concat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from qdeploy.layers.norm import BATCH_NORMS, BatchNorm
from qdeploy.layers.product import WEIGHT_LAYERS
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.recurrent import Recurrent
from qdeploy.preparation.channel_affines import constant_values
from qdeploy.preparation.graph import (
    called_module,
    float_inputs,
    is_float_tensor,
    is_tuple,
    only_reader,
)
from qdeploy.preparation.rewrites import factor
from qdeploy.preparation.sizes import made_of_sizes
from qdeploy.preparation.small_values import small_values
from qdeploy.preparation.vocabulary import (
    ADD,
    DIVIDE,
    GETITEM,
    HARDSIGMOID,
    MULTIPLY,
    POWER,
    SOFTMAX,
    SUBTRACT,
    gives_non_negative,
    is_clip,
    keeps_non_negative,
    moves,
    operator_of,
)

ARITHMETIC = (ADD, SUBTRACT, MULTIPLY, DIVIDE, POWER)


def is_mover(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it gives values that it read, and computes none."""
    sources = float_inputs(node)
    if not sources or not is_float_tensor(node) or not moves(node, network):
        return False
    if operator_of(node, network) is GETITEM and is_tuple(sources[0]):
        return is_mover(sources[0], network)  # not a part of what a whole module gives
    return True


@dataclass
class SharedTensor:
    """Nodes whose values stand on one grid: members."""

    members: list[fx.Node]
    producers: list[fx.Node]  # where values are made
    readers: list[fx.Node]  # operators that compute with a rounded value
    is_rounded_where_made: bool = True  # or else for these readers alone

    @property
    def is_input(self) -> bool:
        """Whether the network's input is part of it."""
        return any(node.op == "placeholder" for node in self.producers)

    @property
    def places(self) -> list[tuple[fx.Node, list[fx.Node] | None]]:
        """The nodes that a quantizer goes after, each with who reads it then; None: everybody."""
        if self.is_rounded_where_made:
            return [(node, None) for node in self.producers]
        return [(node, self.readers) for node in places_before(self.readers, self.members)]


def shared_tensors(
    network: fx.GraphModule,
    is_float_layer: Callable[[fx.Node], bool],
    region: Collection[fx.Node] = (),
) -> list[SharedTensor]:
    """The groups of tensors to quantize, in the order of the graph; region: the nodes that stay float."""
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in quantizable_tensors(network):
        merged = [node]
        if is_mover(node, network):
            for source in float_inputs(node):
                joined = groups.get(source, [])
                merged = joined + [member for member in merged if member not in joined]
        for member in merged:
            groups[member] = merged
    unique = {id(group): group for group in groups.values()}.values()
    raw = raw_inputs(network)

    def computes_in_float(node: fx.Node) -> bool:
        return node in region or isinstance(called_module(node, network), Recurrent)

    def is_rounded(tensor: SharedTensor) -> bool:
        if all(map(computes_in_float, tensor.readers)):  # or none reads it but the output
            made_by_convolutions = all(is_convolution(node, network) for node in tensor.producers)
            return tensor.is_rounded_where_made and made_by_convolutions
        in_float = (is_float_layer(node) or computes_in_float(node) for node in tensor.readers)
        return not raw.issuperset(tensor.readers) and not all(in_float)

    small = small_values(network)
    shared = [_shared_tensor(group, small, region, network) for group in unique]
    # What has no producers is a parameter, moved.
    return [tensor for tensor in shared if tensor.producers and is_rounded(tensor)]


def raw_inputs(network: fx.GraphModule) -> set[fx.Node]:
    """The network's inputs, moved, and shifted and multiplied by constants: a normalisation."""
    found: set[fx.Node] = set()
    constants = constant_values(network)
    for node in network.graph.nodes:
        values = [source for source in float_inputs(node) if source not in constants]
        affine = len(values) == 1 and (
            operator_of(node, network) in (ADD, SUBTRACT, MULTIPLY, DIVIDE)
            or is_clip(node, network)
            or isinstance(called_module(node, network), BATCH_NORMS)
        )
        from_input = bool(values) and found.issuperset(values)
        if node.op == "placeholder" or (from_input and (affine or is_mover(node, network))):
            found.add(node)
    return found


def is_hard_gate(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether it is the gate of a hardswish, as rewrites.py writes it."""
    return operator_of(node, network) is HARDSIGMOID


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
        read: list[Any] = float_inputs(node)
        if operator_of(node, network) in ARITHMETIC:  # numbers among them may be negative
            read = [*node.args, *(v for name, v in node.kwargs.items() if name != "alpha")]
        return bool(read) and all(
            nonnegative(x) if isinstance(x, fx.Node) else isinstance(x, int | float) and x >= 0
            for x in read
        )

    return all(map(nonnegative, tensor.producers))


def quantizable_tensors(network: fx.GraphModule) -> Iterator[fx.Node]:
    """Float tensors that are computed of inputs' values, but not those on the way to a ReLU or a softmax."""
    computed = made_of_inputs(network) - made_of_sizes(network)
    for node in network.graph.nodes:
        if node.op == "output" or node not in computed or not is_float_tensor(node):
            continue
        if is_tuple(node) and not is_mover(node, network):
            continue  # its parts are quantized where they are taken out
        if not is_hard_gate(node, network) and not _is_passed_on(node, network):
            yield node


def made_of_inputs(network: fx.GraphModule) -> set[fx.Node]:
    """What depends on an input; all else is made of parameters, and a number in the file."""
    found: set[fx.Node] = set()
    for node in network.graph.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_passed_on(node: fx.Node, network: fx.GraphModule) -> bool:
    """True for what an operator computes only for a ReLU, a factor or a softmax to read.

    Nor does anything else read what a float layer gives its BatchNorm: they fold at export.
    """
    reader = only_reader(node)
    if node.op == "placeholder" or is_mover(node, network) or reader is None:
        return False
    if operator_of(reader, network) is SOFTMAX or is_clip(reader, network):
        return True
    layer, norm = called_module(node, network), called_module(reader, network)
    is_norm = isinstance(norm, BatchNorm) and norm.track_running_stats
    folds = is_norm and isinstance(layer, WEIGHT_LAYERS)
    return folds or factor(reader, network) is not None


def _shared_tensor(
    group: list[fx.Node],
    small: set[fx.Node],
    region: Collection[fx.Node],
    network: fx.GraphModule,
) -> SharedTensor:
    producers = [node for node in group if not is_mover(node, network)]
    readers = [
        user
        for node in group
        for user in node.users
        # Values come of it: not of the output, nor of what asks for a shape.
        if user.op != "output" and (is_float_tensor(user) or is_tuple(user))
        if not is_mover(user, network)
    ]
    if not small.isdisjoint(group):
        layers = [n for n in readers if isinstance(called_module(n, network), QuantizedLayer)]
        return SharedTensor(group, producers, layers, is_rounded_where_made=False)
    if any(node in region for node in producers):
        outside = [node for node in readers if node not in region]
        return SharedTensor(group, producers, outside, is_rounded_where_made=False)
    return SharedTensor(group, producers, readers)


def places_before(readers: list[fx.Node], tensor: Collection[fx.Node]) -> list[fx.Node]:
    """Which nodes of a tensor these readers read."""
    read = (node for reader in readers for node in reader.all_input_nodes)
    return list(dict.fromkeys(node for node in read if node in tensor))

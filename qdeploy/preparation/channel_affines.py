"""Constants that multiply and shift a layer's channels become a norm behind it, which folds into it.

A frozen BatchNorm, a layer scale, and the learned scalar of a residual branch are written so. The
norm computes its gain and shift from the network's own parameters, by the operators that stood in
the graph: they train on, and become numbers where the norm folds, at `convert`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeploy.layers.norm import ChannelAffine
from qdeploy.layers.product import WEIGHT_LAYERS
from qdeploy.preparation.graph import (
    Interpreter,
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
    MULTIPLY,
    PERMUTE,
    SUBTRACT,
    UNKNOWN,
    operator_of,
)


def channel_affines(network: fx.GraphModule) -> None:
    """Inserts a ChannelAffine behind each layer that is followed by sums and products with constants."""
    constants, calls = constant_values(network), module_calls(network)
    for node in list(network.graph.nodes):
        layer = called_module(node, network)
        if type(layer) not in WEIGHT_LAYERS or len(calls[str(node.target)]) > 1:
            continue
        axis = len(shape_of(node)) - 1 if isinstance(layer, nn.Linear) else 1
        affine = Affine(network, constants)
        affine.follow(node, axis)
        if affine.steps:
            name = f"affines.{node.name}"
            network.add_submodule(name, affine.module(shape_of(node)[axis], axis))
            for step, source in reversed(affine.steps):
                replace(step, source)
            insert_after(node, name, network)
    network.graph.eliminate_dead_code()


@torch.no_grad()
def constant_values(network: fx.GraphModule) -> Mapping[fx.Node, Any]:
    """Parameters and buffers, and what known operators make of them alone, each with its value."""
    interpreter = Interpreter(network, garbage_collect_values=False)
    found = interpreter.env
    for node in network.graph.nodes:
        sources = node.all_input_nodes
        known = node.op in ("call_function", "call_method") or (
            operator_of(node, network) is not UNKNOWN and not operator_of(node, network).silent
        )
        if node.op == "get_attr" or (known and sources and found.keys() >= {*sources}):
            found[node] = interpreter.run_node(node)
    return found


class Affine:
    """y * gain + shift for each channel, and the nodes that compute it, each with what it reads.

    Gain and shift are numbers, or nodes of a graph of their own.
    """

    def __init__(self, network: fx.GraphModule, constants: Mapping[fx.Node, Any]) -> None:
        self.network = network
        self.constants = constants
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.gain: Any = 1.0
        self.shift: Any = 0.0
        self.steps: list[tuple[fx.Node, fx.Node]] = []

    def follow(self, node: fx.Node, axis: int) -> None:
        """Takes in what constants make of a layer's output, whose channels stand on `axis`."""
        while user := only_reader(node):
            row = operator_of(user, self.network)
            if row is PERMUTE:
                axis = permutation(user).index(axis)
            elif not self.is_identity(user) and not self.take_in(user, node, axis):
                break
            node = user

    def is_identity(self, node: fx.Node) -> bool:
        """Whether it does nothing; a dropout does, in training."""
        return isinstance(called_module(node, self.network), nn.Identity)

    def take_in(self, node: fx.Node, source: fx.Node, axis: int) -> bool:
        """Whether the node adds a constant to `source`, multiplies by it, or the like."""
        row = operator_of(node, self.network)
        if row not in STEPS or len(node.args) != 2 or node.kwargs:
            return False
        first, second = node.args
        other: Any = second if first is source else first
        if (row is DIVIDE and other is first) or not self.is_by_channel(other, source, axis):
            return False
        constant = other if isinstance(other, int | float) else self.copied(other)
        if row is SUBTRACT and other is first:  # c - y
            self.multiply(-1)
            row = ADD
        STEPS[row](self, constant)
        self.steps.append((node, source))
        return True

    def add(self, constant: Any) -> None:
        self.shift = self.call(operator.add, self.shift, constant)

    def subtract(self, constant: Any) -> None:
        self.shift = self.call(operator.sub, self.shift, constant)

    def multiply(self, constant: Any) -> None:
        self.gain, self.shift = (
            self.call(operator.mul, x, constant) for x in (self.gain, self.shift)
        )

    def divide(self, constant: Any) -> None:
        self.gain, self.shift = (
            self.call(operator.truediv, x, constant) for x in (self.gain, self.shift)
        )

    def call(self, function: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
        if isinstance(first, fx.Node) or isinstance(second, fx.Node):
            return self.graph.call_function(function, (first, second))
        return function(first, second)

    def is_by_channel(self, constant: Any, node: fx.Node, axis: int) -> bool:
        """Whether it is one number, or one for each channel; a mask of -inf is neither."""
        if isinstance(constant, int | float):
            return True
        value = self.constants.get(constant)
        if not isinstance(value, Tensor) or not value.isfinite().all():
            return False
        shape = [1] * len(shape_of(node))
        if value.ndim > len(shape):
            return False
        shape[axis] = shape_of(node)[axis]
        return value.numel() == 1 or [1] * (len(shape) - value.ndim) + [*value.shape] == shape

    def copied(self, constant: fx.Node) -> fx.Node:
        """The constant in the graph of its own, as [C] or [1]."""
        return self.graph.call_method("flatten", (self.copy(constant),))

    def copy(self, node: fx.Node) -> fx.Node:
        if node not in self.copies:
            for source in node.all_input_nodes:
                self.copy(source)
            self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
        return self.copies[node]

    def module(self, channels: int, axis: int) -> ChannelAffine:
        self.graph.output((self.gain, self.shift))
        return ChannelAffine(fx.GraphModule(self.network, self.graph), channels, axis)


STEPS = {
    ADD: Affine.add,
    SUBTRACT: Affine.subtract,
    MULTIPLY: Affine.multiply,
    DIVIDE: Affine.divide,
}


def permutation(node: fx.Node) -> list[int]:
    given = node.args[1:] or tuple(node.kwargs.values())
    axes: Any = given[0] if isinstance(given[0], tuple | list) else given
    return [axis % len(axes) for axis in axes]

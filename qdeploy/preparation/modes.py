"""A network that does other things in training than in evaluation, as one graph.

The graph is that of evaluation; what training computes otherwise (an auxiliary classifier, logits in
place of boxes) stands beside it. Where a layer of both modes reads something else in each, `by_mode`
stands between, and the output is a `ByMode`. So a layer and a quantizer that both modes use are one.
`forwards` ends this: each mode gets the code that runs in it.
"""

from __future__ import annotations

from collections import defaultdict
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.graph_module import _copy_attr
from torch.fx.node import map_arg

from qdeploy.layers.activation import DeferredReLU
from qdeploy.preparation.forward import Forward
from qdeploy.preparation.graph import called_module
from qdeploy.preparation.sizes import expect, expect_sizes
from qdeploy.preparation.tracer import by_mode
from qdeploy.preparation.vocabulary import Argument, argument, operator_of


class ByMode(NamedTuple):
    """What forward returns in each mode."""

    evaluation: Any
    training: Any


def join_modes(network: fx.GraphModule, training: fx.GraphModule) -> None:
    """Adds to the graph of evaluation what the graph of training does otherwise."""
    join = Join(network, training)
    for node in training.graph.nodes:
        join.take(node)
    network.recompile()


class Join:
    """Finds the twin in the network of each node of training, and makes one where there is none.

    What is made stands behind what training computed before, so that writing in place stays in order.
    """

    def __init__(self, network: fx.GraphModule, training: fx.GraphModule) -> None:
        self.network, self.training = network, training
        self.twins: dict[fx.Node, fx.Node] = {}
        self.taken: set[fx.Node] = set()
        self.last = next(iter(network.graph.nodes))
        self.free: dict[str, list[fx.Node]] = defaultdict(list)
        for node in network.graph.nodes:
            self.free[meaning(node, node.args, node.kwargs, network)].append(node)
            if node.op == "call_module" and [*network.get_submodule(node.target).parameters()]:
                self.free[node.target].append(node)

    def take(self, node: fx.Node) -> None:
        args, kwargs = map_arg((node.args, node.kwargs), self.twins.__getitem__)
        if node.op == "output":
            self.end(args[0])
        elif node.target not in (expect, expect_sizes):
            twin = self.same(node, args, kwargs) or self.layer(node, args)
            self.twins[node] = twin = twin or self.copied(node, args, kwargs)
            self.taken.add(twin)
            self.last = max(self.last, twin)

    def same(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node | None:
        """A node of evaluation that does the same with the same."""
        if node.op == "get_attr" and not self.has_constant(str(node.target)):
            return None
        return self.claimed(self.free[meaning(node, args, kwargs, self.training)])

    def layer(self, node: fx.Node, args: Any) -> fx.Node | None:
        """The call of the same layer in evaluation, which then reads what each mode gives it."""
        twin = self.claimed(self.free[str(node.target)])
        if twin is None or not (is_node(args) and is_node(twin.args) and args[0] < twin):
            return None
        with self.network.graph.inserting_before(twin):
            read = self.network.graph.call_function(by_mode, (twin.args[0], args[0]))
        twin.args = (read,)
        return twin

    def claimed(self, nodes: list[fx.Node]) -> fx.Node | None:
        return next((node for node in nodes if node not in self.taken), None)

    def has_constant(self, name: str) -> bool:
        """Whether a tensor of this name is the same one: torch.fx numbers those that forward makes."""
        made, own = name.startswith("_tensor_constant"), getattr(self.network, name, None)
        return not made or (own is not None and torch.equal(own, getattr(self.training, name)))

    def copied(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        """A node for training alone, and the module or tensor that it takes."""
        target = node.target
        if node.op == "get_attr" and hasattr(self.network, str(target)):
            target = f"{target}_in_training"
            self.network.register_buffer(target, attrgetter(str(node.target))(self.training))
        elif node.op in ("get_attr", "call_module"):
            _copy_attr(self.training, self.network, str(target))
        with self.network.graph.inserting_after(self.last):
            return self.network.graph.create_node(node.op, target, args, kwargs, node.name)

    def end(self, returned: Any) -> None:
        output = self.network.graph.output_node()
        if str(output.args[0]) != str(returned):
            output.args = (ByMode(output.args[0], returned),)


def is_node(args: Any) -> bool:
    """Whether a call is given one value of the graph by position."""
    return len(args) == 1 and isinstance(args[0], fx.Node)


def meaning(node: fx.Node, args: Any, kwargs: Any, network: fx.GraphModule) -> str:
    """What a node does, without the mode that a dropout or a norm is told."""
    row = operator_of(node, network)
    if row.module and row.silent and node.op == "call_function":
        read = [*args, *kwargs.values()][0]
        return f"{row.name} {read} {argument(node, network, Argument('p', 1, 0.5))}"
    if node.target is F.batch_norm:
        return f"batch_norm {[*args, *kwargs.values()][0]}"
    return f"{node.op} {node.target} {args} {kwargs}"


def forwards(network: fx.GraphModule) -> tuple[Forward, Forward]:
    """What runs in evaluation, and what in training: the same where both do the same."""
    evaluation, training = (graph_of_mode(network, mode) for mode in (False, True))
    run = Forward(evaluation)
    return run, run if str(evaluation) == str(training) else Forward(training)


def graph_of_mode(network: fx.GraphModule, training: bool) -> fx.Graph:
    """A copy of the graph without what only the other mode computes."""
    graph = fx.Graph(network)
    returned: Any = graph.graph_copy(network.graph, {})
    graph.output(returned[training] if isinstance(returned, ByMode) else returned)
    for node in graph.nodes:
        if node.target is by_mode:
            node.replace_all_uses_with(node.args[training])
            graph.erase_node(node)
    if training:
        defer(graph, network)
    graph.eliminate_dead_code()
    return graph


def defer(graph: fx.Graph, network: fx.GraphModule) -> None:
    """Tells each deferred ReLU that a quantizer behind it will clip."""
    for node in graph.find_nodes(op="call_module"):
        if isinstance(called_module(node, network), DeferredReLU):
            node.kwargs = {"deferred": True}

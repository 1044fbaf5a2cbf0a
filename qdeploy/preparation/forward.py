"""The code that a prepared network runs in place of its own forward: a graph, compiled."""

from __future__ import annotations

import io
import pickle
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx.node import map_aggregate, map_arg
from typing_extensions import Self

from qdeploy.errors import QdeployError


@dataclass(frozen=True)
class Reference:
    """Stands for a node of the graph where one is pickled."""

    name: str


class Forward:
    """Runs a graph with the modules and parameters of a network, which it is given at each call.

    The graph does not change any more, so that copies of a network share it. It is pickled node by
    node: torch.fx keeps of a graph nothing but its code, and not what its nodes know of their tensors.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.start(graph)

    def start(self, graph: fx.Graph) -> None:
        self.graph, self.run = graph, compiled(graph)
        self.takes = len(graph.find_nodes(op="placeholder"))

    def __call__(self, network: nn.Module, *inputs: Any) -> Any:
        return self.run(network, *inputs)

    @property
    def arguments(self) -> dict[str, torch.dtype]:
        """The tensors that forward takes: their names and types."""
        nodes = self.graph.find_nodes(op="placeholder")
        return {str(node.target): node.meta["tensor_meta"].dtype for node in nodes}

    def in_order(
        self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """All that forward takes, by position. Errors: QdeployError for more, fewer or other names."""
        if not named and len(inputs) == self.takes:
            return inputs
        names = list(self.arguments)
        given, wanted = names[: len(inputs)], names[len(inputs) :]
        if set(wanted) != named.keys() or len(inputs) > len(names):
            more = [f"{len(inputs) - len(names)} more"] if len(inputs) > len(names) else []
            found = ", ".join([*given, *more, *named]) or "nothing"
            raise QdeployError(
                f"forward was prepared for {', '.join(names)} and is given {found}; give it those, by name "
                "or in order. What else the float network takes keeps its default"
            )
        return *inputs, *(named[name] for name in wanted)

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __getstate__(self) -> bytes:
        file = io.BytesIO()
        GraphPickler(file).dump([data_of(node) for node in self.graph.nodes])
        return file.getvalue()

    def __setstate__(self, state: bytes) -> None:
        graph: fx.Graph = fx.Graph()
        nodes: dict[str, fx.Node] = {}
        for name, op, target, reads, shape in pickle.loads(state):
            args, kwargs = map_aggregate(
                reads, lambda x: nodes[x.name] if isinstance(x, Reference) else x
            )
            nodes[name] = node = graph.create_node(op, target, args, kwargs, name)
            node.meta["tensor_meta"] = shape
        self.start(graph)


class OfNoPart(Forward):
    """Stands where a network has no graph: in a slice of a Sequential, `prepared[:2]`."""

    def __init__(self) -> None:
        pass

    def in_order(self, inputs: Any, named: Any) -> Any:
        raise QdeployError(
            "only the whole prepared network runs, not a slice of it; what its modules give inside of it "
            'is had by qdeploy.features(prepared, ["1"])'
        )


def data_of(node: fx.Node) -> tuple[Any, ...]:
    """Name, operation, target, what it reads, and the shape of what it gives."""
    refer: Any = Reference
    reads = map_arg((node.args, dict(node.kwargs)), lambda read: refer(read.name))
    return node.name, node.op, node.target, reads, node.meta.get("tensor_meta")


class GraphPickler(pickle.Pickler):
    """Knows by their names what pickle does not: operators of torch.ops, and F.max_pool2d and the like."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, OpOverload | OpOverloadPacket):
            return pkgutil.resolve_name, (f"torch:ops.{value}",)
        if isinstance(value, FunctionType) and "<locals>" in value.__qualname__:
            return pkgutil.resolve_name, (f"{value.__module__}:{value.__name__}",)
        return NotImplemented


def compiled(graph: fx.Graph) -> Callable[..., Any]:
    """The function that the graph is; its first argument is the network."""
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(code.src, scope)
    forward: Callable[..., Any] = scope["forward"]
    return forward

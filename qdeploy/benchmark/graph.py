"""An ONNX file as a graph: who makes a value, who reads it, and which nodes are products."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from qdeploy.onnx_file import MOVERS

Array = np.ndarray[Any, np.dtype[Any]]


def is_product(operator: str) -> bool:
    """True for convolutions and matrix products: Conv, QLinearConv, FusedGemm, MatMulInteger ..."""
    return any(word in operator for word in ("Conv", "Gemm", "MatMul"))


@dataclass(frozen=True)
class Graph:
    """The nodes of a file and the edges between them.

    Attributes:
        makers: {value: the index of the node that makes it}.
        readers: {value: the nodes that read it}.
        constants: {value: the weight or constant of this name}.
        outputs: what the network gives.
    """

    nodes: tuple[NodeProto, ...]
    makers: dict[str, int]
    readers: dict[str, list[NodeProto]]
    constants: dict[str, TensorProto]
    outputs: frozenset[str]

    def maker(self, value: str) -> NodeProto | None:
        """The node that makes a value; None for inputs and constants."""
        return self.nodes[self.makers[value]] if value in self.makers else None

    def behind_movers(self, value: str) -> NodeProto | None:
        """The node that made the value before it was moved, None if that is no node."""
        node = self.maker(value)
        while node is not None and node.op_type in MOVERS:
            node = self.maker(node.input[0])
        return node

    def product_before(self, value: str) -> int | None:
        """The index of the nearest product that a value was computed from."""
        front = [value]
        while front:
            made = [self.makers[one] for one in front if one in self.makers]
            for index in made:
                if is_product(self.nodes[index].op_type):
                    return index
            front = [source for index in made for source in self.nodes[index].input]
        return None

    def array(self, value: str) -> Array | None:
        """A constant held in the file itself, None for what is computed or stored beside it."""
        tensor = self.constants.get(value)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def names(self) -> tuple[str, ...]:
        """A name for each node: its own, or its operator and how many such came before it."""
        seen: Counter[str] = Counter()
        names = []
        for node in self.nodes:
            seen[node.op_type] += 1
            names.append(node.name or f"{node.op_type} {seen[node.op_type]}")
        return tuple(names)


def graph_of(model: onnx.ModelProto) -> Graph:
    """The main graph of a network; the branches of If and Loop are not looked into."""
    nodes = tuple(model.graph.node)
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        for value in node.input:
            readers[value].append(node)
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    makers = {value: index for index, node in enumerate(nodes) for value in node.output if value}
    outputs = frozenset(value.name for value in model.graph.output)
    return Graph(nodes, makers, readers, constants, outputs)

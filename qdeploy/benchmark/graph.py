"""An ONNX file as a graph: who makes a value, who reads it, and which values are constants."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from qdeploy.errors import QdeployError
from qdeploy.onnx_file import MOVERS, RECURRENT, content

Array = np.ndarray[Any, np.dtype[Any]]

# The oldest DequantizeLinear of onnx's evaluator, which computes those before as well: it takes all that
# they take.
FIRST_DEQUANTIZER = 19


def is_product(operator: str) -> bool:
    """True for convolutions, matrix products and recurrent layers: Conv, QGemm, MatMulInteger, LSTM ..."""
    return any(word in operator for word in ("Conv", "Gemm", "MatMul", *RECURRENT))


def is_foreign(domain: str) -> bool:
    """True for operators that are not ONNX's own."""
    return domain not in ("", "ai.onnx")


class Graph:
    """The main graph of a model; the branches of If and Loop are not looked into.

    Constants are initialisers and what nodes make of constants alone, such as unpacked weights.

    folder   where the file lies, for weights beside it.
    opset    of ONNX's own operators.
    nodes    in the order of the file.
    makers   {value: the index of the node that makes it}.
    readers  {value: the nodes that read it}.
    tensors  the initialisers by name.
    outputs  the names of what the network gives.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self.folder = folder
        own = (entry.version for entry in model.opset_import if not is_foreign(entry.domain))
        self.opset = max(own, default=0)
        self.nodes = tuple(model.graph.node)
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self._fixed = set(self.tensors)
        self._known: dict[str, Array] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
            if _is_plain(node) and all(not name or name in self._fixed for name in node.input):
                self._fixed.update(filter(None, node.output))

    def names(self) -> tuple[str, ...]:
        """A name for each node: its own, or its operator and how many such came before it."""
        seen: Counter[str] = Counter()
        names = []
        for node in self.nodes:
            seen[node.op_type] += 1
            names.append(node.name or f"{node.op_type} {seen[node.op_type]}")
        return tuple(names)

    def maker(self, value: str) -> NodeProto | None:
        """The node that makes a value; None for inputs and initialisers."""
        return self.nodes[self.makers[value]] if value in self.makers else None

    def unmoved(self, value: str) -> str:
        """The value before what only moved it on its way."""
        while (node := self.maker(value)) is not None and node.op_type in MOVERS:
            value = node.input[0]
        return value

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

    def is_constant(self, value: str) -> bool:
        """Whether a value is the same in every run."""
        return value in self._fixed

    def array(self, value: str) -> Array:
        """A constant, computed when first asked for."""
        if value not in self._known:
            if value in self.tensors:
                self._known[value] = numpy_helper.to_array(self.tensors[value], str(self.folder))
            else:
                self._compute(self.nodes[self.makers[value]])
        return self._known[value]

    def sources(self, value: str) -> set[str]:
        """The initialisers that a constant is made of."""
        if value in self.tensors:
            return {value}
        made_of = self.nodes[self.makers[value]].input
        return set().union(*(self.sources(part) for part in made_of if part))

    def held(self, value: str) -> int:
        """The bytes of a constant, in the file or beside it."""
        tensor = self.tensors.get(value)
        stored = b"" if tensor is None else content(tensor, self.folder)
        return len(stored) or self.array(value).nbytes

    def _compute(self, node: NodeProto) -> None:
        inputs = {name: self.array(name) for name in node.input if name}
        reads, gives = (
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names]
            for names in (inputs, node.output)
        )
        graph = onnx.helper.make_graph([node], "constant", reads, gives)
        opset = self.opset
        if node.op_type == "DequantizeLinear":
            opset = max(opset, FIRST_DEQUANTIZER)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        try:
            results = ReferenceEvaluator(model).run(None, inputs)
        except Exception as error:
            raise QdeployError(
                f"onnx {onnx.__version__} cannot compute the constant {node.output[0]}, which a "
                f"{node.op_type} of opset {opset} makes: {error}; a newer onnx may"
            ) from error
        self._known.update(zip(node.output, map(np.asarray, results), strict=True))


def _is_plain(node: NodeProto) -> bool:
    """An operator of ONNX itself, without randomness and without a graph of its own."""
    has_graph = any(attribute.HasField("g") for attribute in node.attribute)
    return not is_foreign(node.domain) and "Random" not in node.op_type and not has_graph

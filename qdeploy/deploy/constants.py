"""The constants of a graph, also those that nodes make of others, such as unpacked weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[np.generic]


class Constants:
    """Which values of a graph never change, and what they are, computed when first asked for.

    model   as read from the file; folder: where it lies, for weights beside it
    """

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self.folder = folder
        self.opsets = list(model.opset_import)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output if name}
        self.known: dict[str, Array] = {}
        self.fixed = set(self.tensors)
        for node in model.graph.node:
            if _is_plain(node) and all(not name or name in self.fixed for name in node.input):
                self.fixed.update(node.output)

    def __contains__(self, name: str) -> bool:
        return name in self.fixed

    def __getitem__(self, name: str) -> Array:
        if name not in self.known:
            if name in self.tensors:
                self.known[name] = numpy_helper.to_array(self.tensors[name], str(self.folder))
            else:
                self._compute(self.makers[name])
        return self.known[name]

    def sources(self, name: str) -> set[str]:
        """The initialisers that a constant is made of."""
        if name in self.tensors:
            return {name}
        maker = self.makers[name]
        return set().union(*(self.sources(part) for part in maker.input if part))

    def _compute(self, node: onnx.NodeProto) -> None:
        inputs = {name: self[name] for name in node.input if name}
        empty = onnx.TypeProto()
        graph = onnx.helper.make_graph(
            [node],
            "constant",
            [onnx.helper.make_value_info(name, empty) for name in inputs],
            [onnx.helper.make_value_info(name, empty) for name in node.output],
        )
        model = onnx.helper.make_model(graph, opset_imports=self.opsets)
        results = ReferenceEvaluator(model).run(None, inputs)
        self.known.update(zip(node.output, map(np.asarray, results), strict=True))


def _is_plain(node: onnx.NodeProto) -> bool:
    """An operator of ONNX itself, without randomness and without a graph of its own."""
    has_graph = any(attribute.HasField("g") for attribute in node.attribute)
    return node.domain in ("", "ai.onnx") and "Random" not in node.op_type and not has_graph

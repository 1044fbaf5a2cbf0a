"""The oldest ONNX Runtime that a file runs on, as tools/try_runtimes.py found it (docs/compatibility.md)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from qdeploy.benchmark.graph import Graph

# Since when opsets are read. Runtimes before 1.15 were not tried.
BY_OPSET = {18: (1, 15), 19: (1, 16), 20: (1, 17), 21: (1, 18)}

# Since when the kernels of operators take codes.
ON_CODES = {"DepthToSpace": (1, 21), "GreaterOrEqual": (1, 21), "Max": (1, 27)}


def runtime_floor(graph: Graph) -> str:
    """Such as "ONNX Runtime 1.15 or later (opset 13)"; "" for an opset that no export of qdeploy has."""
    if graph.opset > max(BY_OPSET):
        return ""
    (major, minor), why = max(_needs(graph))
    return f"ONNX Runtime {major}.{minor} or later ({why})"


def _needs(graph: Graph) -> Iterator[tuple[tuple[int, int], str]]:
    """Each version that something in the file asks for, with what asks for it."""
    yield BY_OPSET[min(opset for opset in BY_OPSET if opset >= graph.opset)], f"opset {graph.opset}"
    for node in graph.nodes:
        if node.op_type in ON_CODES and _reads_codes(node, graph):
            yield ON_CODES[node.op_type], f"{node.op_type} of uint8"
        if node.op_type == "Conv" and _has_different_zero_points(node.input[1], graph):
            yield (1, 27), "channels with different zero points"


def _reads_codes(node: onnx.NodeProto, graph: Graph) -> bool:
    maker = graph.maker(graph.unmoved(node.input[0]))
    return maker is not None and maker.op_type in ("QuantizeLinear", "Clip")


def _has_different_zero_points(weight: str, graph: Graph) -> bool:
    maker = graph.maker(graph.unmoved(weight))
    if maker is None or maker.op_type != "DequantizeLinear" or len(maker.input) < 3:
        return False
    return len(np.unique(graph.array(maker.input[2]))) > 1

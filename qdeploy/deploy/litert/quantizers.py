"""Quantizers of a graph: they become the steps of LiteRT's tensors, and operators only between two steps."""

from __future__ import annotations

import numpy as np
import onnx

from qdeploy.deploy.litert.file import Array, Grid
from qdeploy.deploy.litert.graph import LiteRTGraph, Node, Value, Weight, narrowed, refused
from qdeploy.deploy.symmetric import symmetric_codes


def read_input(graph: LiteRTGraph, image: onnx.ValueInfoProto) -> int:
    """The tensor of an input. Pixels that are codes already come as uint8 of their step."""
    shape, dtype, grid, codes = graph.shape(image.name), "float32", None, None
    if image.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        dtype, reader = "uint8", graph.only_reader(image.name)
        if reader is not None and reader.op_type == "DequantizeLinear":
            codes = graph.codes_of(reader)
            grid = Grid(codes.scale, codes.zero)
    tensor = graph.file.tensor(image.name, shape, dtype, grid)
    value = Value(tensor, shape)
    graph.values[image.name] = value if codes is None else graph.as_codes(value, codes)
    return tensor


def quantize(graph: LiteRTGraph, node: Node) -> Value:
    return graph.as_codes(graph.value(node), graph.codes_of(node))


def dequantize(graph: LiteRTGraph, node: Node) -> Value | None:
    """The same tensor: whoever reads it takes codes or asks for floats."""
    codes, scale, zero = node.input
    if codes in graph.constants:
        graph.weights[node.output[0]] = _weight(node, *(graph.constants[x] for x in node.input))
        return None
    value = graph.values[codes]
    step = float(graph.constants[scale]), int(graph.constants[zero])
    if value.codes is None or step != (value.codes.scale, value.codes.zero):
        raise refused(node, "signs, or other codes that are read on another step than they had")
    return value


def _weight(node: Node, codes: Array, scale: Array, zero: Array) -> Weight:
    scale = np.broadcast_to(scale.astype(np.float32), codes.shape[:1])
    if codes.dtype == np.int32:
        return Weight(codes, scale)
    return Weight(symmetric_codes(codes, zero, node.input[0], "litert"), scale)


def clip(graph: LiteRTGraph, node: Node) -> Value:
    """Of codes an operator only where they do not end there already."""
    value = graph.value(node)
    low, high = (graph.constants.get(name) for name in (*node.input[1:], "", "")[:2])
    if value.codes is None or low is None or high is None or low.dtype != np.uint8:
        return clipped_floats(graph, graph.as_floats(value), low, high)
    codes = narrowed(value.codes, int(low), int(high))
    if codes.low > value.codes.low:
        value = graph.clipped(value, codes, "MAXIMUM", codes.low)
    if value.codes is not None and codes.high < value.codes.high:
        value = graph.clipped(value, codes, "MINIMUM", codes.high)
    return value


def clipped_floats(
    graph: LiteRTGraph, value: Value, low: Array | None, high: Array | None
) -> Value:
    """None: no bound."""
    for kind, bound in (("MAXIMUM", low), ("MINIMUM", high)):
        if bound is not None:
            inputs = [value.tensor, graph.file.constant("bound", bound)]
            value = graph.emit(kind, inputs, value.shape, None, ("MaximumMinimumOptions", {}))
    return value

"""What becomes of each ONNX operator in a LiteRT graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from qdeploy.deploy.litert.file import Shape
from qdeploy.deploy.litert.graph import (
    TO_FIRST,
    TO_LAST,
    LiteRTGraph,
    Node,
    Value,
    attributes,
    refused,
)  # fmt: skip
from qdeploy.deploy.litert.products import linear
from qdeploy.deploy.litert.quantizers import clip, clipped_floats, dequantize, quantize, read_input
from qdeploy.deploy.litert.windows import average_pool, convolution, global_average, max_pool

Operator = Callable[[LiteRTGraph, Node], Value | list[Value] | None]


def translated(model: onnx.ModelProto) -> bytes:
    """The graph as a LiteRT file. Images go in and come out as [N, H, W, C].

    Errors: QdeployError if LiteRT is not installed, or has no form of an operator.
    """
    graph = LiteRTGraph(model)
    inputs = {one.name: read_input(graph, one) for one in graph.onnx.input}
    for node in graph.onnx.node:
        if node.op_type not in OPERATORS:
            raise refused(node, f"the operator {node.op_type}")
        made = OPERATORS[node.op_type](graph, node)
        values = [made] if isinstance(made, Value) else made or []
        for name, value in zip(node.output, values, strict=False):
            graph.values[name] = value
            graph.file.name(value.tensor, node.name or name)
    outputs = {
        one.name: graph.as_floats(graph.values[one.name]).tensor for one in graph.onnx.output
    }
    entries = {entry.key: entry.value for entry in model.metadata_props}
    return graph.file.finished(inputs, outputs, entries)


def _arithmetic(kind: str, options: str, integers: bool) -> Operator:
    """integers: whether codes are added or multiplied as such."""

    def operator(graph: LiteRTGraph, node: Node) -> Value:
        shape = graph.shape(node.output[0])
        values = [_operand(graph, node, index, len(shape)) for index in (0, 1)]
        codes = graph.codes_behind(node.output[0])
        if not integers or any(value.codes is None for value in values):
            codes = None
        if codes is None:
            values = [graph.as_floats(value) for value in values]
        tensors = [value.tensor for value in values]
        return graph.emit(kind, tensors, shape, codes, (options, {}), fuses=True)

    return operator


def _operand(graph: LiteRTGraph, node: Node, index: int, axes: int) -> Value:
    """A value, or a constant of as many axes as the result has."""
    name = node.input[index]
    if name not in graph.constants:
        return graph.value(node, index)
    array = graph.constants[name].astype(np.float32)
    array = array.reshape((1,) * (axes - array.ndim) + array.shape)
    array = array.transpose(TO_LAST) if axes == 4 else array
    return Value(graph.file.constant(name, array), array.shape)


def _in_floats(kind: str) -> Operator:
    def operator(graph: LiteRTGraph, node: Node) -> Value:
        x = graph.as_floats(graph.value(node))
        return graph.emit(kind, [x.tensor], x.shape)

    return operator


def _hard_sigmoid(graph: LiteRTGraph, node: Node) -> Value:
    given, x = attributes(node), graph.as_floats(graph.value(node))
    for kind, options, number in (
        ("MUL", "MulOptions", given.get("alpha", 0.2)),
        ("ADD", "AddOptions", given.get("beta", 0.5)),
    ):
        inputs = [x.tensor, graph.file.constant("number", np.array([number], np.float32))]
        x = graph.emit(kind, inputs, x.shape, None, (options, {}))
    return clipped_floats(graph, x, *np.array([[0], [1]], np.float32))


def _cast(graph: LiteRTGraph, node: Node) -> Value:
    x = graph.value(node)
    if attributes(node)["to"] != onnx.TensorProto.FLOAT or x.codes is not None:
        raise refused(node, "Cast to other types than float32")
    return graph.emit("CAST", [x.tensor], x.shape)


def _guard(graph: LiteRTGraph, node: Node) -> Value:
    """passes.py keeps ONNX Runtime from rounding by the Max of a value and the smallest float."""
    bound = graph.constants.get(node.input[1])
    if bound is None or bound.size > 1 or bound != np.finfo(np.float32).min:
        raise refused(node, "the operator Max")
    return graph.value(node)


def _reshape(graph: LiteRTGraph, node: Node) -> Value:
    """ONNX counts images channel by channel: where that matters, they are turned on both sides."""
    x, shape = graph.value(node), graph.shape(node.output[0])
    if shape.count(None) > 1:
        raise refused(node, f"{node.op_type} to several open sizes")
    if _is_image(x.shape):
        x = graph.transposed(x, TO_FIRST)
    if not _is_image(shape):
        return graph.reshaped(x, shape)
    return graph.transposed(graph.reshaped(x, tuple(shape[axis] for axis in TO_FIRST)), TO_LAST)


def _is_image(shape: Shape) -> bool:
    return len(shape) == 4 and shape[1:3] != (1, 1)


def _transpose(graph: LiteRTGraph, node: Node) -> Value:
    order = attributes(node)["perm"]
    if len(order) == 4:
        order = [TO_FIRST[order[axis]] for axis in TO_LAST]
    return graph.transposed(graph.value(node), order)


def _concat(graph: LiteRTGraph, node: Node) -> Value:
    """Each part is rounded to the step behind, and all of them lie at the same place in int8."""
    shape, values = (
        graph.shape(node.output[0]),
        [graph.value(node, index) for index in range(len(node.input))],
    )
    codes = graph.codes_behind(node.output[0])
    if codes is None:
        values = [graph.as_floats(value) for value in values]
    else:
        values = [graph.as_codes(value, codes, codes.shift) for value in values]
    options = ("ConcatenationOptions", {"axis": _axis(node, len(shape))})
    return graph.emit("CONCATENATION", [x.tensor for x in values], shape, codes, options)


def _axis(node: Node, axes: int) -> int:
    axis = int(attributes(node).get("axis", 0)) % axes
    return TO_LAST.index(axis) if axes == 4 else axis


def _split(graph: LiteRTGraph, node: Node) -> list[Value]:
    x, start, parts = graph.value(node), 0, []
    axis = _axis(node, len(x.shape))
    for name in node.output:
        shape = graph.shape(name)
        begin, size = np.zeros(len(shape), np.int32), np.full(len(shape), -1, np.int32)
        begin[axis], size[axis] = start, shape[axis] or -1
        inputs = [x.tensor, graph.file.constant("begin", begin), graph.file.constant("size", size)]
        parts.append(graph.emit_moved("SLICE", inputs, x, shape, ("SliceOptions", {})))
        start += int(size[axis])
    return parts


def _depth_to_space(graph: LiteRTGraph, node: Node) -> Value:
    """Channels are counted blocks first (DCR, as LiteRT does) or channels first (as PyTorch does)."""
    given, x = attributes(node), graph.value(node)
    batch, height, width, _ = x.shape
    block, shape = given["blocksize"], graph.shape(node.output[0])
    if shape.count(None) > 1:
        raise refused(node, "DepthToSpace of several open sizes")
    if given.get("mode", b"DCR") == b"DCR":
        parts, order = (block, block, shape[3]), (0, 1, 3, 2, 4, 5)
    else:
        parts, order = (shape[3], block, block), (0, 1, 4, 2, 5, 3)
    apart = graph.reshaped(x, (batch, height, width, *parts))
    return graph.reshaped(graph.transposed(apart, order), shape)


OPERATORS: dict[str, Operator] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "Clip": clip,
    "Conv": convolution,
    "Gemm": linear,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "Add": _arithmetic("ADD", "AddOptions", integers=True),
    "Mul": _arithmetic("MUL", "MulOptions", integers=True),
    "Sub": _arithmetic("SUB", "SubOptions", integers=False),
    "Div": _arithmetic("DIV", "DivOptions", integers=False),
    "Relu": _in_floats("RELU"),
    "Sigmoid": _in_floats("LOGISTIC"),
    "HardSigmoid": _hard_sigmoid,
    "Cast": _cast,
    "Max": _guard,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "DepthToSpace": _depth_to_space,
}

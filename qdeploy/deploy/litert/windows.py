"""Convolutions and pools, and the padding of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.deploy.litert.file import Shape
from qdeploy.deploy.litert.graph import LiteRTGraph, Node, Value, Weight, attributes, refused
from qdeploy.deploy.litert.products import product


def convolution(graph: LiteRTGraph, node: Node) -> Value:
    given, x = attributes(node), graph.value(node)
    weight = graph.parameter(node, 1)
    if weight.codes.ndim != 4:
        raise refused(node, "a convolution over other than two axes")
    kernel, stride = weight.codes.shape[2:], given.get("strides", [1, 1])
    dilation, groups = given.get("dilations", [1, 1]), given.get("group", 1)
    x, padding = _padded(graph, node, x, kernel, stride, dilation)
    options: dict[str, Any] = {
        "padding": padding, "strideH": stride[0], "strideW": stride[1],
        "dilationHFactor": dilation[0], "dilationWFactor": dilation[1],
    }  # fmt: skip
    if groups == 1 or groups != x.shape[3]:
        weight = Weight(weight.codes.transpose(0, 2, 3, 1), weight.scale)
        return product(graph, node, "CONV_2D", x, weight, ("Conv2DOptions", options))
    options["depthMultiplier"] = weight.codes.shape[0] // groups
    weight = Weight(weight.codes.transpose(1, 2, 3, 0), weight.scale, axis=3)
    kind = "DEPTHWISE_CONV_2D", x, weight, ("DepthwiseConv2DOptions", options)
    return product(graph, node, *kind)


def max_pool(graph: LiteRTGraph, node: Node) -> Value:
    return _pool(graph, node, "MAX_POOL_2D", graph.value(node))


def average_pool(graph: LiteRTGraph, node: Node) -> Value:
    """In floats: LiteRT averages no codes onto another step."""
    given = attributes(node)
    if any(given.get("pads", [])) and not given.get("count_include_pad", 0):
        raise refused(node, "an average that leaves its padding out")
    return _pool(graph, node, "AVERAGE_POOL_2D", graph.as_floats(graph.value(node)))


def _pool(graph: LiteRTGraph, node: Node, kind: str, x: Value) -> Value:
    given, shape = attributes(node), graph.shape(node.output[0])
    kernel = given["kernel_shape"]
    stride, dilation = (given.get(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    if len(kernel) != 2 or set(dilation) != {1} or given.get("ceil_mode", 0):
        raise refused(node, f"{node.op_type} over other than two axes, with dilation or ceil_mode")
    x, padding = _padded(graph, node, x, kernel, stride, dilation, lowest=kind == "MAX_POOL_2D")
    options = {
        "padding": padding, "strideH": stride[0], "strideW": stride[1],
        "filterHeight": kernel[0], "filterWidth": kernel[1],
    }  # fmt: skip
    return graph.emit_moved(kind, [x.tensor], x, shape, ("Pool2DOptions", options))


def global_average(graph: LiteRTGraph, node: Node) -> Value:
    x, shape = graph.value(node), graph.shape(node.output[0])
    if len(x.shape) != 4:
        raise refused(node, "an average over other than two axes")
    codes = graph.codes_behind(node.output[0]) if x.codes is not None else None
    x = x if codes is not None else graph.as_floats(x)
    axes = graph.file.constant("axes", np.array([1, 2], np.int32))
    options = ("ReducerOptions", {"keepDims": True})
    return graph.emit("MEAN", [x.tensor, axes], shape, codes, options, positive=x.is_positive)


def _padded(
    graph: LiteRTGraph,
    node: Node,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    lowest: bool = False,
) -> tuple[Value, int]:
    """x, and LiteRT's own padding of it; x is padded first where LiteRT would pad otherwise.

    lowest: by the lowest value, not by 0
    """
    padding, pads = graph.file.schema.Padding, attributes(node).get("pads", [0, 0, 0, 0])
    if not any(pads):
        return x, padding.VALID
    # SAME would average what is inside alone.
    if node.op_type != "AveragePool" and pads == _same(x.shape[1:3], kernel, stride, dilation):
        return x, padding.SAME
    edges = np.array([[0, 0], pads[0::2], pads[1::2], [0, 0]], np.int32)
    grown = (int(edge.sum()) for edge in edges)
    shape = tuple(None if n is None else n + more for n, more in zip(x.shape, grown, strict=True))
    inputs = [x.tensor, graph.file.constant("pads", edges)]
    if not lowest:
        return graph.emit_moved("PAD", inputs, x, shape, ("PadOptions", {})), padding.VALID
    value, grid = np.array([np.finfo(np.float32).min]), None
    if x.codes is not None:
        value, grid = np.array([x.codes.low + x.codes.shift], np.int8), x.codes.grid
    inputs.append(graph.file.constant("lowest", value, grid))
    return graph.emit_moved("PADV2", inputs, x, shape, ("PadV2Options", {})), padding.VALID


def _same(
    sizes: Shape, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """LiteRT's padding SAME as ONNX has pads: what is odd goes to the end."""
    total = [
        0 if n is None else max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
    ]
    return [*(n // 2 for n in total), *(n - n // 2 for n in total)]

"""Products with weights, which are int8 in the file whether codes or floats meet them."""

from __future__ import annotations

import numpy as np

from qdeploy.deploy.litert.graph import (
    LiteRTGraph,
    Node,
    Options,
    Value,
    Weight,
    attributes,
    refused,
)  # fmt: skip


def linear(graph: LiteRTGraph, node: Node) -> Value:
    given = attributes(node)
    scaled = (given.get("alpha", 1), given.get("beta", 1)) != (1, 1)
    if given.get("transA", 0) or not given.get("transB", 0) or scaled:
        raise refused(node, "a Gemm that is no Linear")
    x, weight = graph.value(node), graph.parameter(node, 1)
    return product(graph, node, "FULLY_CONNECTED", x, weight, ("FullyConnectedOptions", {}))


def product(
    graph: LiteRTGraph, node: Node, kind: str, x: Value, weight: Weight, options: Options
) -> Value:
    """In integers where codes go in and come out.

    What is not rounded behind it is a product of floats: LiteRT knows none of codes that gives floats.
    """
    codes = graph.codes_behind(node.output[0])
    quantized = weight.codes.dtype == np.int8
    if x.codes is None or not quantized:
        codes = None
    name = node.name or node.output[0]
    filters = graph.file.constant(
        f"{name}.weight", weight.codes, weight.grid if quantized else None
    )
    if quantized and codes is None:
        filters = graph.emit("DEQUANTIZE", [filters], weight.codes.shape).tensor
    inputs = [x.tensor if codes is not None else graph.as_floats(x).tensor, filters]
    if len(node.input) > 2:
        bias = graph.parameter(node, 2)
        values = bias.codes if codes is not None else bias.codes.astype(np.float32) * bias.scale
        grid = bias.grid if codes is not None else None
        inputs.append(graph.file.constant(f"{name}.bias", values, grid))
    return graph.emit(kind, inputs, graph.shape(node.output[0]), codes, options, fuses=True)
